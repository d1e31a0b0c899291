"""Recipe ios-gpu: the decoder as one program of several functions over one KV cache in states.

Every function runs a fixed number of tokens T: "decode" 1, "lookup" 8 (to verify drafts), "prefill" a chunk; fewer are padded.
What varies is E, the cache rows attended over: the length of the input `keys`, one of at most 128 values, so that a short
conversation does not pay for a long cache.

    tokens int32 [1, T], position int32 [1], keys int32 [E] = 0..E-1; with a LongRoPE switch, long int32 [1]: 1 = long factors
    logits float16 [1, T, V]; states k_cache_<layer> and v_cache_<layer>, float16 [1, Hkv, rows, D]

A model that sees pictures takes embeddings float16 [1, T, hidden] in place of tokens, those of text from one function more:

    embed: tokens int32 [1, T] -> embeddings float16 [1, T, hidden], T as in any of the others

The rows that padding writes come after the sequence and are overwritten by its next tokens; the cache has room for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Var, get_new_symbol, types

from phi3mobile.engines.coreml import EMBED
from phi3mobile.export.packed import PackedModel
from phi3mobile.export.targets.coreml import blocks, sparse
from phi3mobile.export.targets.coreml.layers import Layers
from phi3mobile.export.targets.coreml.matrices import Matrices
from phi3mobile.export.targets.coreml.package import TARGET, Weights
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.rope import rope_tables, short_rows

LOOKUP = 8  # tokens of one verification forward: a draft of 7 and the token before it
KEY_STEP = 128  # E is a multiple of it
MOST_SHAPES = 128  # that Core ML takes for one input


@dataclass(frozen=True)
class Sizes:
    """Sizes of the program: the manifest's `runtime` tells them to whoever runs it."""

    context: int
    lengths: dict[str, int]  # function -> T
    rows: int  # of the cache: the context, and room for a padded chunk at its end
    key_step: int

    @property
    def key_counts(self) -> list[int]:
        return list(range(self.key_step, self.rows + 1, self.key_step))


