"""What no weight may be: NaN or infinite."""

from __future__ import annotations

import math

import torch

from phi3mobile.errors import InputError


def is_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite. One pass over any dtype that makes nothing: isfinite() makes a mask as long."""
    return not values.numel() or all(math.isfinite(float(end)) for end in values.aminmax())  # NaN is both ends


def require_finite(name: str, values: torch.Tensor, where: object = "the checkpoint") -> None:
    """InputError that names the tensor and what it is in, if a value is NaN or infinite."""
    if not is_finite(values):
        raise InputError(
            f"{name} has values that are not finite (NaN or infinity): {where} is damaged; download or train it again"
        )
