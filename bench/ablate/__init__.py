"""What each choice of quantization costs: widths, groups, methods, activations, KV cache. Nothing is exported."""
