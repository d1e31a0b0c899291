"""Our operators `phi3mobile::*`: definition, eager reference and fake implementation. Kernels: export/kernels.

`blocksparse_attention` and `blocksparse_attention_int8` take the output of the fused projection, rotate queries and
keys, write the new keys and values into a KV cache, in place, and attend over it. Dense causal attention (optionally
windowed) is the form with `block = 0`, the only one so far.

Shapes, for both: qkv float32 [T, (H + 2 * Hkv) * D], columns [all Q | all K | all V], not yet rotated; cos and sin
float32 [T, R], the rows of these T positions; caches [1, Hkv, S, D], float32 or int8; scales float32 [1, Hkv, S];
input_pos int64 [1], the position of the first of the T tokens; result float32 [T, H * D].
heads = H is a multiple of Hkv (query head h reads KV head h // (H // Hkv)), D a multiple of 16 up to 256.
1 <= R <= D / 2: the first 2 R dimensions of a head are rotated as in `rope.apply_rope`, the others pass through.
window > 0: a query at position p sees positions > p - window. scale multiplies q @ k.
int8: symmetric per token and head, scale = max|x| / 127, rounded half to even.
"""

from __future__ import annotations

import torch

from phi3mobile.models.rope import apply_rope

_library = torch.library.Library("phi3mobile", "DEF")

# block, local_blocks and stride are room for the blocksparse form: a .pte that is out there can't get new arguments.
_ROWS = "Tensor qkv, Tensor cos, Tensor sin, Tensor(a!) k_cache, Tensor(b!) v_cache, "
_REST = "Tensor input_pos, int heads, int window, float scale, int block=0, int local_blocks=0, int stride=0"
_SCHEMAS = {
    "blocksparse_attention": _ROWS + _REST,
    "blocksparse_attention_int8": _ROWS + "Tensor(c!) k_scale, Tensor(d!) v_scale, " + _REST,
}


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 per row: float32 [..., D] -> int8 [..., D] and scales float32 [...]; a zero row has scale 0."""
    most = x.abs().amax(-1)
    limit = torch.full_like(most, 127.0)  # as a plain float it would become a multiplication by 1 / most
    inverse = torch.where(most > 0, limit / most, 0.0)
    return torch.round(x * inverse[..., None]).clamp(-127, 127).to(torch.int8), most / 127.0


def _attend(q, keys, values, start: int, window: int, scale: float) -> torch.Tensor:
    """Causal attention of q [T, H, D] at positions start.. over keys and values [Hkv, start + T, D] -> [T, H * D]."""
    count, heads, width = q.shape
    kv_heads, depth, _ = keys.shape
    grouped = q.transpose(0, 1).reshape(kv_heads, (heads // kv_heads) * count, width)
    scores = (grouped @ keys.transpose(1, 2) * scale).view(heads, count, depth)
    behind = (start + torch.arange(count))[:, None] - torch.arange(depth)  # how far the key lies before the query
    hidden = (behind < 0) | (behind >= window) if window > 0 else behind < 0
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).view(kv_heads, -1, depth)
    return (weights @ values).view(heads, count, width).transpose(0, 1).reshape(count, heads * width)


def _rows(qkv, cos, sin, k_cache, input_pos, heads: int, block: int):
    """q [T, H, D] and k [Hkv, T, D], rotated, v [Hkv, T, D], and their first position, once all is known to fit."""
    if block:
        raise NotImplementedError("blocksparse attention: block must be 0 (dense) in this version")
    kv_heads, capacity, width = k_cache.shape[1:]
    count, half = cos.shape
    if heads < 1 or heads % kv_heads or width % 16 or width > 256 or not 1 <= half <= width // 2:
        raise ValueError(
            f"attention: {heads} heads of {width} over {kv_heads} KV heads, rotated by {half} angles, are not supported: "
            "heads must be a multiple of KV heads, their width one of 16 up to 256, angles 1..width / 2"
        )
    columns = (heads + 2 * kv_heads) * width
    if qkv.shape != (count, columns) or sin.shape != cos.shape:
        given = f"qkv {list(qkv.shape)} with cos {list(cos.shape)} and sin {list(sin.shape)}"
        raise ValueError(f"attention: {given} were given: [T, {columns}] and [T, {half}] are expected")
    start = int(input_pos[0])
    if start < 0 or start + count > capacity:
        raise IndexError(f"positions {start}..{start + count - 1} are outside the KV cache of {capacity}")
    q, k, v = qkv.view(count, -1, width).split([heads, kv_heads, kv_heads], dim=1)
    q, k = apply_rope(q[None], cos, sin)[0], apply_rope(k[None], cos, sin)[0]
    return q, k.transpose(0, 1), v.transpose(0, 1), start


def blocksparse_attention(
    qkv, cos, sin, k_cache, v_cache, input_pos, heads: int, window: int, scale: float,
    block: int = 0, local_blocks: int = 0, stride: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Eager reference, float32 cache. Shapes: see the module."""
    q, k, v, start = _rows(qkv, cos, sin, k_cache, input_pos, heads, block)
    end = start + len(q)
    k_cache[0, :, start:end], v_cache[0, :, start:end] = k, v
    return _attend(q, k_cache[0, :, :end], v_cache[0, :, :end], start, window, scale)


def blocksparse_attention_int8(
    qkv, cos, sin, k_cache, v_cache, k_scale, v_scale, input_pos, heads: int, window: int, scale: float,
    block: int = 0, local_blocks: int = 0, stride: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Eager reference, int8 cache. Shapes: see the module."""
    q, k, v, start = _rows(qkv, cos, sin, k_cache, input_pos, heads, block)
    end = start + len(q)
    for rows, cache, scales in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        cache[0, :, start:end], scales[0, :, start:end] = quantize_rows(rows)
    keys = k_cache[0, :, :end].float() * k_scale[0, :, :end, None]
    values = v_cache[0, :, :end].float() * v_scale[0, :, :end, None]
    return _attend(q, keys, values, start, window, scale)


def _fake(qkv, cos, sin, k_cache, *_args, **_kwargs) -> torch.Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] - 2 * k_cache.shape[1] * k_cache.shape[3])


def _register(eager) -> None:
    name = eager.__name__
    _library.define(f"{name}({_SCHEMAS[name]}) -> Tensor")
    _library.define(f"{name}.out({_SCHEMAS[name]}, *, Tensor(z!) out) -> Tensor(z!)")

    def into(*args, out, **kwargs):
        return out.copy_(eager(*args, **kwargs))

    _library.impl(name, eager, "CompositeExplicitAutograd")
    _library.impl(f"{name}.out", into, "CompositeExplicitAutograd")
    torch.library.register_fake(f"phi3mobile::{name}", _fake, lib=_library)


_register(blocksparse_attention)
_register(blocksparse_attention_int8)
