"""Block-sparse attention: which blocks of keys a head sees, and the KV cache that keeps only those.

A query in block i sees key block j <= i, causally within i itself, if j > i - local_blocks (its local window), or if
(j + head * head_step + 1) % stride == 0 (a remote block). Blocks count from position 0. head_step 0: all heads alike
(homo); phi-3-small's is max(1, stride // heads).
Source: microsoft/Phi-3-small-8k-instruct, triton_flash_blocksparse_attn.py.

The query heads of one KV head see only some residues j % stride outside their local windows, always the same ones. The
evicting cache keeps a KV head's seen blocks for good and passes the others through a ring of blocks, long enough for the
local window. No value is lost: it is exact, and smaller by the blocks that nobody would read again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """What one layer's heads see, with the grouping of its query heads. Raises ValueError for values that mean nothing."""

    heads: int
    kv_heads: int
    block: int  # tokens
    local_blocks: int
    stride: int
    head_step: int

    def __post_init__(self) -> None:
        if min(self.block, self.local_blocks, self.stride) < 1 or self.head_step < 0:
            raise ValueError(
                f"blocksparse attention: block {self.block}, local_blocks {self.local_blocks}, stride {self.stride}, "
                f"head_step {self.head_step} were given; the first three must be at least 1, head_step 0 or more"
            )

    def sees(self, head: int, query_block: int, key_block: int) -> bool:
        """Whether queries of one block see keys of another; within their own block causality is left to do."""
        if key_block > query_block:
            return False
        return query_block - key_block < self.local_blocks or (key_block + head * self.head_step + 1) % self.stride == 0

    def residues(self, kv_head: int) -> list[int]:
        """The j % stride of the remote blocks that some query head of this KV head sees, ascending."""
        group = self.heads // self.kv_heads
        shifts = (head * self.head_step for head in range(kv_head * group, (kv_head + 1) * group))
        return sorted({-(shift + 1) % self.stride for shift in shifts})

    @property
    def kept(self) -> int:
        """Blocks of `stride` consecutive ones that a KV head keeps: as many for every KV head."""
        return min(self.heads // self.kv_heads, self.stride // math.gcd(self.head_step, self.stride))


@dataclass(frozen=True)
class EvictingCache:
    """Shape and limits of the evicting cache of one layer: caches [1, Hkv, rows, D], scales [1, Hkv, rows]."""

    pattern: Pattern
    ring: int  # blocks that a KV head's unseen blocks pass through
    periods: int  # of `stride` blocks

    @property
    def rows(self) -> int:
        """Rows per KV head, S in the shapes of the operator."""
        return (self.periods * self.pattern.kept + self.ring) * self.pattern.block

    @property
    def positions(self) -> int:
        """Positions 0..positions - 1 fit."""
        return self.periods * self.pattern.stride * self.pattern.block

    @property
    def reach(self) -> int:
        """Consecutive blocks that are there at once, wherever they start."""
        passing = self.pattern.stride - self.pattern.kept
        return self.ring // passing * self.pattern.stride + self.ring % passing

    @property
    def back(self) -> int:
        """Tokens that a position may always go back from the farthest one written since position 0 was."""
        return (self.reach - self.pattern.local_blocks) * self.pattern.block

    def rows_for(self, tokens: int) -> int:
        """Rows per KV head that the first `tokens` positions fill."""
        kept = -(-tokens * self.pattern.kept // self.pattern.stride)
        return min(tokens, kept + self.ring * self.pattern.block)

    def slot(self, kv_head: int, key_block: int) -> int:
        """Where a block is, in blocks: seen ones first, then the ring."""
        period, residue = divmod(key_block, self.pattern.stride)
        seen = self.pattern.residues(kv_head)
        if residue in seen:
            return period * len(seen) + seen.index(residue)
        rank = residue - sum(other < residue for other in seen)
        return self.periods * len(seen) + (period * (self.pattern.stride - len(seen)) + rank) % self.ring


def evicting_cache(pattern: Pattern, context: int, back: int = 512) -> EvictingCache | None:
    """The evicting cache for `context` positions that lets them go back by at least `back` tokens.

    None where it would save nothing: the heads of a KV head see every block together, or the context is short. A longer
    ring also lets more tokens be done at once: (reach - local_blocks + 1) blocks of a prefill.
    """
    passing = pattern.stride - pattern.kept
    if passing == 0:
        return None
    reach = pattern.local_blocks + -(-back // pattern.block)
    ring = -(-reach // pattern.stride) * passing
    cache = EvictingCache(pattern, ring, -(-context // (pattern.stride * pattern.block)))
    return cache if cache.rows < context else None
