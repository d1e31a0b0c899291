"""Pieces of a decoder in LiteRT operators, float32: plain functions over Values of a Graph.

All but table lookups, cache updates and whole numbers run in XNNPACK. A linear with float32 input and int4 or int8 weights
quantizes its input dynamically, one int8 scale and zero point a token: what phi3mobile.models.quantized computes.
"""

from __future__ import annotations

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from phi3mobile.export.targets.litert.program import DYNAMIC, Graph, Value

HIDDEN = 1e9  # a score is lowered by so much for each position that its key lies out of sight


def binary(g: Graph, operator: str, a: Value, b: Value | float) -> Value:
    """ADD, SUB, MUL, MINIMUM with broadcasting."""
    if not isinstance(b, Value):
        b = g.constant(np.array(b, np.dtype(a.dtype)))
    options = {
        "ADD": schema.AddOptionsT,
        "SUB": schema.SubOptionsT,
        "MUL": schema.MulOptionsT,
        "MINIMUM": schema.MaximumMinimumOptionsT,
    }[operator]()
    return g.apply(operator, [a, b], _broadcast(a.shape, b.shape), options)


def reshape(g: Graph, x: Value, *shape: int) -> Value:
    if x.shape == shape:
        return x
    assert math.prod(shape) == math.prod(x.shape), (x.shape, shape)  # DYNAMIC on both sides, or on none
    return g.apply("RESHAPE", [x, g.constant(np.array(shape, np.int32))], shape, schema.ReshapeOptionsT(list(shape)))


def transpose(g: Graph, x: Value, *order: int) -> Value:
    """Free where only dimensions of 1 move."""
    shape = tuple(x.shape[axis] for axis in order)
    if [axis for axis in order if x.shape[axis] != 1] == [axis for axis, size in enumerate(x.shape) if size != 1]:
        return reshape(g, x, *shape)
    return g.apply("TRANSPOSE", [x, g.constant(np.array(order, np.int32))], shape, schema.TransposeOptionsT())


def slice_axis(g: Graph, x: Value, axis: int, start: int, size: int) -> Value:
    begin, shape = [0] * len(x.shape), list(x.shape)
    begin[axis], shape[axis] = start, size
    corners = [g.constant(np.array(corner, np.int32)) for corner in (begin, shape)]
    return g.apply("SLICE", [x, *corners], tuple(shape), schema.SliceOptionsT())


def concat(g: Graph, parts: list[Value], axis: int) -> Value:
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return g.apply("CONCATENATION", parts, tuple(shape), schema.ConcatenationOptionsT(axis=axis % len(shape)))


def cast(g: Graph, x: Value, dtype: str) -> Value:
    kinds = {"float32": schema.TensorType.FLOAT32, "int32": schema.TensorType.INT32, "bool": schema.TensorType.BOOL}
    return g.apply("CAST", [x], x.shape, schema.CastOptionsT(kinds[x.dtype], kinds[dtype]), dtype)


def at_least(g: Graph, x: Value, bound: int) -> Value:
    """int32: 1 where x >= bound, else 0."""
    bounded = g.constant(np.array(bound, np.int32))
    return cast(g, g.apply("GREATER_EQUAL", [x, bounded], x.shape, schema.GreaterEqualOptionsT(), "bool"), "int32")


def matmul(g: Graph, a: Value, b: Value) -> Value:
    """a [1, H, M, K] times b [1, H, N, K] transposed -> [1, H, M, N]. XNNPACK repacks b in every run, and never a."""
    shape = (*a.shape[:-1], b.shape[-2])
    return g.apply("BATCH_MATMUL", [a, b], shape, schema.BatchMatMulOptionsT(adjY=True))


def linear(g: Graph, x: Value, weight: Value) -> Value:
    """x [T, K] times weight [N, K] transposed -> [T, N]."""
    options = schema.FullyConnectedOptionsT(keepNumDims=True, asymmetricQuantizeInputs=True)
    return g.apply("FULLY_CONNECTED", [x, weight], (x.shape[0], weight.shape[0]), options)


