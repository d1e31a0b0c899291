"""Round-to-nearest weight quantization, a few rows at a time; 4-bit scales are searched (scales.py)."""

from __future__ import annotations

from dataclasses import replace

import torch

from phi3mobile.errors import InputError
from phi3mobile.export.scales import SMALLEST_SCALE, damaged, round_groups
from phi3mobile.models.finite import is_finite
from phi3mobile.models.quantized import Packed

GROUPS = (32, 64, 128, 256)
_RANGES = (1.0, 0.95, 0.9, 0.85, 0.8)  # of a group's, tried for 16 codes with an offset
_CHUNK = 1 << 20  # values searched at once: their intermediates stay in cache


def quantize(weight: torch.Tensor, bits: int, group: int, offsets: bool = False, signed: bool = False) -> Packed:
    """Float weight [N, K] -> packed. bits 4: groups of `group` columns, symmetric (signed: with scales of either sign) or with
    offsets; bits 8: one scale per row.

    Raises InputError for a width that the groups do not divide, and for weights that are not finite.
    """
    width = weight.shape[1]
    if bits not in (4, 8):
        raise InputError(f"{bits} bit weights: 4 or 8 are known")
    if bits == 4 and (group != width or width % 2) and (group not in GROUPS or width % group):
        raise InputError(f"group {group} for a weight {list(weight.shape)}: take {GROUPS}, a divisor of {width}, or {width}")
    if bits == 8:
        return _per_row(weight)
    if offsets:
        centres = choose_offsets(weight, group)
        return replace(quantize(shifted(weight, centres), bits, group), offsets=centres)
    return Packed(4, group, *round_groups(weight, group, signed))


def choose_offsets(weight: torch.Tensor, group: int) -> Packed:
    """8-bit offsets [N, K/group] of groups with the least squared error of those tried.

    From several fractions of a group's range one least-squares step each: for fixed codes q the best scale is
    cov(w, q) / var(q), and the offset what is left of the mean.
    """
    rows, width = weight.shape
    chosen = torch.empty(rows, width // group)
    step = max(1, _CHUNK // width)
    for start in range(0, rows, step):
        groups = weight[start : start + step].float().unflatten(1, (-1, group))
        low, high, mean = groups.amin(-1), groups.amax(-1), groups.mean(-1)
        best = torch.full_like(mean, torch.inf)
        for fraction in _RANGES:
            scale = ((high - low) * (fraction / 15)).clamp_(min=SMALLEST_SCALE)
            offset = (high + low + scale) / 2  # of codes from -8 to 7
            codes = ((groups - offset[..., None]) / scale[..., None]).round_().clamp_(-8, 7)
            centre = codes.mean(-1)
            codes -= centre[..., None]
            spread = codes.square().sum(-1)
            scale = torch.where(spread > 0, (codes * groups).sum(-1) / spread.clamp(min=1), scale)
            offset = mean - scale * centre
            error = (groups - mean[..., None] - codes * scale[..., None]).square_().sum(-1)
            better = error < best
            best = torch.where(better, error, best)
            chosen[start : start + step] = torch.where(better, offset, chosen[start : start + step])
    return _per_row(chosen)


def shifted(weight: torch.Tensor, offsets: Packed) -> torch.Tensor:
    """weight [N, K] without its groups' offsets."""
    groups = weight.float().unflatten(1, (offsets.shape[1], -1))
    return (groups - offsets.dequantized()[..., None]).flatten(1)


def _per_row(weight: torch.Tensor) -> Packed:
    rows, width = weight.shape
    codes, scales = torch.empty(rows, width, dtype=torch.int8), torch.empty(rows, 1)
    step = max(1, _CHUNK // width)
    for start in range(0, rows, step):
        part = weight[start : start + step].float()
        scale = (part.abs().amax(1, keepdim=True) / 127).clamp(min=SMALLEST_SCALE)
        codes[start : start + step] = (part / scale).round_().clamp_(-127, 127).to(torch.int8)
        scales[start : start + step] = scale
    if not is_finite(scales):
        raise damaged()
    return Packed(8, width, codes, scales)
