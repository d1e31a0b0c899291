"""The decoder as signatures over one set of weights and one KV cache, which goes in and comes out.

Every signature runs a fixed number of tokens T: "decode" 1, "prefill_<T>" more; fewer are padded. The cache has as many rows
as its tensors (DYNAMIC), or a fixed number. Names and shapes are those that LiteRT-LM looks for in models without a mask:

    tokens int32 [1, T], input_pos int32 [T]: positions, the first one's row takes the first token
    kv_cache_k_<layer> float32 [1, Hkv, rows, D] and kv_cache_v_<layer> float32 [1, Hkv, D, rows], in and out
    logits float32 [1, T, V]

Positions plus LONG_REGIME take the long RoPE factors, as do those of a forward that ends past the original context. Padding
may stand at any position: the rows that it writes come after the sequence and are overwritten by its next tokens. Rows that
nothing was written to must hold finite numbers, because they are multiplied by 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema

from phi3mobile.engines.base import LONG_REGIME
from phi3mobile.errors import InputError
from phi3mobile.export.packed import EMBEDDING, HEAD, PackedModel
from phi3mobile.export.targets.litert import layers
from phi3mobile.export.targets.litert.program import DYNAMIC, Graph, ProgramFile, Value
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.quantized import Packed, group_ones
from phi3mobile.models.rope import rope_tables, short_rows
from phi3mobile.models.tensors import ATTENTION_NORM, DOWN, FINAL_NORM, GATE_UP, MLP_NORM, QKV, O


class Weights:
    """The model's tensors in a program: declared while graphs are built, quantized and written one after the other."""

    def __init__(self, packed: PackedModel, program: ProgramFile) -> None:
        self.packed, self.program = packed, program
        self._tensor = lru_cache(maxsize=1)(packed.matrix)  # codes and scales of one matrix are asked for in turn
        self._row_scales = cache(lambda name: packed.matrix(name).scales.float().flatten().numpy())
        self._offset_scales = cache(lambda name: _offsets(packed.matrix(name)).scales.flatten().numpy())

    def vector(self, g: Graph, name: str) -> Value:
        """A norm's weight, float32 [D]."""
        return g.stored(name, self.packed.shape(name), "float32", lambda: self.packed.vector(name).numpy())

    def matrix(self, g: Graph, name: str) -> Value:
        """[N, K] of int4 with float16 scales a block of columns, or of int8 with a scale a row. InputError for other forms."""
        rows, width = self.packed.shape(name)
        bits, group, *_ = self.packed.matrix_form(name)
        if bits == 8:
            stored = EMBEDDING if name == HEAD and self.one_table else name
            return self._int8(g, stored, (rows, width), self._row_scales(name), lambda: self._tensor(name).codes.numpy())
        if group % 32 or width % group:
            raise InputError(f"{name} has a scale for {group} columns; LiteRT takes multiples of 32 that divide its {width}")
        scales = g.stored(f"{name}.scales", (rows, width // group), "float16", lambda: _half(self._tensor(name)))
        details = schema.BlockwiseQuantizationT(scales=scales.index, zeroPoints=-1, blockSize=group)
        kind = schema.QuantizationDetails.BlockwiseQuantization
        quantization = schema.QuantizationParametersT(detailsType=kind, details=details, quantizedDimension=0)
        return g.stored(name, (rows, width), "int4", lambda: int4_bytes(self._tensor(name)), quantization)

    def _int8(self, g: Graph, name: str, shape: tuple[int, int], scales: np.ndarray, codes: Callable[[], np.ndarray]) -> Value:
        """[N, K] with a scale a row."""
        zeros = np.zeros(len(scales), np.int64)
        quantization = schema.QuantizationParametersT(scale=scales, zeroPoint=zeros, quantizedDimension=0)
        return g.stored(name, shape, "int8", codes, quantization)

    def linear(self, g: Graph, x: Value, name: str) -> Value:
        """x [T, K] -> [T, N]."""
        if self.packed.has_bias(name):
            raise InputError(f"{name} has a bias: recipe {self.packed.recipe.name} takes phi3 layers, which have none")
        y, form = layers.linear(g, x, self.matrix(g, name)), self.packed.matrix_form(name)
        if not form.offsets:
            return y
        width, groups = x.shape[1], x.shape[1] // form.group
        summing = self._int8(
            g,
            f"ones {groups} {width}",
            (groups, width),
            np.ones(groups, np.float32),
            lambda: group_ones(width, form.group).numpy(),
        )
        shape, scales = (y.shape[1], groups), self._offset_scales(name)
        offsets = self._int8(g, f"{name}.offsets", shape, scales, lambda: _offsets(self._tensor(name)).codes.numpy())
        return layers.binary(g, "ADD", y, layers.linear(g, layers.linear(g, x, summing), offsets))

    @cached_property
    def one_table(self) -> bool:
        """Whether the head's 8-bit table is the embedding's: tied, and rounded alike."""
        bits = {self.packed.matrix_form(name).bits for name in (EMBEDDING, HEAD)}
        if not self.packed.config.tie_word_embeddings or bits != {8}:
            return False
        head, table = self.packed.matrix(HEAD), self.packed.matrix(EMBEDDING)
        return torch.equal(head.codes, table.codes) and torch.equal(head.scales, table.scales)


def int4_bytes(packed: Packed) -> np.ndarray:
    """Two's complement, even column in the low nibble: ours are the codes plus 8."""
    return packed.codes.numpy() ^ np.uint8(0x88)


def _offsets(packed: Packed) -> Packed:
    assert packed.offsets is not None, packed.form
    return packed.offsets


def _half(packed: Packed) -> np.ndarray:
    return packed.scales.to(torch.float16).numpy()


def build(weights: Weights, name: str, length: int, context: int, rows: int = DYNAMIC, with_logits: bool = True) -> Graph:
    """The signature `name` of `length` tokens over a cache of `rows` for positions before `context`."""
    g, config = Graph(weights.program, name), weights.packed.config
    tokens = layers.reshape(g, g.input("tokens", (1, length), "int32"), length)
    given = g.input("input_pos", (length,), "int32")
    kv, width, count = config.num_key_value_heads, config.head_dim, config.num_hidden_layers
    keys = [g.input(f"kv_cache_k_{layer}", (1, kv, rows, width)) for layer in range(count)]
    values = [g.input(f"kv_cache_v_{layer}", (1, kv, width, rows)) for layer in range(count)]
    place = _place(g, config, given, context, keys[0])
    x = g.apply("EMBEDDING_LOOKUP", [tokens, weights.matrix(g, EMBEDDING)], (length, config.hidden_size), dtype="float32")
    for layer in range(count):
        x = _layer(g, weights, config, layer, x, place, keys[layer], values[layer])
    if with_logits:
        x = layers.rms_norm(g, x, weights.vector(g, config.tensor(FINAL_NORM).name), config.rms_norm_eps)
        logits = weights.linear(g, x, HEAD)
        g.output("logits", layers.reshape(g, logits, 1, length, config.vocab_size))
    return g


@dataclass(frozen=True)
class _Place:
    """Where the tokens stand, the same for all layers."""

    key_start: Value  # int32 [4]: first row of the keys' cache to write
    value_start: Value
    cos: Value  # [T, 1, D]
    sin: Value
    half: int  # of the turned dimensions
    mask: Value  # [T, rows]


def _place(g: Graph, config: DecoderConfig, given: Value, context: int, keys: Value) -> _Place:
    marked = layers.at_least(g, given, LONG_REGIME)
    positions = layers.binary(g, "SUB", given, layers.binary(g, "MUL", marked, LONG_REGIME))
    of_table = positions
    if config.original_context is not None:
        axis = g.constant(np.array([0], np.int32))
        last = g.apply("REDUCE_MAX", [given, axis], (1,), schema.ReducerOptionsT(keepDims=True))
        long = layers.at_least(g, last, config.original_context)
        of_table = layers.binary(g, "ADD", positions, layers.binary(g, "MUL", long, short_rows(config, context)))
    length, half = given.shape[0], config.rotary_dim // 2
    tables = zip(("rope.cos", "rope.sin"), rope_tables(config, context), strict=True)
    cos, sin = (
        g.apply("GATHER", [_table(g, name, table), of_table], (length, half), schema.GatherOptionsT()) for name, table in tables
    )
    rest = (length, config.head_dim - 2 * half)
    padding = [[g.constant(np.full(rest, value, np.float32))] if rest[1] else [] for value in (1, 0)]
    cos = layers.concat(g, [cos, cos, *padding[0]], 1)
    sin = layers.concat(g, [layers.binary(g, "MUL", sin, -1.0), sin, *padding[1]], 1)
    first, zero = layers.slice_axis(g, positions, 0, 0, 1), g.constant(np.zeros(1, np.int32))
    window = config.sliding_window if (config.sliding_window or context) < context else None
    queries = layers.reshape(g, layers.cast(g, positions, "float32"), length, 1)
    return _Place(
        layers.concat(g, [zero, zero, first, zero], 0),
        layers.concat(g, [zero, zero, zero, first], 0),
        layers.reshape(g, cos, length, 1, config.head_dim),
        layers.reshape(g, sin, length, 1, config.head_dim),
        half,
        layers.causal_mask(g, queries, layers.row_numbers(g, keys), window),
    )


def _table(g: Graph, name: str, table: torch.Tensor) -> Value:
    return g.stored(name, tuple(table.shape), "float32", lambda: table.numpy())


def _layer(
    g: Graph, weights: Weights, config: DecoderConfig, layer: int, x: Value, place: _Place, keys: Value, values: Value
) -> Value:
    length, heads, kv, width = x.shape[0], config.num_attention_heads, config.num_key_value_heads, config.head_dim
    normed = layers.rms_norm(g, x, weights.vector(g, config.tensor(ATTENTION_NORM, layer).name), config.rms_norm_eps)
    qkv = weights.linear(g, normed, config.tensor(QKV, layer).name)
    turned = layers.reshape(g, layers.slice_axis(g, qkv, 1, 0, (heads + kv) * width), length, heads + kv, width)
    turned = layers.transpose(g, layers.rotate(g, turned, place.cos, place.sin, place.half), 1, 0, 2)  # [H + Hkv, T, D]
    q, k = layers.slice_axis(g, turned, 0, 0, heads), layers.slice_axis(g, turned, 0, heads, kv)
    v = layers.reshape(g, layers.slice_axis(g, qkv, 1, (heads + kv) * width, kv * width), length, kv, width)
    v = layers.transpose(g, v, 1, 2, 0)  # [Hkv, D, T]
    update = schema.DynamicUpdateSliceOptionsT()
    keys = g.apply(
        "DYNAMIC_UPDATE_SLICE", [keys, layers.reshape(g, k, 1, kv, length, width), place.key_start], keys.shape, update
    )
    values = g.apply(
        "DYNAMIC_UPDATE_SLICE", [values, layers.reshape(g, v, 1, kv, width, length), place.value_start], values.shape, update
    )
    g.output(f"kv_cache_k_{layer}", keys)
    g.output(f"kv_cache_v_{layer}", values)
    q = layers.binary(g, "MUL", layers.reshape(g, q, 1, kv, heads // kv * length, width), config.attention_scale)
    attended = _attend(g, q, keys, values, place.mask)
    attended = layers.transpose(g, layers.reshape(g, attended, heads, length, width), 1, 0, 2)
    attended = layers.reshape(g, attended, length, heads * width)
    x = layers.binary(g, "ADD", x, weights.linear(g, attended, config.tensor(O, layer).name))
    normed = layers.rms_norm(g, x, weights.vector(g, config.tensor(MLP_NORM, layer).name), config.rms_norm_eps)
    inner = layers.swiglu(g, weights.linear(g, normed, config.tensor(GATE_UP, layer).name))
    return layers.binary(g, "ADD", x, weights.linear(g, inner, config.tensor(DOWN, layer).name))


def _attend(g: Graph, q: Value, keys: Value, values: Value, mask: Value) -> Value:
    """Scaled q [1, Hkv, G T, D] over keys [1, Hkv, rows, D] and values [1, Hkv, D, rows] -> [1, Hkv, G T, D]."""
    _, kv, count, _ = q.shape
    length, rows = mask.shape
    scores = layers.reshape(g, layers.matmul(g, q, keys), kv, count // length, length, rows)
    weights = layers.softmax(g, layers.binary(g, "ADD", scores, mask))
    return layers.matmul(g, layers.reshape(g, weights, 1, kv, count, rows), values)
