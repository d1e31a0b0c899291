"""Drafters guess the next tokens; the model checks them in one forward (session/decoding.py)."""
