"""Better 4-bit weights: one pass over the layers with calibration text, each matrix solved for what it multiplies (GPTQ)."""
