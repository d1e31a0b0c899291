"""Attention over cached rows in torch: causal, in a window, block-sparse."""

from __future__ import annotations

import torch

from phi3mobile.models.blocksparse import Pattern


def visible(
    queries: torch.Tensor, keys: torch.Tensor, window: int | None = None, pattern: Pattern | None = None
) -> torch.Tensor:
    """Which keys each query sees: bool [H, T, S] (H = 1 where all heads are alike) for positions int64 [T] and [S].

    The query at position p sees keys k <= p, and with a window only k > p - window (transformers 5: itself included).
    """
    seen = keys[None, :] <= queries[:, None]
    if window is not None:
        seen = seen & (keys[None, :] > queries[:, None] - window)
    if pattern is None:
        return seen[None]
    query_blocks, key_blocks = queries // pattern.block, keys // pattern.block
    local = query_blocks[:, None] - key_blocks[None, :] < pattern.local_blocks
    shifts = torch.arange(pattern.heads) * pattern.head_step
    strided = (key_blocks[None, :] + shifts[:, None] + 1) % pattern.stride == 0  # [H, S]
    return seen & (local | strided[:, None, :])


def attend(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: int,
    scale: float,
    window: int | None = None,
    pattern: Pattern | None = None,
) -> torch.Tensor:
    """q [1, T, H, D] over cache rows [0, position + T), caches [1, C, Hkv, D] -> [1, T, H*D]."""
    _, length, heads, dim = q.shape
    kv_heads, rows = k_cache.shape[2], position + length
    k, v = k_cache[0, :rows], v_cache[0, :rows]
    grouped = q[0].unflatten(1, (kv_heads, heads // kv_heads))  # query head h reads KV head h // group
    scores = torch.einsum("tkgd,skd->kgts", grouped, k) * scale
    seen = visible(torch.arange(position, rows), torch.arange(rows), window, pattern)
    seen = seen[None] if len(seen) == 1 else seen.unflatten(0, (kv_heads, heads // kv_heads))
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("kgts,skd->tkgd", weights, v).reshape(1, length, heads * dim)