def softmax(g: Graph, x: Value) -> Value:
    return g.apply("SOFTMAX", [x], x.shape, schema.SoftmaxOptionsT(beta=1.0))


def rms_norm(g: Graph, x: Value, weight: Value, eps: float) -> Value:
    """x [T, D] / rms(x) * weight."""
    axis = g.constant(np.array([1], np.int32))
    mean = g.apply("MEAN", [binary(g, "MUL", x, x), axis], (x.shape[0], 1), schema.ReducerOptionsT(keepDims=True))
    shifted = binary(g, "ADD", mean, eps)
    return binary(g, "MUL", binary(g, "MUL", x, g.apply("RSQRT", [shifted], shifted.shape)), weight)


def swiglu(g: Graph, x: Value) -> Value:
    """[T, 2 I] of [gate | up] -> silu(gate) * up [T, I]."""
    half = (x.shape[0], x.shape[1] // 2)
    gate, up = g.split("SPLIT", [g.constant(np.array(1, np.int32)), x], [half, half], schema.SplitOptionsT(2), "float32")
    return binary(g, "MUL", binary(g, "MUL", gate, g.apply("LOGISTIC", [gate], gate.shape)), up)


def rotate(g: Graph, x: Value, cos: Value, sin: Value, half: int) -> Value:
    """x [T, H, D] turned: x * cos + [second | first | rest] * sin, with cos and sin [T, 1, D] signed and padded."""
    width = x.shape[2]
    parts = [slice_axis(g, x, 2, half, half), slice_axis(g, x, 2, 0, half)]
    if width > 2 * half:
        parts.append(slice_axis(g, x, 2, 2 * half, width - 2 * half))
    return binary(g, "ADD", binary(g, "MUL", x, cos), binary(g, "MUL", concat(g, parts, 2), sin))


def row_numbers(g: Graph, keys: Value) -> Value:
    """0, 1, ... for the rows of a cache [1, Hkv, rows, D]: float32 [1, rows].

    Where the runtime tells how many they are, they are counted from the cache itself: operators on shapes give tensors that
    are allocated in every run, and that XNNPACK doesn't take.
    """
    if keys.shape[2] != DYNAMIC:
        return g.constant(np.arange(keys.shape[2], dtype=np.float32)[None])
    ends = [g.constant(np.array(end, np.int32)) for end in ([0, 0, 0, 0], [1, 1, -1, 1])]
    column = g.apply("SLICE", [keys, *ends], (1, 1, keys.shape[2], 1), schema.SliceOptionsT())
    ones = binary(g, "ADD", binary(g, "MUL", reshape(g, column, 1, keys.shape[2]), 0.0), 1.0)
    axis = g.constant(np.array(1, np.int32))
    return g.apply("CUMSUM", [ones, axis], ones.shape, schema.CumsumOptionsT(exclusive=True))


def causal_mask(g: Graph, queries: Value, numbers: Value, window: int | None) -> Value:
    """[T, rows], 0 where the query at a position (float32 [T, 1]) sees the key of a row, else at most -HIDDEN."""
    behind = binary(g, "SUB", queries, numbers)
    mask = binary(g, "MUL", binary(g, "MINIMUM", behind, 0.0), HIDDEN)
    if window is None:
        return mask
    left = binary(g, "ADD", binary(g, "MUL", behind, -1.0), window - 1.0)
    return binary(g, "ADD", mask, binary(g, "MUL", binary(g, "MINIMUM", left, 0.0), HIDDEN))


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of both; DYNAMIC goes with itself and with 1."""
    longest = max(len(a), len(b))
    a, b = (1,) * (longest - len(a)) + a, (1,) * (longest - len(b)) + b
    assert all(x == y or 1 in (x, y) for x, y in zip(a, b, strict=True)), (a, b)
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))
