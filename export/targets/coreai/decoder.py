"""The decoder as functions over one set of weights, in the form that Apple's engine for language models looks for:

    input_ids int32 [1, T]; position_ids int32 [1, E]: only its length counts, the tokens are the last T of E positions
    logits [1, T, V]
    states keyCache and valueCache [layers, 1, Hkv, rows, D]: the caller's, with at least E rows, more whenever it likes

"main" has LongRoPE's short factors; "main_long", of models with a switch, the long ones, for whoever computes a sequence again
that grows past the original context. Places come from sizes alone: devices refuse slices at computed positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from phi3mobile.export.packed import HEAD
from phi3mobile.export.targets.coreai import blocks, door
from phi3mobile.export.targets.coreai.door import Place, Size, Value
from phi3mobile.export.targets.coreai.matrices import Matrices
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.rope import rope_tables, short_rows
from phi3mobile.models.tensors import ATTENTION_NORM, DOWN, FINAL_NORM, GATE_UP, MLP_NORM, QKV, O

SHORT, LONG = "main", "main_long"
KEYS, VALUES = "keyCache", "valueCache"
PARTS = "q", "k", "v"  # of fused rows, stored apart where several query heads share a KV head


def functions(config: DecoderConfig, context: int) -> dict[str, int]:
    """Name -> positions that it takes."""
    if config.original_context is None:
        return {SHORT: context}
    return {SHORT: short_rows(config, context), LONG: context}


def build(matrices: Matrices, context: int) -> None:
    """Write the functions into the program of `matrices`."""
    config, dtype = matrices.packed.config, matrices.dtype
    tables, begin = rope_tables(config, context), 0
    cache = (config.num_hidden_layers, 1, config.num_key_value_heads, None, config.head_dim)
    for name, rows in functions(config, context).items():
        rope = tuple(table[begin : begin + rows] for table in tables)
        matrices.program.function(
            name,
            {"input_ids": ((1, None), "int32"), "position_ids": ((1, None), "int32")},
            {KEYS: (cache, dtype), VALUES: (cache, dtype)},
            partial(_forward, matrices, name, rope),
        )
        begin += rows


def _forward(
    matrices: Matrices, name: str, rope: tuple[torch.Tensor, ...], tokens: Value, places: Value, keys: Value, values: Value
) -> Mapping[str, Value]:
    config, program = matrices.packed.config, matrices.program
    total = door.size(places, 1)
    start = total - door.size(tokens, 1)
    half = config.rotary_dim // 2
    cos, sin = (
        door.between(matrices.table(f"rope/{name}/{part}", table), [start, 0], [total, half], (None, half))
        for part, table in zip(("cos", "sin"), rope, strict=True)
    )
    x = door.reshape(matrices.embedded(door.reshape(tokens, (None, 1))), (1, None, config.hidden_size))
    for layer in range(config.num_hidden_layers):
        normed = _norm(matrices, x, ATTENTION_NORM, layer)
        q, k, v = _projected(matrices, normed, layer)
        q, k = blocks.rotate(q, cos, sin), blocks.rotate(k, cos, sin)
        keys, k = _cached(config, keys, k, layer, start, total)
        values, v = _cached(config, values, v, layer, start, total)
        attended = blocks.attend(program, q, k, v, config.attention_scale, config.block(layer).window)
        together = door.reshape(door.transpose(attended, 0, 2, 1, 3), (1, None, config.num_attention_heads * config.head_dim))
        x = door.add(x, matrices.linear(together, config.tensor(O, layer).name))
        gate_up = matrices.linear(_norm(matrices, x, MLP_NORM, layer), config.tensor(GATE_UP, layer).name)
        gate, up = door.split(gate_up, [config.intermediate_size] * 2, 2)
        x = door.add(x, matrices.linear(door.mul(door.silu(gate), up), config.tensor(DOWN, layer).name))
    return {KEYS: keys, VALUES: values, "logits": matrices.linear(_norm(matrices, x, FINAL_NORM, None), HEAD)}


def _norm(matrices: Matrices, x: Value, role: str, layer: int | None) -> Value:
    config = matrices.packed.config
    return blocks.rms_norm(matrices.program, x, matrices.vector(config.tensor(role, layer).name), config.rms_norm_eps)


def _projected(matrices: Matrices, x: Value, layer: int) -> tuple[Value, ...]:
    """q [1, H, T, D], k and v [1, Hkv, T, D], not yet turned."""
    config = matrices.packed.config
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    counts, name = (heads, kv_heads, kv_heads), config.tensor(QKV, layer).name
    if heads == kv_heads:
        fused = door.reshape(matrices.linear(x, name), (1, None, sum(counts), dim))
        return tuple(door.split(door.transpose(fused, 0, 2, 1, 3), counts, 1))
    rows = part_rows(config)
    parts = [
        door.reshape(matrices.linear(x, name, part, rows[part]), (1, None, count, dim))
        for part, count in zip(PARTS, counts, strict=True)
    ]
    return tuple(door.transpose(part, 0, 2, 1, 3) for part in parts)


def part_rows(config: DecoderConfig) -> dict[str, slice]:
    """Which rows of the fused matrix are stored apart, as Apple's compiler wants it of grouped heads; {}: it is one."""
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if heads == kv_heads:
        return {}
    ends = [0, heads * dim, (heads + kv_heads) * dim, (heads + 2 * kv_heads) * dim]
    return {part: slice(begin, end) for part, begin, end in zip(PARTS, ends, ends[1:], strict=False)}


def _cached(config: DecoderConfig, cache: Value, rows: Value, layer: int, start: Size, total: Size) -> tuple[Value, Value]:
    """The cache with a layer's rows [1, Hkv, T, D] at their places, and all that layer's rows so far, [1, Hkv, E, D]."""
    kv_heads, dim = config.num_key_value_heads, config.head_dim
    end: list[Place] = [layer + 1, 1, kv_heads, total, dim]
    cache = door.updated(cache, door.reshape(rows, (1, 1, kv_heads, None, dim)), [layer, 0, 0, start, 0], end)
    whole = door.between(cache, [layer, 0, 0, 0, 0], end, (1, 1, kv_heads, None, dim))
    return cache, door.reshape(whole, (1, kv_heads, None, dim))
