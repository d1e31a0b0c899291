"""Weights on a grid of any width, as floats: for comparing. What is exported comes from export/quantize.py and solve/.

A code of b bits is an integer from -2**(b-1) to 2**(b-1) - 1, a weight is code * scale, scales are positive and
bfloat16 (float16 in method clipped).
"""

from __future__ import annotations

import torch

from phi3mobile.bench.ablate.settings import FLOAT
from phi3mobile.errors import InputError
from phi3mobile.export.scales import SMALLEST_SCALE
from phi3mobile.export.solve.gptq import Inputs, round_in_order
from phi3mobile.models.finite import is_finite

_FRACTIONS = tuple(0.75 + step / 16 for step in range(13))  # of half the codes: which one a group's extreme gets
_VALUES = 1 << 17  # of a weight at once
_DAMPING = 0.1  # of the mean input power: the plain algorithm's; export/solve takes more


def fake_quantize(
    weight: torch.Tensor, bits: int, group: int, method: str, hessian: torch.Tensor | None = None
) -> torch.Tensor:
    """weight [N, K] rounded to the grid, float32. group 0: the row. hessian [K, K] of the inputs, for gptq.

    Raises InputError for a group that does not divide K, and for weights that are not finite.
    """
    width = weight.shape[1]
    if not is_finite(weight):
        raise InputError("a weight has values that are not finite (NaN or infinity): the checkpoint is damaged")
    if bits == FLOAT:
        return weight.float()
    group = group or width
    if width % group:
        raise InputError(f"groups of {group} don't divide a width of {width}: leave out that group")
    parts = weight.float().unflatten(1, (-1, group)).split(max(1, _VALUES // width))  # temporaries stay in cache
    if method == "absmax":
        return torch.cat([_nearest(part, _whole_range(part, bits), bits) for part in parts])
    if method == "clipped":
        return torch.cat([_nearest(part, _whole_range(part, bits, torch.float16), bits) for part in parts])
    if method == "rtn":
        equal = torch.ones(1, width // group, group)
        return torch.cat([_nearest(part, search_scales(part, equal, bits), bits) for part in parts])
    if hessian is None:
        raise ValueError("gptq needs the Hessian of the inputs")
    inputs = Inputs(hessian, damping=_DAMPING)
    importance = inputs.hessian.diagonal().view(1, -1, group)
    scales = torch.cat([search_scales(part, importance, bits) for part in parts])
    return round_in_order(inputs.along(weight.float()), inputs, scales, group, bits)[0] * scales.repeat_interleave(group, 1)


def _nearest(groups: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """groups [N, G, g], scales [N, G] -> [N, K]."""
    return (codes_of(groups, scales[..., None], bits) * scales[..., None]).flatten(1)


def codes_of(values: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    half = 2 ** (bits - 1)
    return (values / scales).round_().clamp_(-half, half - 1)


def search_scales(groups: torch.Tensor, importance: torch.Tensor, bits: int) -> torch.Tensor:
    """Scale of each group [N, G, g] with the least rounding error weighted by importance [1, G, g]; [N, G].

    The one that reaches the extreme and several smaller ones are tried, each with one least-squares step for its codes.
    """
    extreme = groups.abs().amax(-1)
    best, chosen = torch.full_like(extreme, torch.inf), _whole_range(groups, bits)
    for first in (chosen, *(_positive(extreme / (2 ** (bits - 1) * fraction)) for fraction in _FRACTIONS)):
        codes = codes_of(groups, first[..., None], bits)
        weighted = codes * importance
        norm = (weighted * codes).sum(-1)
        scale = _positive(torch.where(norm > 0, (weighted * groups).sum(-1) / norm, first))
        # What this scale really gives: the step above may have moved values to other codes.
        error = ((groups - codes_of(groups, scale[..., None], bits) * scale[..., None]).square_() * importance).sum(-1)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, scale, chosen)
    return chosen


def _whole_range(groups: torch.Tensor, bits: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Scales with which no value is cut off."""
    return _positive(groups.abs().amax(-1) / (2 ** (bits - 1) - 1), dtype)


def _positive(scales: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return scales.clamp(min=SMALLEST_SCALE).to(dtype).float()
