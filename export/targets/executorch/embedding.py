"""Where a decoder's rows come from: a packed table inside of the program, or whoever calls it."""

from __future__ import annotations

import torch
from torch import nn

from phi3mobile.models.quantized import Packed, pack_nibbles


class PackedEmbedding(nn.Module):
    """Rows of a packed table, times `multiplier`, by ExecuTorch's embedding kernels: int64 [1, T] -> float32 [T, hidden]."""

    codes: torch.Tensor
    scales: torch.Tensor

    def __init__(self, packed: Packed, multiplier: float = 1.0) -> None:
        super().__init__()
        self.bits = packed.bits
        # ExecuTorch keeps the even column in the high nibble.
        codes = packed.codes if packed.bits == 8 else pack_nibbles(packed.unpacked().unflatten(1, (-1, 2)).flip(-1).flatten(1))
        self.register_buffer("codes", codes)
        self.register_buffer("scales", packed.scales.float() * multiplier)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        operators = torch.ops.quantized_decomposed
        operator, low = (operators.embedding_byte, -128) if self.bits == 8 else (operators.embedding_4bit, -8)
        rows = tokens.view(tokens.shape[1])
        return operator.dtype(self.codes, self.scales, None, low, -low - 1, rows, dtype=torch.float32)


class TokenEmbedding(nn.Module):
    """A method of its own: tokens int64 [1, T] -> float32 [1, T, hidden]."""

    def __init__(self, embedding: PackedEmbedding, hidden: int) -> None:
        super().__init__()
        self.embedding, self.hidden = embedding, hidden

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.embedding(tokens).view(1, tokens.shape[1], self.hidden)


class GivenRows(nn.Module):
    """In the embedding's place: float32 [1, T, hidden] -> [T, hidden]."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(rows.shape[1], rows.shape[2])
