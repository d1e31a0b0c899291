"""Tiny random models for tests: configs, checkpoints as transformers would save them, transformers' own models."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import torch

from phi3mobile.models.decoder import Decoder
from phi3mobile.models.families.phi3 import Phi3Config
from phi3mobile.models.presets import PRESETS
from phi3mobile.models.registry import stored_parts

TINY = [name for name in PRESETS if name.startswith("tiny-")]


def tiny(name: str, **changes) -> Phi3Config:
    """The preset `name`, with some fields changed."""
    return replace(PRESETS[name], **changes)


def words(first: int, last: int) -> str:
    """Text that never repeats itself."""
    return " ".join("".join(random.Random(word).choices("etaoinshrdlucmfwyp 0123.,", k=6)) for word in range(first, last))


def random_model(config: Phi3Config, context: int | None = None, seed: int = 0) -> Decoder:
    """Our model with random weights large enough that every mistake shows in the logits."""
    model = Decoder(config, context).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        spread = 0.3 if "norm" in name else 1.5 / weight.shape[-1] ** 0.5
        weight.data = torch.randn(weight.shape, generator=generator) * spread + (1.0 if "norm" in name else 0.0)
        weight.requires_grad_(False)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def random_tensors(config: Phi3Config, seed: int = 0) -> dict[str, torch.Tensor]:
    """HF names -> fp32 weights of `random_model`, as a phi3 checkpoint stores them (a tied head is left out).

    A vision tower's are among them, none of them zero: a forgotten bias or separator shows.
    """
    tensors = dict(random_model(config, 1, seed).state_dict())
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    generator = torch.Generator().manual_seed(seed + 1)
    for name, shape in config.vision_tensors().items():
        values = torch.randn(shape, generator=generator)
        is_norm = "norm" in name and name.endswith("weight")
        spread = 1.5 / math.prod(shape[1:]) ** 0.5 if name.endswith("weight") and len(shape) > 1 else 0.3
        tensors[name] = values * spread + (1.0 if is_norm else 0.0)
    return tensors


def random_tokens(config: Phi3Config, length: int, seed: int = 1) -> torch.Tensor:
    """int64 [1, length]."""
    return torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(seed))


def stored(config, tensors: dict[str, torch.Tensor], layout: str) -> dict[str, torch.Tensor]:
    """The same weights as a folder of a source layout holds them: a family's own, "llama", ..."""
    config = replace(config, source_model_type=layout)
    found: dict[str, torch.Tensor] = {}
    stacks: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():
        parts = stored_parts(config, name)
        for part, value in zip(parts, tensor.split([shape[0] for shape in parts.values()]), strict=True):
            if part.endswith("]"):
                stacks.setdefault(part.partition("[")[0], []).append(value)
            else:
                found[part] = value.contiguous()
    return found | {name: torch.stack(values) for name, values in stacks.items()}


def transformers_model(config: Phi3Config, tensors: dict[str, torch.Tensor]):
    """transformers' Decoder in fp32 with these weights: the reference of every parity test."""
    import transformers

    hf = transformers.Phi3Config(**{k: v for k, v in config.to_hf().items() if k != "model_type"})
    hf._attn_implementation = "eager"
    model = transformers.Phi3ForCausalLM(hf).float().eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return model


def unfused(config: Phi3Config, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights under Llama's and Mistral's names."""
    kv = config.num_key_value_heads * config.head_dim
    out = {}
    for name, tensor in tensors.items():
        if "qkv_proj" in name:
            parts = tensor.split([config.num_attention_heads * config.head_dim, kv, kv])
            for part, new in zip(parts, ("q_proj", "k_proj", "v_proj"), strict=True):
                out[name.replace("qkv_proj", new)] = part.contiguous()
        elif "gate_up_proj" in name:
            for part, new in zip(tensor.chunk(2), ("gate_proj", "up_proj"), strict=True):
                out[name.replace("gate_up_proj", new)] = part.contiguous()
        else:
            out[name] = tensor
    return out


def write_folder(folder: Path, hf: dict, tensors: dict[str, torch.Tensor]) -> Path:
    """A one-file checkpoint folder as any other tool would write it."""
    import json

    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(hf))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tiny_checkpoint(folder: Path, name: str = "tiny-gqa", seed: int = 0) -> Path:
    """A random phi3 checkpoint of preset `name` in `folder` (made)."""
    return write_folder(folder, PRESETS[name].to_hf(), random_tensors(PRESETS[name], seed))
