"""mixtral by transformers' MixtralForCausalLM in float32."""

from __future__ import annotations

import numpy as np
import torch
from reference_phimoe import in_memory


def logits(hf: dict, arrays: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """[T, V] of a checkpoint's values: tensors by our names (fused qkv and w13)."""
    from transformers import MixtralConfig, MixtralForCausalLM

    values = {key: value for key, value in hf.items() if key != "model_type"}
    model = MixtralForCausalLM(MixtralConfig(**values, attn_implementation="eager", experts_implementation="eager"))
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    missing, unexpected = model.load_state_dict(in_memory(hf, tensors, "gate"), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    with torch.no_grad():
        return model.float().eval()(torch.tensor([tokens])).logits[0].numpy()
