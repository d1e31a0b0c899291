"""From raw text to an aligned Phi-3: data, pretraining, SFT, DPO, safety, QAT, LongRoPE. Needs the extra `train`."""
