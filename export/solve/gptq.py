"""One matrix on the export's grid with the least error on what it multiplies: GPTQ with fixed groups, then fitted scales.

For inputs x with the Hessian H = sum x x^T the error of a quantized Q is |(Q - W) x|^2 = tr((Q - W) H (Q - W)^T). Columns are
rounded one by one, those with the largest inputs first, and each error is made good by the columns still to come (Frantar et
al., arXiv 2210.17323). Groups stay contiguous columns with scales chosen beforehand, so the order costs the phone nothing.

With a triangular factor, H = U U^T, the error is |(Q - W) U|^2, where column k depends on the columns of Q up to k alone: GPTQ
is rounding along W U from its first column (Chen et al., arXiv 2507.18553). So one factor serves all, and nothing is inverted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from phi3mobile.export.quantize import GROUPS, choose_offsets, quantize, shifted
from phi3mobile.export.scales import SMALLEST_SCALE, search_scales
from phi3mobile.models.quantized import Packed, pack_nibbles, stacked

DAMPING = 1.0  # of the mean input power, added to every column's: 20,000 tokens are not learned by heart
_BLOCK = 64  # columns gone through one by one
_ROWS = 1024  # of a weight at once: what is computed of them stays near the cache


class Inputs:
    """What a matrix multiplies, by means over its tokens: the damped Hessian of x x^T [K, K], and its factor U.

    seen: of x y^T [K, K], where the float model multiplies y; or made: of x z^T [K, N], where z is what it makes of y.
    """

    def __init__(
        self,
        hessian: torch.Tensor,
        seen: torch.Tensor | None = None,
        made: torch.Tensor | None = None,
        damping: float = DAMPING,
    ) -> None:
        self.hessian, self.seen, self.made = hessian.clone(), seen, made
        power = self.hessian.diagonal()
        self.damp = damping * float(power.mean().clamp(min=torch.finfo(torch.float32).tiny))
        power.add_(self.damp)
        self.order = torch.argsort(power, descending=True)
        last = self.order.flip(0)
        self.factor = torch.linalg.cholesky(self.hessian[last][:, last]).flip(0, 1)  # of the columns in order

    def along(self, weight: torch.Tensor) -> torch.Tensor:
        """weight [N, K] -> U^T weight^T [K, N], columns in order."""
        return _lower(self.factor.t(), weight.t()[self.order])

    def matched(self, weight: torch.Tensor, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """The float weight that makes of x what `weight` [N, K], rows from `start` on, makes of y: least squares (after GPTAQ,
        arXiv 2504.02692); and the same along U, [K, N]."""
        if self.seen is not None:
            made = self.seen @ weight.t()
        elif self.made is not None:
            made = self.made[:, start : start + len(weight)]
        else:
            return weight, self.along(weight)
        wanted = made.add(weight.t(), alpha=self.damp)[self.order]
        along = torch.linalg.solve_triangular(self.factor, wanted, upper=True)
        moved = torch.empty_like(along)
        moved[self.order] = torch.linalg.solve_triangular(self.factor.t(), along, upper=False)
        return moved.t(), along


def solve(weight: torch.Tensor, inputs: Inputs, bits: int, group: int, offsets: bool = False, signed: bool = False) -> Packed:
    """weight [N, K] -> packed, for what it multiplies. 8 bit is rounded to nearest: its error is far below 4 bit's.
    signed: scales of either sign, where there are no offsets.

    Raises InputError as export.quantize.quantize does.
    """
    quantize(weight[:1], bits, group)  # says what can't be packed
    parts = []
    for start in range(0, len(weight), _ROWS):
        rows, along = inputs.matched(weight[start : start + _ROWS], start)
        solved = _solve_rows(rows, along, inputs, group, offsets, signed) if bits == 4 else quantize(rows, bits, group)
        parts.append(solved)
    return stacked(parts)


def _solve_rows(weight: torch.Tensor, along: torch.Tensor, inputs: Inputs, group: int, offsets: bool, signed: bool) -> Packed:
    centres = choose_offsets(weight, group) if offsets else None
    if centres:  # what they leave is solved on symmetric groups
        weight = shifted(weight, centres)
        along = inputs.along(weight)
    scales = search_scales(weight, inputs.hessian.diagonal(), group, signed and not offsets)
    codes, slope = round_in_order(along, inputs, scales, group)
    codes, scales = polish(codes, slope, inputs.hessian, scales, group)
    return Packed(4, group, pack_nibbles(codes.to(torch.int8)), scales.bfloat16(), offsets=centres)


def round_in_order(
    along: torch.Tensor, inputs: Inputs, scales: torch.Tensor, group: int, bits: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """GPTQ's codes float32 [N, K] for a weight along U [K, N] and scales [N, K/group]; half the error's gradient, [N, K]."""
    order, factor, left, half = inputs.order, inputs.factor, along.clone(), 2 ** (bits - 1)
    steps = scales.t()[order // group]
    codes, values = torch.empty_like(left), torch.empty_like(left)

    def step(start: int, end: int) -> None:
        for at in range(start, end):
            torch.div(left[at], steps[at] * factor[at, at], out=codes[at]).round_().clamp_(-half, half - 1)
            torch.mul(codes[at], steps[at], out=values[at])
            left[at:end].addr_(factor[at, at:end], values[at], alpha=-1)

    def push(start: int, end: int, last: int) -> None:
        left[end:last].addmm_(factor[start:end, end:last].t(), values[start:end], alpha=-1)

    _in_turn(0, len(left), _BLOCK, step, push)
    slope, back = torch.empty_like(left), torch.argsort(order)
    slope[order] = -_lower(factor.flip(0, 1), left.flip(0)).flip(0)
    return codes[back].t(), slope.t()


def polish(
    codes: torch.Tensor, slope: torch.Tensor, hessian: torch.Tensor, scales: torch.Tensor, group: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One more look at every group's scale and at every column's codes with all others in place, which never makes the error
    larger: codes [N, K] and scales [N, K/group] from those given; slope [N, K] is half the error's gradient there.
    """
    codes, slope, scales = (values.t().clone(memory_format=torch.contiguous_format) for values in (codes, slope, scales))
    power, moved = hessian.diagonal(), torch.zeros_like(codes)

    def fit(start: int, end: int) -> None:
        own, scale = codes[start:end], scales[start // group]
        push = hessian[start:end, start:end] @ own
        norm = (own * push).sum(0)
        best, sign = torch.where(norm > 0, scale - (own * slope[start:end]).sum(0) / norm, scale), scale.sign()
        change = best.mul_(sign).clamp_(min=SMALLEST_SCALE).bfloat16().float() * sign - scale
        slope[start:end].addcmul_(push, change)
        moved[start:end] = own * change
        scale += change

    def step(start: int, end: int) -> None:
        if group <= end - start:
            fit(start, end)
        scale = scales[start // group]
        for at in range(start, end):
            new = (codes[at] - slope[at] / (power[at] * scale)).round_().clamp_(-8, 7)
            change = (new - codes[at]) * scale
            codes[at] = new
            moved[at] += change
            slope[at + 1 : end].addr_(hessian[at, at + 1 : end], change)

    def push(start: int, end: int, last: int) -> None:
        slope[end:last].addmm_(hessian[end:last, start:end], moved[start:end])

    if group not in GROUPS:  # one of the whole row
        fit(0, group)
        moved.zero_()
    _in_turn(0, len(codes), group if group in GROUPS else _BLOCK, step, push)
    return codes.t(), scales.t()


def _in_turn(start: int, end: int, block: int, step: Callable[[int, int], None], push: Callable[[int, int, int], None]) -> None:
    """step(a, b) for one block of columns after the other; push(a, b, c) brings what was done to a ... b to b ... c before
    that is begun. By halves, so most of it is few large products."""
    if end - start <= block:
        return step(start, end)
    middle = start + -(-(end - start) // (2 * block)) * block
    _in_turn(start, middle, block, step, push)
    push(start, middle, end)
    return _in_turn(middle, end, block, step, push)


def _lower(factor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """factor @ x, without most of the zeros above the diagonal of factor [K, K]."""
    bounds = range(0, len(factor), max(_BLOCK, len(factor) // 8))
    return torch.cat([factor[at : at + bounds.step, : at + bounds.step] @ x[: at + bounds.step] for at in bounds])
