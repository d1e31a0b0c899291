"""Block-sparse attention in MIL: reads and multiplies only the blocks that a head sees (models/blocksparse.py).

A head sees its local window and, before that, every `stride`-th block. So its keys are two slices of the cache: a local one of
fixed length, moving with the position and shared by all heads, and a remote one: blocks r, r + stride, ... of residue r, which
heads of one shift share. Both score lists go through one softmax. Of phi-3-small's cache at 8k positions a decode step reads
a quarter. Where the window's edge cuts through, masks decide, element by element.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var

from phi3mobile.export.targets.coreml import blocks
from phi3mobile.models.blocksparse import Pattern


@dataclass(frozen=True)
class Residue:
    """Heads that see the same remote blocks, as `count` query heads on each of some KV heads."""

    residue: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    count: int


def residues(pattern: Pattern) -> list[Residue]:
    """All heads, by the residue of their remote blocks."""
    group = pattern.heads // pattern.kv_heads
    found: dict[int, list[int]] = {}
    for head in range(pattern.heads):
        found.setdefault(-(head * pattern.head_step + 1) % pattern.stride, []).append(head)
    result = []
    for residue, heads in sorted(found.items()):
        owners = [head // group for head in heads]
        counts = {owners.count(owner) for owner in owners}
        if len(counts) == 1:
            result.append(Residue(residue, tuple(heads), tuple(dict.fromkeys(owners)), counts.pop()))
        else:  # a KV head is then read once for each of its query heads
            result.append(Residue(residue, tuple(heads), tuple(owners), 1))
    return result


def local_rows(pattern: Pattern, length: int) -> int:
    """Rows of the local slice: the windows of `length` queries together, wherever they start."""
    return length + pattern.local_blocks * pattern.block


def hides(pattern: Pattern | None, rows: int, length: int) -> bool:
    """Whether the pattern leaves anything out of a cache of so many rows."""
    return pattern is not None and local_rows(pattern, length) < rows


@dataclass(frozen=True)
class Scope:
    """What one forward sees, the same for all sparse layers: where the local slice is, and masks over both slices."""

    begin: Var  # int32 [4]
    local: Var  # mask [1, 1, G * T, L]
    remote: dict[int, Var]  # by residue: mask [1, 1, T, N]


def scope(pattern: Pattern, queries: Var, keys: Var, rows: int, dtype: str = "fp16") -> Scope:
    """Of queries int32 [T] and keys int32 [E], positions; E and rows are multiples of stride * block."""
    length, group = queries.shape[0], pattern.heads // pattern.kv_heads
    size = local_rows(pattern, length)
    own = mb.floor_div(x=queries, y=np.int32(pattern.block))
    first = mb.mul(x=mb.sub(x=own, y=np.int32(pattern.local_blocks - 1)), y=np.int32(pattern.block))  # of each window
    start = mb.slice_by_index(x=first, begin=[0], end=[1])
    start = mb.maximum(x=mb.minimum(x=start, y=np.int32(rows - size)), y=np.int32(0))
    zeros = np.zeros(2, np.int32)
    begin = mb.concat(values=[zeros, start, zeros[:1]], axis=0)
    first, query = mb.expand_dims(x=first, axes=[1]), mb.expand_dims(x=queries, axes=[1])
    near = mb.expand_dims(x=mb.add(x=start, y=np.arange(size, dtype=np.int32)), axes=[0])
    local = blocks.as_mask(mb.logical_or(x=mb.greater(x=near, y=query), y=mb.less(x=near, y=first)), dtype)
    if group > 1 and length > 1:
        local = mb.tile(x=local, reps=[1, 1, group, 1])
    periods = mb.reshape(x=keys, shape=[-1, pattern.stride, pattern.block])
    remote = {}
    for part in residues(pattern):
        r = part.residue
        far = mb.slice_by_index(
            x=periods, begin=[0, r, 0], end=[0, r + 1, 0], begin_mask=[True, False, True], end_mask=[True, False, True]
        )
        remote[r] = blocks.as_mask(mb.greater_equal(x=mb.reshape(x=far, shape=[1, -1]), y=first), dtype)
    return Scope(begin, local, remote)


def attend(q: Var, keys: Var, values: Var, count: Var | None, seen: Scope, pattern: Pattern, scale: float) -> Var:
    """q [1, H, T, D] over whole caches [1, Hkv, rows, D], of which `count` rows (int32 [1]; None: all) -> [1, T, H * D]."""
    _, heads, length, width = q.shape
    parts, size = residues(pattern), local_rows(pattern, length)
    order = np.array([head for part in parts for head in part.heads], np.int32)
    back = np.argsort(order).astype(np.int32)
    q = mb.mul(x=q, y=blocks.like(q, scale))
    near_keys, near_values = (
        mb.slice_by_size(x=cache, begin=seen.begin, size=[1, pattern.kv_heads, size, width]) for cache in (keys, values)
    )
    near = mb.add(x=mb.matmul(x=blocks.grouped(q, pattern.kv_heads), y=near_keys, transpose_y=True), y=seen.local)
    near = _heads(mb.reshape(x=near, shape=[1, heads, length, size]), order)
    caches = [cache if count is None else blocks.first_rows(cache, count) for cache in (keys, values)]
    remote_keys, remote_values = (_periods(cache, pattern) for cache in caches)
    far = [
        mb.add(x=_scores(_heads(q, part.heads), _blocks(remote_keys, part, pattern), part), y=seen.remote[part.residue])
        for part in parts
    ]
    far = mb.concat(values=far, axis=1) if len(far) > 1 else far[0]
    weights = mb.softmax(x=mb.concat(values=[near, far], axis=-1), axis=-1)
    near = _heads(mb.slice_by_size(x=weights, begin=[0, 0, 0, 0], size=[1, heads, length, size]), back)
    near = mb.matmul(x=blocks.grouped(near, pattern.kv_heads), y=near_values)
    near = mb.reshape(x=near, shape=[1, heads, length, width])
    whole = [True, True, True]
    far = mb.slice_by_index(
        x=weights, begin=[0, 0, 0, size], end=[0, 0, 0, 0], begin_mask=[*whole, False], end_mask=[*whole, True]
    )
    results, first = [], 0
    for part in parts:
        own = (
            far
            if len(parts) == 1
            else mb.slice_by_index(
                x=far,
                begin=[0, first, 0, 0],
                end=[0, first + len(part.heads), 0, 0],
                begin_mask=[True, False, True, True],
                end_mask=[True, False, True, True],
            )
        )
        results.append(_weighted(own, _blocks(remote_values, part, pattern), part))
        first += len(part.heads)
    far = _heads(mb.concat(values=results, axis=1) if len(results) > 1 else results[0], back)
    return blocks.heads_together(mb.add(x=near, y=far), heads, length)


def _heads(x: Var, heads) -> Var:
    """Some heads of [1, H, ...], in the order given: a slice where they are evenly spaced."""
    return _pick(x, heads, axis=1)


def _pick(x: Var, items, axis: int) -> Var:
    items, rank = [int(item) for item in items], x.rank
    if items == list(range(x.shape[axis])):
        return x
    step = items[1] - items[0] if len(items) > 1 else 1
    if step < 1 or items != list(range(items[0], items[-1] + 1, step)):
        return mb.gather(x=x, indices=np.array(items, np.int32), axis=axis, validate_indices=False)
    whole = [index != axis for index in range(rank)]
    begin, end, stride = (
        [value if index == axis else neutral for index in range(rank)]
        for value, neutral in ((items[0], 0), (items[-1] + 1, 0), (step, 1))
    )
    return mb.slice_by_index(x=x, begin=begin, end=end, stride=stride, begin_mask=whole, end_mask=whole)


def _periods(rows: Var, pattern: Pattern) -> Var:
    """[1, Hkv, E, D] -> [Hkv, E / (stride * block), stride, block * D]."""
    return mb.reshape(x=rows, shape=[pattern.kv_heads, -1, pattern.stride, pattern.block * rows.shape[-1]])


def _blocks(periods: Var, part: Residue, pattern: Pattern) -> Var:
    """The remote rows of the part's KV heads: [1, n, N, D]."""
    own = _pick(_pick(periods, [part.residue], axis=2), part.kv_heads, axis=0)
    return mb.reshape(x=own, shape=[1, len(part.kv_heads), -1, periods.shape[-1] // pattern.block])


def _scores(q: Var, keys: Var, part: Residue) -> Var:
    """[1, n * count, T, D] and [1, n, N, D] -> [1, n * count, T, N]."""
    length = q.shape[2]
    scores = mb.matmul(x=blocks.grouped(q, len(part.kv_heads)), y=keys, transpose_y=True)
    return scores if part.count == 1 else mb.reshape(x=scores, shape=[1, len(part.heads), length, -1])


def _weighted(weights: Var, values: Var, part: Residue) -> Var:
    """[1, n * count, T, N] and [1, n, N, D] -> [1, n * count, T, D]."""
    _, heads, length, _ = weights.shape
    if part.count > 1:
        weights = mb.reshape(x=weights, shape=[1, len(part.kv_heads), part.count * length, -1])
    result = mb.matmul(x=weights, y=values)
    return result if part.count == 1 else mb.reshape(x=result, shape=[1, heads, length, values.shape[-1]])