def plan(config: DecoderConfig, context: int, chunk: int) -> Sizes:
    """Sizes for a context and a prefill chunk. Block-sparse layers want whole periods of their pattern."""
    lengths = {"decode": 1, "lookup": LOOKUP, "prefill": chunk}
    lengths = {name: length for name, length in lengths.items() if name != "lookup" or 1 < length < chunk}
    patterns = filter(None, map(config.blocksparse, range(config.num_hidden_layers)))
    step = math.lcm(KEY_STEP, *(pattern.block * pattern.stride for pattern in patterns))
    while context + chunk > step * MOST_SHAPES:
        step *= 2
    return Sizes(context, lengths, -(-(context + chunk) // step) * step, step)


def build(packed: PackedModel, sizes: Sizes, weights: Weights) -> dict[str, Function]:
    """The functions by name; their constants go to `weights`."""
    matrices = Matrices(packed, weights)
    functions = {name: _function(packed.config, sizes, matrices, length) for name, length in sizes.lengths.items()}
    return functions if packed.config.vision is None else functions | {EMBED: _embed(packed.config, sizes, matrices)}


def cache_shape(config: DecoderConfig, sizes: Sizes) -> tuple[int, ...]:
    return 1, config.num_key_value_heads, sizes.rows, config.head_dim


def _function(config: DecoderConfig, sizes: Sizes, matrices: Matrices, length: int) -> Function:
    mb.name_count.clear()
    counts = [count for count in sizes.key_counts if count >= length]
    inputs = {
        **_given(config, length),
        "position": mb.placeholder(shape=(1,), dtype=types.int32),
        "keys": mb.placeholder(shape=(get_new_symbol() if len(counts) > 1 else counts[0],), dtype=types.int32),
    }
    if config.original_context is not None:
        inputs["long"] = mb.placeholder(shape=(1,), dtype=types.int32)
    for layer in range(config.num_hidden_layers):
        for name in (f"k_cache_{layer}", f"v_cache_{layer}"):
            inputs[name] = mb.state_tensor_placeholder(cache_shape(config, sizes), dtype=types.fp16)
    with Function(inputs, opset_version=TARGET) as function:
        function.set_outputs([_forward(config, sizes, matrices, length, function.inputs)])
    if len(counts) > 1:
        shapes = ct.EnumeratedShapes([(count,) for count in counts], default=(counts[-1],))
        function.set_input_types((ct.TensorType("keys", shape=shapes, dtype=np.int32),))
    return function


def _embed(config: DecoderConfig, sizes: Sizes, matrices: Matrices) -> Function:
    mb.name_count.clear()
    lengths = sorted(sizes.lengths.values())
    tokens = mb.placeholder(shape=(1, get_new_symbol() if len(lengths) > 1 else lengths[0]), dtype=types.int32)
    with Function({"tokens": tokens}, opset_version=TARGET) as function:
        function.set_outputs([Layers(config, matrices).embed(function.inputs["tokens"], name="embeddings")])
    if len(lengths) > 1:
        shapes = ct.EnumeratedShapes([(1, length) for length in lengths], default=(1, lengths[-1]))
        function.set_input_types((ct.TensorType("tokens", shape=shapes, dtype=np.int32),))
    return function


def _given(config: DecoderConfig, length: int) -> dict[str, Var]:
    """What stands at the positions: tokens, or rows of a model that sees pictures."""
    if config.vision is None:
        return {"tokens": mb.placeholder(shape=(1, length), dtype=types.int32)}
    return {"embeddings": mb.placeholder(shape=(1, length, config.hidden_size), dtype=types.fp16)}


def _forward(config: DecoderConfig, sizes: Sizes, matrices: Matrices, length: int, inputs: dict[str, Var]) -> Var:
    layers = Layers(config, matrices)
    position, keys = inputs["position"], inputs["keys"]
    queries = mb.add(x=position, y=np.arange(length, dtype=np.int32))
    cos, sin = _rope(config, sizes, matrices, queries, inputs.get("long"))
    begin, end = blocks.span(position, length, cache_shape(config, sizes))
    attend = _Attention(config, sizes, queries, keys)
    x = layers.embed(inputs["tokens"]) if "tokens" in inputs else inputs["embeddings"]
    for layer in range(config.num_hidden_layers):
        q, k, v = layers.projected(x, layer)
        q, k = blocks.rope(q, cos, sin), blocks.rope(k, cos, sin)
        k, v = (blocks.write_rows(inputs[f"{name}_cache_{layer}"], rows, begin, end) for name, rows in (("k", k), ("v", v)))
        x = layers.finished(x, attend(q, k, v, layer), layer, name=f"layer_{layer}")
    return layers.logits(x, name="logits")


class _Attention:
    """Attention of one function; masks are made once, for all layers."""

    def __init__(self, config: DecoderConfig, sizes: Sizes, queries: Var, keys: Var) -> None:
        self.config, self.count = config, mb.shape(x=keys)
        length, groups = queries.shape[0], config.num_attention_heads // config.num_key_value_heads
        patterns = [config.blocksparse(layer) for layer in range(config.num_hidden_layers)]
        self.patterns = [pattern if sparse.hides(pattern, sizes.rows, length) else None for pattern in patterns]
        hiding = [pattern for pattern in dict.fromkeys(self.patterns) if pattern is not None]
        self.scopes = {pattern: sparse.scope(pattern, queries, keys, sizes.rows) for pattern in hiding}
        if None in self.patterns:
            self.mask = blocks.causal_mask(queries, keys, config.sliding_window, groups)

    def __call__(self, q: Var, k: Var, v: Var, layer: int) -> Var:
        """q [1, H, T, D], whole caches [1, Hkv, rows, D] -> [1, T, H * D]."""
        pattern, scale = self.patterns[layer], self.config.attention_scale
        if pattern is not None:
            return sparse.attend(q, k, v, self.count, self.scopes[pattern], pattern, scale)
        k, v = blocks.first_rows(k, self.count), blocks.first_rows(v, self.count)
        return blocks.attend(q, k, v, self.mask, scale)


def _rope(config: DecoderConfig, sizes: Sizes, matrices: Matrices, queries: Var, long: Var | None) -> tuple[Var, Var]:
    """cos and sin [T, R]; padding may run past the context, whose last row then serves."""
    tables = rope_tables(config, sizes.context)
    cos, sin = (
        matrices.constant(name, tuple(table.shape), partial(_half, table))
        for name, table in zip(("rope_cos", "rope_sin"), tables, strict=True)
    )
    positions = mb.minimum(x=queries, y=np.int32(sizes.context - 1))
    return blocks.rope_rows(cos, sin, positions, long, short_rows(config, sizes.context))


def _half(table: torch.Tensor) -> np.ndarray:
    return table.numpy().astype(np.float16)
