"""What a segment is built of: linears with their integers in the graph, norms and activations, as XNNPACK takes them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.export.recipe import SMALLEST_GROUP
from phi3mobile.models.quantized import Packed, group_ones, pack_nibbles, quantize_activation


class ConstantLinear(nn.Module):
    """x [T, K], already rounded to int8 -> [T, N], with the weight as integers, scales and bias in the graph.

    Offsets are left to `offsets`, another of these, for the sums of x over each group.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.group = packed.group
        self.limits = (-8, 7) if packed.bits == 4 else (-128, 127)
        self.register_buffer("codes", packed.unpacked())
        self.register_buffer("scales", packed.scales.float())
        self.register_buffer("zeros", torch.zeros_like(packed.scales, dtype=torch.int8))
        self.register_buffer("bias", packed.bias)
        self.offsets = ConstantLinear(packed.offsets) if packed.offsets else None

    def forward(self, x: torch.Tensor, sums: torch.Tensor | None = None) -> torch.Tensor:
        weight = torch.ops.torchao.dequantize_affine.default(
            self.codes, [1, self.group], self.scales, self.zeros, torch.int8, *self.limits
        )
        y = functional.linear(x, weight, self.bias)
        return y if self.offsets is None else y + self.offsets(sums)


class Rounded(nn.Module):
    """What linears with the same input take of it, x [T, K]: x as int8, and the sums of its groups if they have offsets.

    XNNPACK sums no groups: the sums [T, K/group] are a product with ones, one constant for all layers.
    """

    def __init__(self, first: Packed) -> None:
        super().__init__()
        self.ones = ConstantLinear(_ones(first.shape[1], first.group)) if first.offsets else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = quantize_activation(x)
        return (x,) if self.ones is None else (x, quantize_activation(self.ones(x)))


def _ones(width: int, group: int) -> Packed:
    """models.quantized.group_ones, packed."""
    scales = torch.ones(width // group, width // SMALLEST_GROUP, dtype=torch.bfloat16)
    return Packed(4, SMALLEST_GROUP, pack_nibbles(group_ones(width, group)), scales)


class Averaged(nn.Module):
    """What norms are made of. `vectors`: how many inputs of [K] a norm takes besides x [T, K].

    The mean is a product with 1/K and eps its bias: both are packed (segments.segment_vectors says why), and XNNPACK averages
    only 4-D tensors.
    """

    vectors: int
    mean: torch.Tensor
    eps: torch.Tensor

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, width), 1 / width))
        self.register_buffer("eps", torch.full((1,), eps))

    def over_rms(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, K] / rms(x)."""
        return x * torch.rsqrt(functional.linear(x * x, self.mean, self.eps))


class Norm(Averaged):
    """RMSNorm of x [T, K] by an input weight [K]."""

    vectors = 1

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.over_rms(x) * weight


class LayerNorm(Averaged):
    """LayerNorm of x [T, K] by an input weight and bias [K]."""

    vectors = 2

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return self.over_rms(x - functional.linear(x, self.mean)) * weight + bias


class SwiGLU(nn.Module):
    """silu(gate) * up, all [T, F]."""

    vectors = 0

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return functional.silu(gate) * up


class Gegelu(nn.Module):
    """models.modules.gegelu for finite values, [T, F]; slope [1] is an input as norms are, and a (u + 1) = a u + a."""

    vectors = 1

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, gate: torch.Tensor, up: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        activated = gate * torch.sigmoid(gate * slope)
        return activated * up + activated
