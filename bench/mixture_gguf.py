"""A GGUF file with the shapes of a phimoe preset and random blocks, for llama.cpp's speed beside ours: no text comes of it.

llama.cpp's graph of phimoe has RMSNorm where the model has LayerNorm, and expert weights that sum to 1: as fast, and wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from phi3mobile.bench.to_gguf import Kind, add_keys
from phi3mobile.errors import InputError
from phi3mobile.files import whole_file
from phi3mobile.models.experts import MixtureConfig

_BLOCK = {Kind.Q4_0: 18, Kind.Q8_0: 34}  # bytes of 32 weights, the scale in the first two


def write_random_gguf(config: MixtureConfig, path: Path) -> None:
    """Layers at Q4_0, embedding and head at Q8_0, router, norms and biases float32. InputError: no shape of its."""
    if config.family != "phimoe" or config.num_attention_heads * config.head_dim != config.hidden_size:
        raise InputError(
            "llama.cpp's phimoe wants heads x head size = hidden size: of the presets, phi-mini-moe and phi-3.5-moe"
        )
    with whole_file(path) as partial:
        writer = gguf.GGUFWriter(partial, "phimoe")
        add_keys(writer, config)
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        tensors = list(_tensors(config))
        for name, shape, kind in tensors:
            stored = shape if kind == Kind.F32 else (*shape[:-1], shape[-1] // 32 * _BLOCK[kind])
            dtype = np.dtype(np.float32 if kind == Kind.F32 else np.uint8)
            writer.add_tensor_info(name, stored, dtype, int(np.prod(stored)) * dtype.itemsize, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        generator = np.random.default_rng(0)
        for name, shape, kind in tensors:
            writer.write_tensor_data(_values(generator, name, shape, kind))
        writer.close()


def _values(generator: np.random.Generator, name: str, shape: tuple[int, ...], kind: Kind) -> np.ndarray:
    if kind == Kind.F32:
        if len(shape) > 1:
            return generator.standard_normal(shape, np.float32) * shape[-1] ** -0.5
        return np.full(shape, float(name.endswith("norm.weight")), np.float32)
    blocks = generator.integers(0, 256, (*shape[:-1], shape[-1] // 32, _BLOCK[kind]), np.uint8)
    levels = 4.6 if kind == Kind.Q4_0 else 74.0  # standard deviation of random codes
    blocks[..., :2] = np.frombuffer(np.float16(shape[-1] ** -0.5 / levels).tobytes(), np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def _tensors(config: MixtureConfig) -> Iterator[tuple[str, tuple[int, ...], Kind]]:
    hidden, inner, experts = config.hidden_size, config.intermediate_size, config.num_local_experts
    keys = config.num_key_value_heads * config.head_dim
    yield "token_embd.weight", (config.vocab_size, hidden), Kind.Q8_0
    for layer in range(config.num_hidden_layers):
        for name, rows in (("attn_q", hidden), ("attn_k", keys), ("attn_v", keys), ("attn_output", hidden)):
            yield f"blk.{layer}.{name}.weight", (rows, hidden), Kind.Q4_0
            yield f"blk.{layer}.{name}.bias", (rows,), Kind.F32
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", (hidden,), Kind.F32
            yield f"blk.{layer}.{name}.bias", (hidden,), Kind.F32
        yield f"blk.{layer}.ffn_gate_inp.weight", (experts, hidden), Kind.F32
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            yield f"blk.{layer}.ffn_{name}_exps.weight", (experts, *shape), Kind.Q4_0
    yield "output_norm.weight", (hidden,), Kind.F32
    yield "output_norm.bias", (hidden,), Kind.F32
    yield "output.weight", (config.vocab_size, hidden), Kind.Q8_0
    yield "output.bias", (config.vocab_size,), Kind.F32


def decoded_bytes(config: MixtureConfig) -> int:
    """Bytes of weights that one token reads."""
    total = 0
    for name, shape, kind in _tensors(config):
        size = int(np.prod(shape)) * 4 if kind == Kind.F32 else int(np.prod(shape)) // 32 * _BLOCK[kind]
        used = config.num_experts_per_tok / config.num_local_experts if "_exps" in name else 1
        total += 0 if name == "token_embd.weight" else int(size * used)
    return total
