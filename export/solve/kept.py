"""One matrix that is integers already: on a grid that programs hold, without rounding it again where that can be."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from phi3mobile.export.quantize import GROUPS, quantize
from phi3mobile.export.scales import SMALLEST_SCALE
from phi3mobile.models.form import Form
from phi3mobile.models.grid import Grid
from phi3mobile.models.quantized import Packed, pack_nibbles

_NOTHING = 2.0**-10  # of a scale: offsets below it are what float16 scales leave
_EXPONENTS = (0.25, 0.5, 0.75, 1.0)


def held(grid: Grid, signed: bool = False) -> Packed | None:
    """The same integers as a program holds them; None where none does.

    8 bits with one scale a row and no offset, or 4 bits in groups of 32, 64, 128 or 256 columns, symmetric where every group's
    codes allow it. Exact up to the rounding of scales to bfloat16 and of offsets to 8 bits a row. Negative scales (half of
    Q4_0's) turn their codes round, unless programs take them (signed) and nothing has an offset.
    """
    form = fits(grid)
    if form is None:
        return None
    if form.bits == 4 and signed and not grid.offsets.any() and grid.codes.min() >= -8 and grid.codes.max() <= 7:
        return _four_bits(grid.grouped(form.group), form.group)
    negative = grid.scales < 0
    signs = torch.where(negative, -1, 1).to(torch.int8).repeat_interleave(grid.group, 1)
    if form.bits == 8:
        return Packed(8, form.group, grid.codes * signs, grid.scales.abs())
    return _four_bits(Grid(grid.codes.short() * signs, grid.scales.abs(), grid.offsets).grouped(form.group), form.group)


def fits(grid: Grid) -> Form | None:
    """The bits and groups that hold it; whether as well with offsets, only its integers tell."""
    groups = grid.codes.unflatten(1, (-1, grid.group))
    if (groups.amax(-1).short() - groups.amin(-1).short() > 15).any():
        turned = bool((grid.scales < 0).any()) and int(grid.codes.min()) == -128  # which int8 can't hold
        whole_row = grid.scales.shape[1] == 1 and not grid.offsets.any() and not turned
        return Form(8, grid.group) if whole_row else None
    group = next((size for size in reversed(GROUPS) if grid.group % size == 0), None)
    return None if group is None else Form(4, group)


def _four_bits(grid: Grid, group: int) -> Packed:
    """Of a grid each of whose scales is over a span of 16 codes at most; a negative one only over 4-bit codes, no offset."""
    codes = grid.codes.float().unflatten(1, (-1, group))
    scales = grid.scales.abs().clamp(min=SMALLEST_SCALE).copysign(grid.scales)
    codes = (codes * (grid.scales / scales)[..., None]).round_()  # changes only what stands on smaller scales
    least, most = codes.amax(-1) - 7, codes.amin(-1) + 8
    shift = torch.minimum(torch.maximum((-grid.offsets / scales).round(), least), most)
    offsets = grid.offsets + scales * shift
    offsets = torch.where(offsets.abs() < _NOTHING * scales.abs(), 0.0, offsets)
    packed = pack_nibbles((codes - shift[..., None]).to(torch.int8).flatten(1))
    found = Packed(4, group, packed, scales.bfloat16())
    return replace(found, offsets=quantize(offsets, 8, offsets.shape[1])) if offsets.any() else found


def scaled(grid: Grid, rows: torch.Tensor, sizes: torch.Tensor) -> Grid:
    """Rows times `rows` [N], columns times `sizes` [K], which are alike in each group of the grid."""
    factors = rows[:, None] * sizes.unflatten(0, (grid.scales.shape[1], -1))[:, 0]
    return Grid(grid.codes, grid.scales * factors, grid.offsets * factors)


def group_sizes(weight: torch.Tensor, seen: torch.Tensor, group: int) -> torch.Tensor:
    """Sizes [K], alike in each group of columns, to divide what weight [N, K] multiplies by: `seen` [B, T, K].

    Those of several tried with the least error that rounding it to int8 makes, relative to each token's output: a step is 1/255
    of a token's range, and its error meets the weights of each group times their size. The largest of a group decides.
    """
    tokens = seen.flatten(0, 1)
    groups = tokens.unflatten(1, (-1, group))
    high, low = groups.amax(-1).clamp(min=0), groups.amin(-1).clamp(max=0)  # [T, K/group]
    power = weight.square().sum(0).view(-1, group).sum(1)
    share = 1 / functional.linear(tokens, weight).square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
    largest = torch.maximum(high, -low)
    tried = [torch.ones(len(power))]
    for base in (largest.square().mean(0).sqrt(), largest.mean(0), largest.quantile(0.9, 0)):
        even = (base / base.mean().clamp(min=torch.finfo(torch.float32).tiny)).clamp(min=1e-3)
        tried += [even**exponent for exponent in _EXPONENTS]

    def error(sizes: torch.Tensor) -> float:
        step = (high / sizes).amax(1) - (low / sizes).amin(1)
        return float((share * step.square()).sum() * (sizes.square() * power).sum())

    best = min(tried, key=error)
    return (best / best.mean()).repeat_interleave(group)
