"""One matrix on the export's grid with the least error on what it multiplies: GPTQ with fixed groups, then fitted scales.

For inputs x with the Hessian H = sum x x^T the error of a quantized Q is |(Q - W) x|^2 = tr((Q - W) H (Q - W)^T). Columns are
rounded one by one, those with the largest inputs first, and each error is made good by the columns still to come (Frantar et
al., arXiv 2210.17323). Groups stay contiguous columns with scales chosen beforehand, so the order costs the phone nothing.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from phi3mobile.export.quantize import SMALLEST_SCALE, choose_offsets, quantize, shifted
from phi3mobile.models.quantized import Packed, pack_nibbles

DAMPING = 1.0  # of the mean input power, added to every column's: 20,000 tokens are not learned by heart
_BLOCK = 64  # columns between two updates of all later ones
_DIVISORS = tuple(6.5 + step / 2 for step in range(16))  # of a group's extreme: the scales tried
_VALUES = 1 << 22  # float32 values of one temporary


def solve(
    weight: torch.Tensor, hessian: torch.Tensor, bits: int, group: int, offsets: bool = False, damping: float = DAMPING
) -> Packed:
    """weight [N, K], hessian [K, K] of its inputs -> packed.

    8 bit is rounded to nearest: its error is far below 4 bit's. Raises InputError as export.quantize.quantize does.
    """
    if bits == 8:
        return quantize(weight, bits, group)
    quantize(weight[:1], bits, group)  # says what can't be packed
    if offsets:  # what they leave is solved on symmetric groups
        centres = choose_offsets(weight, group)
        return replace(solve(shifted(weight, centres), hessian, bits, group, damping=damping), offsets=centres)
    hessian = hessian.clone()
    hessian.diagonal().add_(damping * hessian.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny))
    scales = search_scales(weight, hessian.diagonal(), group)
    codes = round_in_order(weight, hessian, scales, group)
    scales = fit_scales(codes, weight @ hessian, hessian, scales, group)
    codes = polish(codes, weight, hessian, scales, group)
    return Packed(4, group, pack_nibbles(codes.to(torch.int8)), scales.bfloat16())


def matched(weight: torch.Tensor, hessian: torch.Tensor, drift: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """The float weight that makes of the quantized model's inputs x what `weight` makes of the float model's, y.

    hessian is sum x x^T, drift is sum x (y - x)^T, both [K, K]: least squares, damped (after GPTAQ, arXiv 2504.02692).
    """
    damped = hessian.clone()
    damped.diagonal().add_(damping * hessian.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny))
    return weight + torch.linalg.solve(damped, drift @ weight.t()).t()


def search_scales(weight: torch.Tensor, importance: torch.Tensor, group: int) -> torch.Tensor:
    """Scale of each group with the least rounding error weighted by `importance` [K]; [N, K/group], exact in bfloat16."""
    rows, width = weight.shape
    scales = torch.empty(rows, width // group)
    importance = importance.view(1, -1, group)
    step = max(1, _VALUES // width)
    for start in range(0, rows, step):
        groups = weight[start : start + step].unflatten(1, (-1, group))
        extreme = groups.abs().amax(-1)
        best, chosen = torch.full_like(extreme, torch.inf), torch.ones_like(extreme)
        for divisor in _DIVISORS:
            first = (extreme / divisor).clamp_(min=SMALLEST_SCALE)
            codes = (groups / first[..., None]).round_().clamp_(-8, 7)
            weighted = codes * importance
            norm = (weighted * codes).sum(-1)
            scale = torch.where(norm > 0, (weighted * groups).sum(-1) / norm, first).clamp_(min=SMALLEST_SCALE)
            scale = scale.bfloat16().float()
            error = ((groups - codes * scale[..., None]).square_() * importance).sum(-1)
            better = error < best
            best, chosen = torch.where(better, error, best), torch.where(better, scale, chosen)
        scales[start : start + step] = chosen
    return scales


def round_in_order(
    weight: torch.Tensor, hessian: torch.Tensor, scales: torch.Tensor, group: int, bits: int = 4
) -> torch.Tensor:
    """GPTQ's codes float32 [N, K] for given scales [N, K/group]."""
    width, half = weight.shape[1], 2 ** (bits - 1)
    order = torch.argsort(hessian.diagonal(), descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order].double()))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    left = weight.t()[order].contiguous()  # [K, N]: a column of the weight is a row here
    steps = scales.t()[order // group].contiguous()
    codes = torch.empty_like(left)
    for start in range(0, width, _BLOCK):
        end = min(width, start + _BLOCK)
        errors = torch.empty(end - start, left.shape[1])
        for at in range(start, end):
            codes[at] = (left[at] / steps[at]).round_().clamp_(-half, half - 1)
            errors[at - start] = (left[at] - codes[at] * steps[at]) / factor[at, at]
            left[at + 1 : end].addr_(factor[at, at + 1 : end], errors[at - start], alpha=-1)
        left[end:].addmm_(factor[start:end, end:].t(), errors, alpha=-1)
    return codes[torch.argsort(order)].t().contiguous()


def fit_scales(
    codes: torch.Tensor, target: torch.Tensor, hessian: torch.Tensor, scales: torch.Tensor, group: int
) -> torch.Tensor:
    """The scales with the least error for fixed codes: a small linear system per row; `target` is weight @ hessian [N, K]."""
    rows, width = codes.shape
    groups, fitted = width // group, torch.empty_like(scales)
    by_group = hessian.view(groups, group, width)
    step = max(1, _VALUES // (groups * width))
    for start in range(0, rows, step):
        part = codes[start : start + step].unflatten(1, (groups, group))
        product = torch.einsum("ngi,gik->ngk", part, by_group).unflatten(2, (groups, group))
        system = (product * part[:, None]).sum(-1)
        right = (target[start : start + step].unflatten(1, (groups, group)) * part).sum(-1)
        ridge = 1e-3 * system.diagonal(dim1=1, dim2=2).mean(-1, keepdim=True) + 1e-12  # groups of zeros keep their scale
        system.diagonal(dim1=1, dim2=2).add_(ridge)
        fitted[start : start + step] = torch.linalg.solve(system, right + ridge * scales[start : start + step])
    return fitted.clamp_(min=SMALLEST_SCALE).bfloat16().float()


def polish(codes: torch.Tensor, weight: torch.Tensor, hessian: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """One more look at every column with all others in place: coordinate descent, which never makes the error larger."""
    width = codes.shape[1]
    steps = scales.repeat_interleave(group, 1).t().contiguous()
    codes = codes.t().contiguous()
    slope = hessian @ (codes * steps - weight.t())  # [K, N], half the error's gradient
    power = hessian.diagonal()
    for start in range(0, width, _BLOCK):
        end = min(width, start + _BLOCK)
        moved, own = torch.empty(end - start, codes.shape[1]), slope[start:end]
        for at in range(start, end):
            new = (codes[at] - own[at - start] / (power[at] * steps[at])).round_().clamp_(-8, 7)
            moved[at - start] = (new - codes[at]) * steps[at]
            codes[at] = new
            own.addr_(hessian[start:end, at], moved[at - start])
        slope[:start].addmm_(hessian[:start, start:end], moved)
        slope[end:].addmm_(hessian[end:, start:end], moved)
    return codes.t().contiguous()
