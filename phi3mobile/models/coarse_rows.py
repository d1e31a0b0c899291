"""Rows of int8 and 4-bit KV caches in torch, the arithmetic of core/kernels/nibbles.h, and attention over them.

A row of keys or values is turned by a Hadamard matrix in groups of 32, which is its own inverse; queries are turned alike, so
scores are what they were, and what is attended is turned back. Each group then has a bfloat16 scale and 4-bit numbers of 16
levels. Queries are int8, with one scale a row.

Rounded so, the last keys cost the most, for they are attended to the most: a query reads its last RECENT rows as int8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

GROUP, RING, RECENT = 32, 256, 128
LEVELS = torch.tensor([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113.0])
_TINY = 1e-30  # scales up to it are 0


def turn(x: torch.Tensor) -> torch.Tensor:
    """x [..., D] by the normalized Hadamard matrix of GROUP; D a multiple of it."""
    groups = x.unflatten(-1, (-1, GROUP))
    step = 1
    while step < GROUP:
        first, second = groups.unflatten(-1, (-1, 2, step)).unbind(-2)
        groups = torch.stack([first + second, first - second], -2).flatten(-3)
        step *= 2
    return (groups * GROUP**-0.5).flatten(-2)


def quantize_coarse(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turned rows float32 [..., D] -> uint8 [..., D / 2], two numbers a byte, and scales bfloat16 [..., D / GROUP]."""
    groups = x.unflatten(-1, (-1, GROUP))
    peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (peak / torch.full_like(peak, -127.0)).bfloat16()
    scale = torch.where(scale.float().abs() > _TINY, scale, torch.zeros_like(scale))
    inverse = torch.where(scale != 0, 1 / scale.float(), torch.zeros(()))
    codes = torch.bucketize(groups * inverse, (LEVELS[1:] + LEVELS[:-1]) / 2)
    low, high = codes.to(torch.uint8).split(GROUP // 2, -1)
    return (low | high << 4).flatten(-2), scale[..., 0]


def coarse_values(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What quantize_coarse's numbers stand for: turned rows float32 [..., D]."""
    groups = packed.unflatten(-1, (-1, GROUP // 2))
    codes = torch.cat([groups & 15, groups >> 4], -1)
    return (LEVELS[codes.long()] * scales.float()[..., None]).flatten(-2)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 per row: float32 [..., D] -> int8 [..., D] and scales float32 [...]; a zero row has scale 0."""
    most = x.abs().amax(-1)
    limit = torch.full_like(most, 127.0)  # as a plain float it would become a multiplication by 1 / most
    inverse = torch.where(most > 0, limit / most, 0.0)
    return torch.round(x * inverse[..., None]).clamp(-127, 127).to(torch.int8), most / 127.0


def int8_values(x: torch.Tensor) -> torch.Tensor:
    """Rows float32 [..., D] as an int8 KV cache gives them back."""
    codes, scales = quantize_rows(x)
    return codes.float() * scales[..., None]


def rounded_queries(q: torch.Tensor) -> torch.Tensor:
    """Queries float32 [..., D] turned, as the int8 numbers that meet the keys."""
    return int8_values(turn(q))


def attend_mixed(
    q: torch.Tensor,
    coarse: Sequence[torch.Tensor],
    fine: Sequence[torch.Tensor],
    start: int,
    window: int,
    scale: float,
    fine_from: int = 0,
) -> torch.Tensor:
    """Attention of q [T, H, D] at positions start.. over keys and values [Hkv, start + T, D] in two forms -> [T, H, D].

    Each query reads its last RECENT positions, from fine_from on, in the fine form. window > 0: it sees so many at all.
    """
    (count, heads, width), (kv_heads, depth, _) = q.shape, coarse[0].shape
    grouped = q.transpose(0, 1).reshape(kv_heads, -1, width)
    query, key = (start + torch.arange(count))[:, None], torch.arange(depth)
    recent = (key > query - RECENT) & (key >= fine_from)
    hidden = key > query
    if window > 0:
        hidden |= query - key >= window
    scores = [(grouped @ keys.transpose(1, 2) * scale).view(heads, count, depth) for keys in (coarse[0], fine[0])]
    weights = torch.where(recent, scores[1], scores[0]).masked_fill(hidden, -torch.inf).softmax(-1)
    parts = [(weights * mine).view(kv_heads, -1, depth) @ values for mine, values in ((~recent, coarse[1]), (recent, fine[1]))]
    return (parts[0] + parts[1]).view(heads, count, width).transpose(0, 1)


class CoarseCache:
    """Keys and values [C, Hkv, D] of one layer in both forms, for models without a program."""

    def __init__(self, context: int, kv_heads: int, width: int) -> None:
        shape = (2, kv_heads, context, width)
        self.coarse, self.fine = torch.zeros(shape), torch.zeros(shape)
        self.ring_from = self.end = 0

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int, window: int, scale: float) -> torch.Tensor:
        """Store k and v [T, Hkv, D] from position `start` on; what q [T, H, D] makes of all: [T, H * D]."""
        last = start + len(q)
        rows = turn(torch.stack([k, v]).transpose(1, 2))
        self.coarse[:, :, start:last], self.fine[:, :, start:last] = coarse_values(*quantize_coarse(rows)), int8_values(rows)
        self.ring_from, self.end = min(max(self.ring_from, self.end - RING), start), last
        forms = self.coarse[:, :, :last].unbind(), self.fine[:, :, :last].unbind()
        return turn(attend_mixed(rounded_queries(q), *forms, start, window, scale, self.ring_from)).flatten(1)
