"""One room per target: packed weights in, the program that one runtime loads out."""
