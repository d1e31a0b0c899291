"""Packed 4- and 8-bit weights, and torch modules that compute with them as the phone does.

One packed form serves every target: `codes` with one `scale` per row group, weight = code * scale. 4-bit codes are stored as
code + 8, two to a byte, even column in the low nibble (XNNPACK's own layout, so exporting is copying). 4-bit scales are
bfloat16 values of at least 2**-17: exact in bfloat16 (XNNPACK), float16 (CoreML) and float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Packed:
    """A quantized matrix of shape [N, K]. codes: uint8 [N, K/2] (4 bit) or int8 [N, K]; scales [N, K/group]."""

    bits: int
    group: int
    codes: torch.Tensor
    scales: torch.Tensor  # bfloat16 for 4 bit, float32 for 8 bit
    bias: torch.Tensor | None = None  # float32 [N], of the linear that this is the weight of

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.scales.shape[1] * self.group

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def unpacked(self) -> torch.Tensor:
        """The integers, int8 [N, K]."""
        if self.bits == 8:
            return self.codes
        low, high = self.codes & 15, self.codes >> 4
        return (torch.stack((low, high), dim=-1).flatten(1).to(torch.int8) - 8)

    def dequantized(self) -> torch.Tensor:
        """float32 [N, K]."""
        groups = self.unpacked().float().unflatten(1, (-1, self.group))
        return (groups * self.scales.float()[..., None]).flatten(1)

    def rows(self, index: torch.Tensor | slice) -> Packed:
        """The same integers for some of the rows."""
        bias = None if self.bias is None else self.bias[index].contiguous()
        return Packed(self.bits, self.group, self.codes[index].contiguous(), self.scales[index].contiguous(), bias)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """int8 codes in [-8, 7], [N, K] with K even -> uint8 [N, K/2]."""
    shifted = (codes + 8).to(torch.uint8)
    return shifted[:, 0::2] | (shifted[:, 1::2] << 4)


def quantize_activation(x: torch.Tensor) -> torch.Tensor:
    """x [..., K] as the kernels see it: int8 per token, asymmetric, range widened to hold zero; float32 [..., K].

    These are torchao's affine operators, the ones that XNNPACK's lowering recognises.
    """
    import torchao.quantization.quant_primitives  # noqa: F401  registers torch.ops.torchao.*

    block = [1] * (x.dim() - 1) + [x.shape[-1]]
    scale, zero = torch.ops.torchao.choose_qparams_affine.default(
        x, "ASYMMETRIC", block, torch.int8, -128, 127, None, None, torch.int8
    )
    codes = torch.ops.torchao.quantize_affine.default(x, block, scale, zero, torch.int8, -128, 127)
    return torch.ops.torchao.dequantize_affine.default(codes, block, scale, zero, torch.int8, -128, 127)


class QuantizedLinear(nn.Module):
    """y = int8(x) @ W^T + bias with packed W, x [..., K] -> [..., N]. The reference of the exported program."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.register_buffer("weight", packed.dequantized(), persistent=False)
        self.register_buffer("bias", packed.bias, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(quantize_activation(x), self.weight, self.bias)


class QuantizedEmbedding(nn.Module):
    """Rows of a packed table: int64 [...] -> float32 [..., hidden]."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.packed.rows(tokens.flatten()).dequantized().unflatten(0, tokens.shape)
