"""Our operators `phi3mobile::*`: definition, eager reference and fake implementation. Kernels: phi3mobile/core.

`blocksparse_attention` and `blocksparse_attention_int8` take the output of the fused projection, rotate queries and
keys, write the new keys and values into a KV cache, in place, and attend over it.

Shapes, for all: qkv float32 [T, (H + 2 * Hkv) * D], columns [all Q | all K | all V], not yet rotated; cos and sin
float32 [T, R], the rows of these T positions; caches [1, Hkv, S, D], float32 or int8; scales float32 [1, Hkv, S];
input_pos int64 [1], the position of the first of the T tokens; result float32 [T, H * D].
heads = H is a multiple of Hkv (query head h reads KV head h // (H // Hkv)), D a multiple of 16 up to 256.
1 <= R <= D / 2: the first 2 R dimensions of a head are rotated as in `rope.apply_rope`, the others pass through.
scale multiplies q @ k. int8: symmetric per token and head, scale = max|x| / 127, rounded half to even.

block = 0, dense: causal. window > 0: a query at position p sees positions > p - window.
block > 0, sparse: causal, and of blocks of `block` tokens only the `local_blocks` that end with the query's own, and those
earlier ones with (key_block + head * head_step + 1) % stride == 0; see models/blocksparse.py. head_step 0: all heads
alike (homo); phi-3-small: max(1, stride // heads). window must be 0.

`blocksparse_attention_int4`, dense only, D a multiple of 32, is models/coarse_rows.py's arithmetic: every row of 4 bits, and
the last 256 as int8, of which a query reads the last 128. Caches uint8 [1, Hkv, S, D / 2], scales bfloat16 [1, Hkv, D / 32, S],
ring int8 [1, Hkv, 256, D] with scales float32 [1, Hkv, 256]; mark int64 [2], in place, zeros at first: the first position
whose int8 row is there, and the end of what was written last. Further back a query reads 4 bits where int8 is gone.

`blocksparse_attention_evicting` and `.._evicting_int8`, sparse only: the same result from caches that keep only what is
still to be read; S, ring and how far positions may go back come from `blocksparse.evicting_cache`. mark int64 [1], in
place, zeros at first: the end of the farthest position written since position 0 was. A position too far back raises
IndexError (in the kernel: InvalidArgument with the same line): then start again from position 0, which always works.
"""

from __future__ import annotations

import torch

from phi3mobile.models.blocksparse import EvictingCache, Pattern
from phi3mobile.models.coarse_rows import attend_mixed, coarse_values, quantize_coarse, quantize_rows, rounded_queries, turn
from phi3mobile.models.rope import apply_rope

_library = torch.library.Library("phi3mobile", "DEF")

_ROWS = "Tensor qkv, Tensor cos, Tensor sin, Tensor(a!) k_cache, Tensor(b!) v_cache, "
_INT8 = "Tensor(c!) k_scale, Tensor(d!) v_scale, "
_RING = "Tensor(e!) k_ring, Tensor(f!) v_ring, Tensor(g!) k_ring_scale, Tensor(h!) v_ring_scale, Tensor(i!) mark, "
_MARK = "Tensor(e!) mark, "
_DENSE = "Tensor input_pos, int heads, int window, float scale, "
_REST = _DENSE + "int block=0, int local_blocks=0, int stride=0, int head_step=0"
_EVICTING = "Tensor input_pos, int heads, float scale, int block, int local_blocks, int stride, int head_step, int ring"
_SCHEMAS = {
    "blocksparse_attention": _ROWS + _REST,
    "blocksparse_attention_int8": _ROWS + _INT8 + _REST,
    "blocksparse_attention_int4": _ROWS + _INT8 + _RING + "Tensor input_pos, int heads, int window, float scale",
    "blocksparse_attention_evicting": _ROWS + _MARK + _EVICTING,
    "blocksparse_attention_evicting_int8": _ROWS + _INT8 + _MARK + _EVICTING,
}


