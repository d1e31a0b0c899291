"""The scale of each group of a 4-bit weight, by a least-squares search: in our kernels, or in torch with the same bits."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import torch

from phi3mobile.engines.native import load_library, native_library
from phi3mobile.errors import InputError
from phi3mobile.models.finite import is_finite
from phi3mobile.models.quantized import pack_nibbles

SMALLEST_SCALE = 2.0**-17  # below it a bfloat16 scale is not exact in float16
_DIVISORS = (7.0, 7.6, 8.2, 9.0, 10.0)  # of a group's extreme: the scales tried
_FINER = tuple(6.5 + step / 2 for step in range(16))
_BLOCK = 32  # columns summed one after the other; then block after block
_CHUNK = 1 << 18  # values searched at once: in torch their intermediates stay in cache


def round_groups(weight: torch.Tensor, group: int, signed: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [N, K] to nearest: packed codes uint8 [N, K/2], scales bfloat16 [N, K/group]. InputError if it is not finite.

    signed: a scale is negative where a group's extreme is positive: 8 codes are on the negative side, 7 on the other.
    """
    rows, width = weight.shape
    codes = torch.empty(rows, width // 2, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(rows, width // group, dtype=torch.bfloat16, device=weight.device)
    for part, its_scales, its_codes in _parts(width, weight, scales, codes):
        _search(part.float().contiguous(), None, group, signed, _DIVISORS, its_scales, its_codes)
    return codes, scales


def search_scales(weight: torch.Tensor, importance: torch.Tensor, group: int, signed: bool = False) -> torch.Tensor:
    """Scales float32 [N, K/group], exact in bfloat16, with the least rounding error weighted by `importance` [K]."""
    rows, width = weight.shape
    scales = torch.empty(rows, width // group, dtype=torch.bfloat16, device=weight.device)
    wanted = importance.float().contiguous()
    for part, its_scales in _parts(width, weight, scales):
        _search(part.float().contiguous(), wanted, group, signed, _FINER, its_scales, None)
    return scales.float()


def rounded(groups: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """groups [..., group] as codes, float32, on their scales [...]."""
    return (groups * (1 / scales.float())[..., None]).round_().clamp_(-8, 7)


def _parts(width: int, *matrices: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    rows = max(1, _CHUNK // width) * (1 if _library() is None else 16)
    return list(zip(*(matrix.split(rows) for matrix in matrices), strict=True))


@cache
def _library() -> ctypes.CDLL | None:
    return None if native_library() is None else load_library()


def _search(
    weight: torch.Tensor,
    importance: torch.Tensor | None,
    group: int,
    signed: bool,
    divisors: Sequence[float],
    scales: torch.Tensor,
    codes: torch.Tensor | None,
) -> None:
    """Fills scales, and codes if they are wanted."""
    library = _library()
    if library is None or weight.device.type != "cpu":
        if not is_finite(weight):
            raise damaged()
        scales[:] = in_torch(weight, importance, group, divisors, signed)
        if codes is not None:
            codes[:] = pack_nibbles(rounded(weight.unflatten(1, (-1, group)), scales).to(torch.int8).flatten(1))
        return
    tried = (ctypes.c_float * len(divisors))(*divisors)
    wanted = None if importance is None else importance.data_ptr()
    found = scales.data_ptr(), None if codes is None else codes.data_ptr()
    result = library.p3m_round_groups(weight.data_ptr(), wanted, *weight.shape, group, int(signed), tried, len(tried), *found)
    if result == -2:
        raise damaged()
    if result:
        raise InputError(f"a weight {list(weight.shape)} does not divide into groups of {group}")


def in_torch(
    weight: torch.Tensor, importance: torch.Tensor | None, group: int, divisors: Sequence[float], signed: bool = False
) -> torch.Tensor:
    """Scales bfloat16 [N, K/group] of float32 weight [N, K]: the reference of core/kernels/scales.cpp.

    From the extreme of a group over each divisor (8 codes on the negative side, 7 on the positive) one least-squares step: for
    fixed codes q the best scale is <w, q> / <q, q>. Scales stay positive unless `signed`: not every target may take others.
    """
    groups = weight.view(-1, group).t().contiguous()  # [group, G]: sums in columns' order
    turned = signed & (groups.amax(0) > -groups.amin(0))
    groups = torch.where(turned, -groups, groups)
    by = None if importance is None else importance.view(-1, group).t().repeat(1, len(weight))
    wanted = groups if by is None else groups * by
    extreme = groups.abs().amax(0)
    best, chosen = torch.full_like(extreme, torch.inf), torch.ones_like(extreme, dtype=torch.bfloat16)
    for divisor in divisors:
        start = (extreme / divisor).clamp_(min=SMALLEST_SCALE)
        codes = (groups * (1 / start)).round_().clamp_(-8, 7)
        dot = _sum(codes * wanted)
        norm = _sum(codes.square_() if by is None else codes.square_().mul_(by))
        scale = torch.where(norm > 0, dot / norm, start).clamp_(min=SMALLEST_SCALE).bfloat16()
        kept = scale.float()
        error = kept * (kept * norm - 2 * dot)  # but for what is the same for all
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, scale, chosen)
    return torch.where(turned, -chosen, chosen).view(len(weight), -1)


def _sum(values: torch.Tensor) -> torch.Tensor:
    """[group, G] -> [G] in the kernel's order."""
    total, whole = torch.zeros_like(values[0]), len(values) // _BLOCK * _BLOCK
    for blocks in (values[:whole].view(-1, _BLOCK, len(total)), values[whole:][None]):
        sums = torch.zeros_like(blocks[:, 0]) if blocks.shape[1] else total[None][:0]
        for column in range(blocks.shape[1]):
            sums += blocks[:, column]
        for block in sums:
            total += block
    return total


def damaged() -> InputError:
    """For a weight with a value that is not finite."""
    return InputError("a weight has values that are not finite (NaN or infinity): the checkpoint is damaged")
