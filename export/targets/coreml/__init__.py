"""Checkpoint -> Core ML: MIL programs built straight from the config, and written with their weights streaming through."""
