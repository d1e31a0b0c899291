"""`.pte` programs for ExecuTorch: XNNPACK segments with attention between them, graph work once per structure."""
