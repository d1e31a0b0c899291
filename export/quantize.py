"""Round-to-nearest weight quantization with a least-squares scale search, a few rows at a time."""

from __future__ import annotations

import torch

from phi3mobile.errors import InputError
from phi3mobile.models.quantized import Packed, pack_nibbles

GROUPS = (32, 64, 128, 256)
SMALLEST_SCALE = 2.0**-17  # below it a bfloat16 scale is not exact in float16
_CHUNK = 1 << 20  # values searched at once: their intermediates stay in cache


def quantize(weight: torch.Tensor, bits: int, group: int) -> Packed:
    """Float weight [N, K] -> packed. bits 4: symmetric groups of `group` columns; bits 8: one scale per row.

    Raises InputError for a width that the groups do not divide, and for weights that are not finite.
    """
    rows, width = weight.shape
    if bits not in (4, 8):
        raise InputError(f"{bits} bit weights: 4 or 8 are known")
    if bits == 4 and (group != width or width % 2) and (group not in GROUPS or width % group):
        raise InputError(f"group {group} for a weight {list(weight.shape)}: take {GROUPS}, a divisor of {width}, or {width}")
    if bits == 8:
        return _per_row(weight)
    codes = torch.empty(rows, width // 2, dtype=torch.uint8)
    scales = torch.empty(rows, width // group, dtype=torch.bfloat16)
    step = max(1, _CHUNK // width)
    for start in range(0, rows, step):
        part = weight[start : start + step].float().unflatten(1, (-1, group))
        scale = _search(part)
        scales[start : start + step] = scale
        codes[start : start + step] = pack_nibbles(_round(part, scale).to(torch.int8).flatten(1))
    return Packed(4, group, codes, scales)


def _per_row(weight: torch.Tensor) -> Packed:
    rows, width = weight.shape
    codes, scales = torch.empty(rows, width, dtype=torch.int8), torch.empty(rows, 1)
    step = max(1, _CHUNK // width)
    for start in range(0, rows, step):
        part = weight[start : start + step].float()
        scale = (part.abs().amax(1, keepdim=True) / 127).clamp(min=SMALLEST_SCALE)
        codes[start : start + step] = (part / scale).round_().clamp_(-127, 127).to(torch.int8)
        scales[start : start + step] = scale
    _check_finite(scales)
    return Packed(8, width, codes, scales)


def _round(groups: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (groups * (1 / scale.float())[..., None]).round_().clamp_(-8, 7)


def _search(groups: torch.Tensor) -> torch.Tensor:
    """Scale of each group, [N, K/group, group] -> bfloat16 [N, K/group], with the least squared error of those tried.

    From several fractions of the extreme (8 codes on the negative side, 7 on the positive), one least-squares step each:
    for fixed codes q the best scale is <w, q> / <q, q>. Scales stay positive: not every target may take others.
    """
    extreme = groups.abs().amax(-1)
    _check_finite(extreme)
    square = groups.square().sum(-1)
    best = torch.full_like(extreme, torch.inf)
    chosen = torch.ones_like(extreme, dtype=torch.bfloat16)
    for divisor in (7.0, 7.6, 8.2, 9.0, 10.0):
        start = (extreme / divisor).clamp_(min=SMALLEST_SCALE)
        codes = (groups * (1 / start)[..., None]).round_().clamp_(-8, 7)
        dot, norm = (groups * codes).sum(-1), codes.square().sum(-1)
        scale = torch.where(norm > 0, dot / norm, start).clamp_(min=SMALLEST_SCALE).bfloat16()
        kept = scale.float()
        error = square - 2 * kept * dot + kept.square() * norm  # |w - scale * q|^2 without another pass
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, scale, chosen)
    return chosen


def _check_finite(values: torch.Tensor) -> None:
    if not torch.isfinite(values).all():
        raise InputError("a weight has values that are not finite (NaN or infinity): the checkpoint is damaged")
