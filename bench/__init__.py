"""Measurements: of this machine (host.py), of peers beside us (peers.py), of text quality (perplexity.py)."""
