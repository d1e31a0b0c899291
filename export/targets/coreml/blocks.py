"""Pieces of a decoder in MIL, float16: what every Core ML recipe is put together from.

They are plain functions over Vars, called while a Function is being built. Attention is decomposed into matmul and softmax:
the fused operator is inexact on iOS 26 and knows neither scales nor grouped heads.
"""

from __future__ import annotations

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var, types

HIDDEN = -4e4  # added to a score that must not count; -inf would make NaN of a row's maximum


def like(x: Var, value: float) -> np.generic:
    """A number in the type of x."""
    return types.nptype_from_builtin(x.dtype)(value)


def rms_norm(x: Var, weight: Var, eps: float, axis: int = -1) -> Var:
    """x / rms(x) * weight over `axis`, right in float16 at every magnitude.

    x is divided by s = max(|x|, 1) first, so that squares cannot overflow, and eps by s**2 with it: s cancels out.
    """
    y, r = _scaled(x, axis)
    return mb.mul(x=_over_rms(y, r, eps, axis), y=weight)


def layer_norm(x: Var, weight: Var, bias: Var, eps: float, axis: int = -1) -> Var:
    """LayerNorm over `axis`, with the same care."""
    y, r = _scaled(x, axis)
    y = mb.sub(x=y, y=mb.reduce_mean(x=y, axes=[axis], keep_dims=True))
    return mb.add(x=mb.mul(x=_over_rms(y, r, eps, axis), y=weight), y=bias)


def _scaled(x: Var, axis: int) -> tuple[Var, Var]:
    """x / s and 1 / s."""
    s = mb.maximum(x=mb.reduce_max(x=mb.abs(x=x), axes=[axis], keep_dims=True), y=like(x, 1.0))
    return mb.real_div(x=x, y=s), mb.real_div(x=like(x, 1.0), y=s)


def _over_rms(y: Var, r: Var, eps: float, axis: int) -> Var:
    mean = mb.reduce_mean(x=mb.square(x=y), axes=[axis], keep_dims=True)
    variance = mb.add(x=mean, y=mb.mul(x=mb.square(x=r), y=like(r, eps)))
    return mb.real_div(x=y, y=mb.sqrt(x=variance))


def rope(x: Var, cos: Var, sin: Var) -> Var:
    """Rotate the first 2R dimensions of x [1, H, T, D] by cos and sin [T, R] (NeoX halves); pass the others through."""
    half, width = cos.shape[-1], x.shape[-1]
    parts = mb.split(x=x, split_sizes=[half, half] + [width - 2 * half] * (width > 2 * half), axis=-1)
    first, second, *rest = parts
    turned = [
        mb.sub(x=mb.mul(x=first, y=cos), y=mb.mul(x=second, y=sin)),
        mb.add(x=mb.mul(x=second, y=cos), y=mb.mul(x=first, y=sin)),
    ]
    return mb.concat(values=[*turned, *rest], axis=-1)


def rope_rows(table_cos: Var, table_sin: Var, positions: Var, long: Var | None, short_rows: int) -> tuple[Var, Var]:
    """cos and sin [T, R] of positions int32 [T] from tables [short rows | long rows] (models/rope.py).

    long int32 [1]: 1 takes the long rows; None: the model has no switch.
    """
    if long is not None:
        positions = mb.add(x=positions, y=mb.mul(x=long, y=np.int32(short_rows)))
    return tuple(mb.gather(x=t, indices=positions, axis=0, validate_indices=False) for t in (table_cos, table_sin))


def causal_mask(queries: Var, keys: Var, window: int | None, groups: int, dtype: str = "fp16") -> Var:
    """[1, 1, groups * T, E], 0 where the key may be seen: queries int32 [T] and keys int32 [E] are positions."""
    behind = mb.sub(x=mb.expand_dims(x=queries, axes=[1]), y=mb.expand_dims(x=keys, axes=[0]))
    hidden = mb.less(x=behind, y=np.int32(0))
    if window is not None:
        hidden = mb.logical_or(x=hidden, y=mb.greater_equal(x=behind, y=np.int32(window)))
    mask = as_mask(hidden, dtype)
    return mask if groups == 1 or queries.shape[0] == 1 else mb.tile(x=mask, reps=[1, 1, groups, 1])


def as_mask(hidden: Var, dtype: str) -> Var:
    """bool [T, E] -> [1, 1, T, E] to be added to scores."""
    hidden = mb.cast(x=hidden, dtype=dtype)
    return mb.expand_dims(x=mb.mul(x=hidden, y=like(hidden, HIDDEN)), axes=[0, 1])


def grouped(q: Var, kv_heads: int) -> Var:
    """[1, H, T, D] -> [1, Hkv, H / Hkv * T, D]: the query heads that share a KV head, one after the other."""
    _, heads, length, width = q.shape
    return q if heads == kv_heads else mb.reshape(x=q, shape=[1, kv_heads, heads // kv_heads * length, width])


def attend(q: Var, keys: Var, values: Var, mask: Var, scale: float) -> Var:
    """q [1, H, T, D] over keys and values [1, Hkv, E, D] -> [1, T, H * D]; mask as of `causal_mask`."""
    _, heads, length, _ = q.shape
    q = grouped(mb.mul(x=q, y=like(q, scale)), keys.shape[1])
    scores = mb.add(x=mb.matmul(x=q, y=keys, transpose_y=True), y=mask)
    attended = mb.matmul(x=mb.softmax(x=scores, axis=-1), y=values)
    return heads_together(attended, heads, length)


def heads_together(attended: Var, heads: int, length: int) -> Var:
    """[1, Hkv, H / Hkv * T, D] -> [1, T, H * D]."""
    width = attended.shape[-1]
    attended = mb.reshape(x=attended, shape=[1, heads, length, width])
    return mb.reshape(x=mb.transpose(x=attended, perm=[0, 2, 1, 3]), shape=[1, length, heads * width])


def span(position: Var, length: int, shape: tuple[int, ...]) -> tuple[Var, Var]:
    """begin and end, int32 [4], of `length` rows of a cache [1, Hkv, R, D] from `position`, int32 [1]."""
    _, heads, _, width = shape
    before, zero = np.zeros(2, np.int32), np.zeros(1, np.int32)
    begin = mb.concat(values=[before, position, zero], axis=0)
    past = mb.add(x=position, y=np.int32(length))
    end = mb.concat(values=[np.array([1, heads], np.int32), past, np.array([width], np.int32)], axis=0)
    return begin, end


def updated_rows(cache: Var, rows: Var, begin: Var, end: Var, **named: str) -> Var:
    """The cache [1, Hkv, R, D] with rows [1, Hkv, T, D] between begin and end."""
    mask = [True, True, False, True]  # these dimensions are taken whole
    return mb.slice_update(x=cache, update=rows, begin=begin, end=end, begin_mask=mask, end_mask=mask, **named)


def write_rows(cache: Var, rows: Var, begin: Var, end: Var) -> Var:
    """The same for a cache in a state, which keeps the result."""
    return mb.coreml_update_state(state=cache, value=updated_rows(mb.read_state(input=cache), rows, begin, end))


def first_rows(cache: Var, count: Var) -> Var:
    """Rows [0, count) of [1, Hkv, R, D]; count int32 [1], a shape."""
    _, heads, _, width = cache.shape
    end = mb.concat(values=[np.array([1, heads], np.int32), count, np.array([width], np.int32)], axis=0)
    return mb.slice_by_index(x=cache, begin=[0, 0, 0, 0], end=end, end_mask=[True, True, False, True])
