"""Integers as a program or a folder holds them: what stands where a checkpoint stands, with its matrices packed already."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.form import Form
from phi3mobile.models.quantized import Packed

if TYPE_CHECKING:
    from phi3mobile.export.packed import PackedModel

HEAD = "lm_head.weight"


class Integers:
    """Names are those of a checkpoint, and the head's own: tied or not, it is packed by itself."""

    config: DecoderConfig
    rounding = 1e-6  # by how much of itself a scale or a vector may differ from what was packed

    def names(self) -> list[str]:
        return list(self.config.tensors())

    def shape(self, name: str) -> tuple[int, ...]:
        raise NotImplementedError

    def form_of(self, name: str) -> Form | None:
        """How a matrix is packed; None for vectors and routers."""
        raise NotImplementedError

    def tensor(self, name: str) -> Packed | torch.Tensor:
        """A matrix packed, without its bias, or a vector in float32."""
        raise NotImplementedError

    def damage(self, name: str) -> str:
        """What is wrong with a matrix by the file's own account, where that keeps hashes; "": nothing."""
        return ""


def first_damage(found: Integers) -> str:
    """The first matrix that the file itself calls wrong; "": none."""
    return next(filter(None, (found.damage(name) for name in dict.fromkeys((*found.names(), HEAD)))), "")


def first_difference(found: Integers, wanted: PackedModel) -> str:
    """The first tensor of `found` that is not what was packed, and how; "": all are."""
    for name in dict.fromkeys((*found.names(), HEAD)):
        ours, theirs = found.tensor(name), wanted.tensor(name)
        pairs: list[tuple[str, Any, Any]] = [("values", ours, theirs)]
        if isinstance(ours, Packed) and isinstance(theirs, Packed):
            if ours.form != theirs.form:
                return f"{name} is {ours.form} in the program, {theirs.form} in its source"
            rows = (ours.codes != theirs.codes).any(1).nonzero()
            if len(rows):
                return f"{name} holds other integers than its source, first in row {int(rows[0])} ({len(rows)} rows)"
            pairs = [("scales", ours.scales, theirs.scales)]
            if (own := ours.offsets) and (made := theirs.offsets):
                if own.form != made.form:  # float16 in units of the scales: Core ML
                    pairs.append(("offsets", own.dequantized(), made.dequantized()))
                elif not torch.equal(own.codes, made.codes):
                    return f"{name} has other offsets than its source"
                else:
                    pairs.append(("offsets", own.scales, made.scales))
        for what, one, other in pairs:
            assert isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor), name
            if not torch.allclose(one.float(), other.float(), found.rounding, found.rounding * 2.0**-14):
                return f"{name} has other {what} than its source"
    return ""


def role_decibels(found: Integers, source: Callable[[str], torch.Tensor]) -> dict[str, float]:
    """Signal to noise in dB of each role's weights against a float source.

    Up to a factor of each column and row: solving moves those between a linear and what stands before it (solve/balance.py).
    """
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    for name in dict.fromkeys((*found.names(), HEAD)):
        if found.form_of(name) is None:
            continue
        ours, role = found.tensor(name), found.config.role(name)
        assert isinstance(ours, Packed), name
        exact, values = source(name).float(), ours.dequantized()
        for axis in (0, 1):
            least = torch.finfo(torch.float32).tiny
            values *= (exact * values).sum(axis, keepdim=True) / values.square().sum(axis, keepdim=True).clamp(min=least)
        signal[role] = signal.get(role, 0.0) + float(exact.square().sum())
        noise[role] = noise.get(role, 0.0) + float((values - exact).square().sum())
    return {role: round(10 * math.log10(signal[role] / max(noise[role], 1e-12 * signal[role])), 1) for role in signal}