def _attend(q, keys, values, start: int, window: int, scale: float, pattern: Pattern | None) -> torch.Tensor:
    """Attention of q [T, H, D] at positions start.. over keys and values [Hkv, start + T, D] -> [T, H * D]."""
    count, heads, width = q.shape
    kv_heads, depth, _ = keys.shape
    grouped = q.transpose(0, 1).reshape(kv_heads, (heads // kv_heads) * count, width)
    scores = (grouped @ keys.transpose(1, 2) * scale).view(heads, count, depth)
    query, key = (start + torch.arange(count))[:, None], torch.arange(depth)
    hidden = key > query
    if window > 0:
        hidden |= query - key >= window
    if pattern is not None:
        query_block, key_block = query // pattern.block, key // pattern.block
        shift = torch.arange(heads)[:, None, None] * pattern.head_step
        remote = (query_block - key_block >= pattern.local_blocks) & ((key_block + shift + 1) % pattern.stride != 0)
        hidden = hidden | remote
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).view(kv_heads, -1, depth)
    return (weights @ values).view(heads, count, width).transpose(0, 1).reshape(count, heads * width)


def _rows(qkv, cos, sin, k_cache, input_pos, heads: int, capacity: int):
    """q [T, H, D] and k [Hkv, T, D], rotated, v [Hkv, T, D], and their first position, once all is known to fit.

    k_cache: [1, Hkv, ..., D].
    """
    kv_heads, _, width = k_cache.shape[1:]
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


def _pattern(heads, kv_heads, window, block, local_blocks, stride, head_step) -> Pattern | None:
    if block == 0:
        return None
    if window != 0:
        raise ValueError(f"blocksparse attention: window {window} was given; it must be 0")
    return Pattern(heads, kv_heads, block, local_blocks, stride, head_step)


def blocksparse_attention(
    qkv,
    cos,
    sin,
    k_cache,
    v_cache,
    input_pos,
    heads: int,
    window: int,
    scale: float,
    block: int = 0,
    local_blocks: int = 0,
    stride: int = 0,
    head_step: int = 0,
) -> torch.Tensor:
    """Eager reference, float32 cache. Shapes: see the module."""
    q, k, v, start = _rows(qkv, cos, sin, k_cache, input_pos, heads, k_cache.shape[2])
    pattern = _pattern(heads, len(k), window, block, local_blocks, stride, head_step)
    end = start + len(q)
    k_cache[0, :, start:end], v_cache[0, :, start:end] = k, v
    return _attend(q, k_cache[0, :, :end], v_cache[0, :, :end], start, window, scale, pattern)


def blocksparse_attention_int8(
    qkv,
    cos,
    sin,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    input_pos,
    heads: int,
    window: int,
    scale: float,
    block: int = 0,
    local_blocks: int = 0,
    stride: int = 0,
    head_step: int = 0,
) -> torch.Tensor:
    """Eager reference, int8 cache. Shapes: see the module."""
    q, k, v, start = _rows(qkv, cos, sin, k_cache, input_pos, heads, k_cache.shape[2])
    pattern = _pattern(heads, len(k), window, block, local_blocks, stride, head_step)
    end = start + len(q)
    for rows, cache, scales in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        cache[0, :, start:end], scales[0, :, start:end] = quantize_rows(rows)
    keys = k_cache[0, :, :end].float() * k_scale[0, :, :end, None]
    values = v_cache[0, :, :end].float() * v_scale[0, :, :end, None]
    return _attend(q, keys, values, start, window, scale, pattern)


def blocksparse_attention_int4(
    qkv,
    cos,
    sin,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    k_ring,
    v_ring,
    k_ring_scale,
    v_ring_scale,
    mark,
    input_pos,
    heads: int,
    window: int,
    scale: float,
) -> torch.Tensor:
    """Eager reference, 4-bit cache with a ring of int8. Shapes: see the module."""
    q, k, v, start = _rows(qkv, cos, sin, k_ring, input_pos, heads, k_cache.shape[2])
    end, ring, results = start + len(q), k_ring.shape[2], []
    q, k, v = rounded_queries(q), turn(k), turn(v)
    caches = ((k, k_cache, k_scale, k_ring, k_ring_scale), (v, v_cache, v_scale, v_ring, v_ring_scale))
    while start < end:
        last = min(end, start + ring // 2)
        ring_from = min(max(0, int(mark[0]), int(mark[1]) - ring), start)
        piece, at = slice(len(k[0]) - (end - start), len(k[0]) - (end - last)), torch.arange(start, last) % ring
        for rows, cache, scales, recent, recent_scales in caches:
            cache[0, :, start:last], own = quantize_coarse(rows[:, piece])
            scales[0, :, :, start:last] = own.transpose(1, 2)
            recent[0, :, at], recent_scales[0, :, at] = quantize_rows(rows[:, piece])
        mark[0], mark[1] = ring_from, last
        coarse = [
            coarse_values(cache[0, :, :last], scales[0, :, :, :last].transpose(1, 2)) for _, cache, scales, _, _ in caches
        ]
        at = torch.arange(last) % ring
        fine = [recent[0, :, at].float() * scales[0, :, at, None] for *_, recent, scales in caches]
        results.append(turn(attend_mixed(q[piece], coarse, fine, start, window, scale, ring_from)).flatten(1))
        start = last
    return torch.cat(results) if results else q.reshape(0, heads * k_ring.shape[3])


def _evicting(qkv, cos, sin, k_cache, mark, input_pos, heads, scale, pattern: Pattern, ring: int, store, read):
    """Pieces of as many blocks as the ring holds beside their local window: written, then attended."""
    cache = _evicting_cache(k_cache.shape[2], pattern, ring)
    q, k, v, start = _rows(qkv, cos, sin, k_cache, input_pos, heads, cache.positions)
    farthest = int(mark[0]) if start else 0
    oldest = max(0, start // pattern.block - pattern.local_blocks + 1)
    if (farthest - 1) // pattern.block - oldest >= cache.reach:
        raise IndexError(
            f"attention: position {start} is too far behind {farthest} for this evicted KV cache, which lets positions "
            f"go back by {cache.back}: start again from position 0"
        )
    end, results = start + len(q), []
    slots = torch.tensor([[cache.slot(g, j) for j in range(-(-end // pattern.block))] for g in range(len(k))])
    at = (slots[..., None] * pattern.block + torch.arange(pattern.block)).flatten(1)  # row of the cache by position
    head = torch.arange(len(k))[:, None]
    first = start
    while first < end:
        oldest = max(0, first // pattern.block - pattern.local_blocks + 1)
        last = min(end, (oldest + cache.reach) * pattern.block)
        piece = slice(first - start, last - start)
        store(head, at[:, first:last], k[:, piece], v[:, piece])
        keys, values = read(head, at[:, :last])
        results.append(_attend(q[piece], keys, values, first, 0, scale, pattern))
        first = last
    mark[0] = max(farthest, end)
    return torch.cat(results) if results else q.reshape(0, heads * k_cache.shape[3])


def _evicting_cache(rows: int, pattern: Pattern, ring: int) -> EvictingCache:
    kept_blocks = rows // pattern.block - ring
    cache = EvictingCache(pattern, ring, kept_blocks // max(1, pattern.kept))
    passes = 0 < pattern.kept < pattern.stride and ring > 0 and cache.periods > 0
    if not passes or cache.rows != rows or cache.reach < pattern.local_blocks:
        raise ValueError(
            f"attention: a cache of {rows} rows with a ring of {ring} blocks does not fit {pattern}: "
            "take both from blocksparse.evicting_cache"
        )
    return cache


def blocksparse_attention_evicting(
    qkv,
    cos,
    sin,
    k_cache,
    v_cache,
    mark,
    input_pos,
    heads: int,
    scale: float,
    block: int,
    local_blocks: int,
    stride: int,
    head_step: int,
    ring: int,
) -> torch.Tensor:
    """Eager reference, evicting float32 cache. Shapes: see the module."""

    def store(head, at, k, v):
        k_cache[0, head, at], v_cache[0, head, at] = k, v

    def read(head, at):
        return k_cache[0, head, at], v_cache[0, head, at]

    pattern = Pattern(heads, k_cache.shape[1], block, local_blocks, stride, head_step)
    return _evicting(qkv, cos, sin, k_cache, mark, input_pos, heads, scale, pattern, ring, store, read)


def blocksparse_attention_evicting_int8(
    qkv,
    cos,
    sin,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    mark,
    input_pos,
    heads: int,
    scale: float,
    block: int,
    local_blocks: int,
    stride: int,
    head_step: int,
    ring: int,
) -> torch.Tensor:
    """Eager reference, evicting int8 cache. Shapes: see the module."""

    def store(head, at, k, v):
        k_cache[0, head, at], k_scale[0, head, at] = quantize_rows(k)
        v_cache[0, head, at], v_scale[0, head, at] = quantize_rows(v)

    def read(head, at):
        keys = k_cache[0, head, at].float() * k_scale[0, head, at][..., None]
        return keys, v_cache[0, head, at].float() * v_scale[0, head, at][..., None]

    pattern = Pattern(heads, k_cache.shape[1], block, local_blocks, stride, head_step)
    return _evicting(qkv, cos, sin, k_cache, mark, input_pos, heads, scale, pattern, ring, store, read)


def _fake_int4(qkv, cos, sin, k_cache, v_cache, k_scale, v_scale, k_ring, *_args, **_kwargs) -> torch.Tensor:
    return _fake(qkv, cos, sin, k_ring)


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
    torch.library.register_fake(f"phi3mobile::{name}", _fake_int4 if name.endswith("_int4") else _fake, lib=_library)


_register(blocksparse_attention)
_register(blocksparse_attention_int8)
_register(blocksparse_attention_int4)
_register(blocksparse_attention_evicting)
_register(blocksparse_attention_evicting_int8)
