"""Attention of an exported program, by the operators of the recipe: KV cache inside, [T, ...] in, [T, H*D] out.

Our kernels read only the blocks that a head sees, from a cache that evicts what no head of its group will read again, where
that saves rows (models/blocksparse.py).

Stock operators know no block-sparse attention, and one mask serves all heads of a call. So where the pattern matters, KV
heads whose query heads have the same shifts share a cache, and each shift is one call over that cache with its own mask:
every head is computed once, nothing is copied. (phi-3-small: 2 caches of 4 KV heads, 8 calls of 4 heads.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from phi3mobile.export.targets.executorch.options import ExecutorchRecipe
from phi3mobile.models.blocksparse import EvictingCache, Pattern, evicting_cache
from phi3mobile.models.coarse_rows import GROUP, RING
from phi3mobile.models.config import DecoderConfig

HIDDEN = -1e30  # added to the score of a key that may not be seen


@dataclass(frozen=True)
class Place:
    """Where the tokens of one forward stand: what attention needs besides q, k and v."""

    input_pos: torch.Tensor  # int64 [1]
    position: int | None  # the same number as a symbol; None where no operator wants it
    cos: torch.Tensor  # [T, R/2]
    sin: torch.Tensor
    window: torch.Tensor | None  # mask [T, context] of a sliding window in stock operators
    shifted: list[torch.Tensor]  # masks [T, context] of stock block-sparse layers, in the order of the shifts


def pattern_of(config: DecoderConfig, layer: int, context: int) -> Pattern | None:
    """The layer's block-sparse pattern, None where it hides nothing within `context` positions."""
    pattern = config.blocksparse(layer)
    return None if pattern is None or context <= pattern.block * pattern.local_blocks else pattern


def head_shifts(pattern: Pattern) -> list[int]:
    """By how many blocks each query head's pattern is shifted."""
    return [head * pattern.head_step % pattern.stride for head in range(pattern.heads)]


def eviction_of(config: DecoderConfig, recipe: ExecutorchRecipe, layer: int, context: int) -> EvictingCache | None:
    """The layer's evicting KV cache, None where all `context` rows are kept."""
    pattern = pattern_of(config, layer, context)
    return None if pattern is None or recipe.attention != "native" else evicting_cache(pattern, context)


def attention_of(config: DecoderConfig, recipe: ExecutorchRecipe, layer: int, context: int) -> nn.Module:
    """Attention of one layer."""
    pattern = pattern_of(config, layer, context)
    if recipe.attention == "native" and recipe.kv_bits == 4:
        return CoarseAttention(config, context)
    if recipe.attention == "native":
        evicting = eviction_of(config, recipe, layer, context)
        return NativeAttention(config, context, recipe.kv_bits, pattern, evicting)
    return StockAttention(config, context) if pattern is None else StockBlockSparse(config, context, pattern)


