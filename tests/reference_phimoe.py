"""phimoe by transformers' PhimoeForCausalLM in float32, with one line mended: its rotary embedding asks for factors without a
length, so the short list would stay past the switch, while its own buffer already holds the right one."""

from __future__ import annotations

import numpy as np
import torch


def model(hf: dict, tensors: dict[str, torch.Tensor]):
    """transformers' model with a checkpoint's values: tensors by our names (fused qkv and w13)."""
    from transformers import PhimoeConfig, PhimoeForCausalLM

    values = {key: value for key, value in hf.items() if key != "model_type"}
    found = PhimoeForCausalLM(PhimoeConfig(**values, attn_implementation="eager", experts_implementation="eager"))
    rotary = found.model.rotary_emb
    if hf["rope_scaling"]:
        rotary.rope_init_fn = lambda config: (rotary.inv_freq, 1.0)
    missing, unexpected = found.load_state_dict(in_memory(hf, tensors, "router"), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return found.float().eval()


def in_memory(hf: dict, tensors: dict[str, torch.Tensor], router: str) -> dict[str, torch.Tensor]:
    """Our names -> transformers' in memory: q, k and v apart, experts stacked."""
    found, stacks = {}, {}
    dim = hf["head_dim"]
    heads, kv_heads = hf["num_attention_heads"] * dim, hf["num_key_value_heads"] * dim
    for name, tensor in tensors.items():
        base, _, rest = name.partition(".block_sparse_moe.")
        if "qkv_proj" in name:
            for part, value in zip("qkv", tensor.split([heads, kv_heads, kv_heads]), strict=True):
                found[name.replace("qkv_proj", f"{part}_proj")] = value
        elif rest.startswith("experts."):
            kind = "gate_up_proj" if ".w13." in rest else "down_proj"
            stacks.setdefault(f"{base}.mlp.experts.{kind}", []).append(tensor)
        elif rest:
            found[f"{base}.mlp.{router}.weight"] = tensor
        else:
            found[name] = tensor
    return found | {name: torch.stack(values) for name, values in stacks.items()}


def logits(hf: dict, arrays: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """[T, V]."""
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        return model(hf, tensors)(torch.tensor([tokens])).logits[0].numpy()
