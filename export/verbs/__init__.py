"""The verbs of this room: export, quantize, verify, import, index."""
