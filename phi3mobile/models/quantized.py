"""Packed 4- and 8-bit weights, and torch modules that compute with them as the phone does.

One packed form serves every target: `codes` with one `scale` per row group, weight = code * scale. 4-bit codes are stored as
code + 8, two to a byte, even column in the low nibble (XNNPACK's own layout, so exporting is copying). 4-bit scales are
bfloat16 values of at least 2**-17: exact in bfloat16 (XNNPACK), float16 (CoreML) and float32. They are positive but where a
recipe's programs take either sign (Recipe.signed).

4-bit groups may have offsets: weight = code * scale + offset, as in GGUF's Q4_1. W x = (codes * scales) x + offsets s, where s
are the sums of x over groups and the offsets are 8-bit. XNNPACK knows symmetric groups only: it multiplies twice, and rounds s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.models.form import Form


@dataclass(frozen=True)
class Packed:
    """A quantized matrix of shape [N, K]. codes: uint8 [N, K/2] (4 bit) or int8 [N, K]; scales [N, K/group]."""

    bits: int
    group: int
    codes: torch.Tensor
    scales: torch.Tensor  # bfloat16 for 4 bit, float32 for 8 bit
    bias: torch.Tensor | None = None  # float32 [N], of the linear that this is the weight of
    offsets: Packed | None = None  # 8 bit [N, K/group]: what is added to the weights of each group

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.scales.shape[1] * self.group

    @property
    def form(self) -> Form:
        signed = self.bits == 4 and bool((self.scales < 0).any())
        return Form(self.bits, self.group, self.offsets is not None, signed)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + (self.offsets.nbytes if self.offsets else 0)

    def unpacked(self) -> torch.Tensor:
        """The integers, int8 [N, K]."""
        if self.bits == 8:
            return self.codes
        low, high = self.codes & 15, self.codes >> 4
        return torch.stack((low, high), dim=-1).flatten(1).to(torch.int8) - 8

    def dequantized(self) -> torch.Tensor:
        """float32 [N, K]."""
        groups = self.unpacked().float().unflatten(1, (-1, self.group)) * self.scales.float()[..., None]
        if self.offsets:
            groups += self.offsets.dequantized()[..., None]
        return groups.flatten(1)

    def rows(self, index: torch.Tensor | slice) -> Packed:
        """The same integers for some of the rows."""
        bias = None if self.bias is None else self.bias[index].contiguous()
        offsets = self.offsets.rows(index) if self.offsets else None
        return Packed(self.bits, self.group, self.codes[index].contiguous(), self.scales[index].contiguous(), bias, offsets)


def stacked(parts: list[Packed]) -> Packed:
    """Matrices of one width and form, one below the other; all with a bias or none."""
    codes, scales = torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts])
    biases = [part.bias for part in parts if part.bias is not None]
    offsets = [part.offsets for part in parts if part.offsets is not None]
    bias, below = torch.cat(biases) if biases else None, stacked(offsets) if offsets else None
    return Packed(parts[0].bits, parts[0].group, codes, scales, bias, below)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """int8 codes in [-8, 7], [N, K] with K even -> uint8 [N, K/2]."""
    shifted = (codes + 8).to(torch.uint8)
    return shifted[:, 0::2] | (shifted[:, 1::2] << 4)


STEPS = 126.62  # of a group's largest value, as core/kernels/tiles.cpp has it, where it says why


def quantize_activation(x: torch.Tensor, group: int | None = None) -> torch.Tensor:
    """x [..., K] as the kernels see it, float32 [..., K].

    group None, XNNPACK's: int8 per token, asymmetric, range widened to hold zero. Else ours: int8 per so many columns
    of a token, symmetric.

    The former are torchao's affine operators, the ones that XNNPACK's lowering recognises.
    """
    if group is not None:
        groups = x.unflatten(-1, (-1, group))
        scales = (groups.abs().amax(-1, keepdim=True) / STEPS).clamp(min=1e-30)
        return ((groups * (1 / scales)).round().clamp(-127, 127) * scales).flatten(-2)
    import torchao.quantization.quant_primitives  # noqa: F401  registers torch.ops.torchao.*

    block = [1] * (x.dim() - 1) + [x.shape[-1]]
    scale, zero = torch.ops.torchao.choose_qparams_affine.default(
        x, "ASYMMETRIC", block, torch.int8, -128, 127, None, None, torch.int8
    )
    codes = torch.ops.torchao.quantize_affine.default(x, block, scale, zero, torch.int8, -128, 127)
    return torch.ops.torchao.dequantize_affine.default(codes, block, scale, zero, torch.int8, -128, 127)


def group_sums(x: torch.Tensor, group: int) -> torch.Tensor:
    """x [..., K] -> [..., K/group], what offsets are multiplied by."""
    return x.unflatten(-1, (-1, group)).sum(-1)


def group_ones(width: int, group: int) -> torch.Tensor:
    """int8 [K/group, K] that makes group_sums of x, for runtimes that only multiply."""
    return torch.eye(width // group, dtype=torch.int8).repeat_interleave(group, 1)


class QuantizedLinear(nn.Module):
    """y = int8(x) @ W^T + bias with packed W, x [..., K] -> [..., N]. The reference of the exported program.

    activation_group: quantize_activation's; then offsets meet the sums of int8(x) as they are, else rounded to int8 again.
    """

    weight: torch.Tensor
    offsets: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(self, packed: Packed, activation_group: int | None = None) -> None:
        super().__init__()
        self.group, self.activation_group = packed.group, activation_group
        self.register_buffer("weight", replace(packed, offsets=None).dequantized(), persistent=False)
        self.register_buffer("offsets", packed.offsets.dequantized() if packed.offsets else None, persistent=False)
        self.register_buffer("bias", packed.bias, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.of_rounded(quantize_activation(x, self.activation_group))

    def of_rounded(self, x: torch.Tensor) -> torch.Tensor:
        """Of x that is int8 already."""
        y = functional.linear(x, self.weight, self.bias)
        if self.offsets is None:
            return y
        sums = group_sums(x, self.group)
        return y + functional.linear(sums if self.activation_group else quantize_activation(sums), self.offsets)


class QuantizedEmbedding(nn.Module):
    """Rows of a packed table: int64 [...] -> float32 [..., hidden]."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.packed.rows(tokens.flatten()).dequantized().unflatten(0, tokens.shape)