class NativeAttention(nn.Module):
    """Rotation, KV cache and attention in one of our kernels: fused [T, (H + 2 Hkv) * D] -> [T, H*D]."""

    k_cache: torch.Tensor
    v_cache: torch.Tensor
    k_scale: torch.Tensor  # of int8 caches
    v_scale: torch.Tensor
    mark: torch.Tensor  # of evicting ones

    def __init__(
        self,
        config: DecoderConfig,
        context: int,
        kv_bits: int,
        pattern: Pattern | None = None,
        evicting: EvictingCache | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.scale, self.window = config.num_attention_heads, config.attention_scale, config.sliding_window or 0
        self.pattern = (pattern.block, pattern.local_blocks, pattern.stride, pattern.head_step) if pattern else ()
        self.evicting, self.quantized = evicting, kv_bits == 8
        rows = evicting.rows if evicting else context
        shape = (1, config.num_key_value_heads, rows, config.head_dim)
        if evicting:
            self.register_buffer("mark", torch.zeros(1, dtype=torch.int64))
        for name in ("k", "v"):
            self.register_buffer(f"{name}_cache", torch.zeros(shape, dtype=torch.int8 if self.quantized else torch.float32))
            if self.quantized:
                self.register_buffer(f"{name}_scale", torch.zeros(shape[:3]))

    def forward(self, place: Place, qkv: torch.Tensor) -> torch.Tensor:
        operators, suffix = torch.ops.phi3mobile, "_int8" if self.quantized else ""
        rows: tuple[torch.Tensor, ...] = (qkv, place.cos, place.sin, self.k_cache, self.v_cache)
        if self.quantized:
            rows += (self.k_scale, self.v_scale)
        if self.evicting:
            rest = (self.mark, place.input_pos, self.heads, self.scale, *self.pattern, self.evicting.ring)
            return getattr(operators, f"blocksparse_attention_evicting{suffix}")(*rows, *rest)
        rest = (place.input_pos, self.heads, self.window, self.scale, *self.pattern)
        return getattr(operators, f"blocksparse_attention{suffix}")(*rows, *rest)


class CoarseAttention(nn.Module):
    """As NativeAttention, dense, over a 4-bit KV cache whose last rows are int8 too (models/coarse_rows.py)."""

    mark: torch.Tensor

    def __init__(self, config: DecoderConfig, context: int) -> None:
        super().__init__()
        self.heads, self.scale, self.window = config.num_attention_heads, config.attention_scale, config.sliding_window or 0
        heads, width = config.num_key_value_heads, config.head_dim
        for name in ("k", "v"):
            self.register_buffer(f"{name}_cache", torch.zeros(1, heads, context, width // 2, dtype=torch.uint8))
            self.register_buffer(f"{name}_scale", torch.zeros(1, heads, width // GROUP, context, dtype=torch.bfloat16))
            self.register_buffer(f"{name}_ring", torch.zeros(1, heads, RING, width, dtype=torch.int8))
            self.register_buffer(f"{name}_ring_scale", torch.zeros(1, heads, RING))
        self.register_buffer("mark", torch.zeros(2, dtype=torch.int64))

    def forward(self, place: Place, qkv: torch.Tensor) -> torch.Tensor:
        parts = ("cache", "scale", "ring", "ring_scale")
        caches = [getattr(self, f"{name}_{part}") for part in parts for name in ("k", "v")]
        rest = (self.mark, place.input_pos, self.heads, self.window, self.scale)
        return torch.ops.phi3mobile.blocksparse_attention_int4(qkv, place.cos, place.sin, *caches, *rest)


class StockAttention(nn.Module):
    """KV cache and attention by ExecuTorch's llama::* operators: q [T, H, D], k [T, Hkv, D], v [T, Hkv*D] -> [T, H*D]."""

    k_cache: torch.Tensor
    v_cache: torch.Tensor

    def __init__(self, config: DecoderConfig, context: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.scale = config.attention_scale
        shape = (1, context, self.kv_heads, self.dim)
        self.register_buffer("k_cache", torch.zeros(shape))
        self.register_buffer("v_cache", torch.zeros(shape))

    def forward(self, place: Place, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        length, position, mask = q.shape[0], place.position, place.window
        torch.ops.llama.update_cache(k.view(1, length, self.kv_heads, self.dim), self.k_cache, position)
        torch.ops.llama.update_cache(v.view(1, length, self.kv_heads, self.dim), self.v_cache, position)
        q = q.view(1, length, self.heads, self.dim)
        attended = torch.ops.llama.custom_sdpa(q, self.k_cache, self.v_cache, position, mask, 0.0, mask is None, self.scale)
        return attended.view(length, self.heads * self.dim)


class StockBlockSparse(nn.Module):
    """A block-sparse layer by the same operators; shapes as StockAttention's."""

    restored: torch.Tensor

    def __init__(self, config: DecoderConfig, context: int, pattern: Pattern) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.scale, group = config.attention_scale, self.heads // self.kv_heads
        shifts = head_shifts(pattern)
        seen_by = [sorted(set(shifts)).index(shift) for shift in shifts]  # query head -> number of its mask
        members: dict[tuple[int, ...], list[int]] = {}  # the masks that a KV head's queries need -> such KV heads
        for kv_head in range(self.kv_heads):
            members.setdefault(tuple(sorted(seen_by[kv_head * group : (kv_head + 1) * group])), []).append(kv_head)
        self.caches, outputs = len(members), []
        self.calls: list[tuple[int, int]] = []  # (cache, mask) in order
        for cache, (masks, kv_heads) in enumerate(members.items()):
            self.register_buffer(f"members_{cache}", torch.tensor(kv_heads))
            for name in ("k", "v"):
                self.register_buffer(f"{name}_cache_{cache}", torch.zeros(1, context, len(kv_heads), self.dim))
            for mask in sorted(set(masks)):
                own = [h for kv in kv_heads for h in range(kv * group, (kv + 1) * group) if seen_by[h] == mask]
                self.register_buffer(f"queries_{len(self.calls)}", torch.tensor(own))
                self.calls.append((cache, mask))
                outputs += own
        self.register_buffer("restored", torch.tensor(outputs).argsort())  # back to the heads' order

    def forward(self, place: Place, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        length, position = q.shape[0], place.position
        for name, rows in (("k", k), ("v", v.view(length, self.kv_heads, self.dim))):
            for cache in range(self.caches):
                own = rows.index_select(1, getattr(self, f"members_{cache}")).unsqueeze(0)
                torch.ops.llama.update_cache(own, getattr(self, f"{name}_cache_{cache}"), position)
        parts = []
        for number, (cache, mask) in enumerate(self.calls):
            own = q.index_select(1, getattr(self, f"queries_{number}")).unsqueeze(0)
            keys, values = getattr(self, f"k_cache_{cache}"), getattr(self, f"v_cache_{cache}")
            parts.append(torch.ops.llama.custom_sdpa(own, keys, values, position, place.shifted[mask], 0.0, False, self.scale))
        attended = torch.cat(parts, dim=2).index_select(2, self.restored)
        return attended.view(length, self.heads * self.dim)


class ShiftedMasks(nn.Module):
    """Positions int64 [T] -> the masks [T, context] of stock block-sparse layers, one per shift."""

    skipped: torch.Tensor

    def __init__(self, pattern: Pattern, context: int) -> None:
        super().__init__()
        self.pattern, self.context = pattern, context
        blocks = torch.arange(context) // pattern.block
        skipped = [(blocks + shift + 1) % pattern.stride != 0 for shift in sorted(set(head_shifts(pattern)))]
        self.register_buffer("skipped", torch.stack(skipped).float() * HIDDEN)

    def forward(self, positions: torch.Tensor) -> list[torch.Tensor]:
        first_local = (positions // self.pattern.block - self.pattern.local_blocks + 1) * self.pattern.block
        keys = torch.arange(self.context)[None, :]
        future = (keys > positions[:, None]).to(torch.float32) * HIDDEN
        remote = (keys < first_local[:, None]).to(torch.float32)
        return [future + remote * self.skipped[number] for number in range(self.skipped.shape[0])]


def window_mask(window: int, context: int, positions: torch.Tensor) -> torch.Tensor:
    """The mask [T, context] of a sliding window."""
    behind = positions[:, None] - torch.arange(context)[None, :]
    return torch.logical_or(behind < 0, behind >= window).to(torch.float32) * HIDDEN
