"""Pieces of a decoder in Core AI: plain functions over values, called while a function is being written.

Normalizing and attending are composite operators, for which devices have kernels; what stands here as their bodies is what
they mean, and what runs where there is no kernel.
"""

from __future__ import annotations

from phi3mobile.export.targets.coreai import door
from phi3mobile.export.targets.coreai.door import Program, Size, Value

HIDDEN = 4e4  # taken off a score that must not count: float16 holds it, and softmax makes 0 of it


def rms_norm(program: Program, x: Value, weight: Value, eps: float) -> Value:
    """x [1, T, K] / rms(x) * weight [K]: in float32 up to the weight."""

    def body(x: Value, weight: Value) -> Value:
        wide = door.cast(x, "float32")
        mean = door.add(door.mean(door.mul(wide, wide)), door.number(eps, "float32"))
        return door.mul(door.cast(door.mul(wide, door.rsqrt(mean)), door.dtype_of(x)), weight)

    key = f"rms_norm_{door.shape_of(x)[-1]}"
    return program.composite(key, "rms_norm", f"axes = -1 : si64, eps = {eps:.9e} : f32", {"input": x, "scale": weight}, body)


def rotate(x: Value, cos: Value, sin: Value) -> Value:
    """x [1, H, T, D] with its first 2R dimensions turned by cos and sin [T, R] (NeoX halves); the others pass."""
    half, width = door.shape_of(cos)[1], door.shape_of(x)[3]
    assert half is not None and width is not None
    first, second, *rest = door.split(x, [half, half] + [width - 2 * half] * (width > 2 * half), 3)
    turned = [door.sub(door.mul(first, cos), door.mul(second, sin)), door.add(door.mul(second, cos), door.mul(first, sin))]
    return door.concat([*turned, *rest], 3)


def attend(program: Program, q: Value, k: Value, v: Value, scale: float, window: int | None) -> Value:
    """q [1, H, T, D] over keys and values [1, Hkv, E, D] -> [1, H, T, D]; q are the last T of the E positions."""

    def body(q: Value, k: Value, v: Value) -> Value:
        mask = causal_mask(door.size(q, 2), door.size(k, 2), window, door.dtype_of(q))
        return _attended(q, k, v, mask, scale)

    about = f"is_causal = true, scale = {scale:.9e} : f32"
    about += f", window_size = {window or 0} : si64"
    key = f"attention_{window or 0}"
    return program.composite(key, "scaled_dot_product_attention", about, {"query": q, "key": k, "value": v}, body)


def _attended(q: Value, k: Value, v: Value, mask: Value, scale: float) -> Value:
    """Grouped heads: H / Hkv query heads read one KV head. mask [T, E], or [1, Hkv, H / Hkv, T, E]."""
    _, heads, _, width = door.shape_of(q)
    kv_heads = door.shape_of(k)[1]
    assert heads is not None and kv_heads is not None
    q = door.reshape(door.mul(q, door.number(scale, door.dtype_of(q))), (1, kv_heads, heads // kv_heads, None, width))
    k, v = (door.reshape(x, (1, kv_heads, 1, None, width)) for x in (k, v))
    scores = door.add(door.matmul(q, door.transpose(k, 0, 1, 2, 4, 3)), mask)
    return door.reshape(door.matmul(door.softmax(scores), v), (1, heads, None, width))


def causal_mask(count: Size, total: Size, window: int | None, dtype: str) -> Value:
    """[T, E], 0 where the last `count` of `total` positions see a key, else -HIDDEN."""
    queries = door.expanded(door.counted(total - count, total), 1)
    behind = door.sub(queries, door.expanded(door.counted(0, total), 0))
    below = _below_zero(behind)
    if window is not None:  # never both
        below = door.add(below, _below_zero(door.sub(door.number(window - 1, "int32"), behind)))
    return door.mul(door.cast(below, dtype), door.number(HIDDEN, dtype))


def _below_zero(x: Value) -> Value:
    """int32: -1 where x < 0, else 0."""
    return door.maximum(door.minimum(x, door.number(0, "int32")), door.number(-1, "int32"))
