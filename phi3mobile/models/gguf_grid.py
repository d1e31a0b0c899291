"""The integers of GGUF's blocks, for the types of which 4 bits in groups of 32 columns hold every value."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import torch

from phi3mobile.models.grid import Grid

_BLOCK = 32  # columns
_KIND = gguf.GGMLQuantizationType


def gguf_grid(kind: gguf.GGMLQuantizationType, data: np.ndarray) -> Grid | None:
    """Rows of blocks, uint8 [N, bytes of a row], as the file has them; None for a type that is no such grid."""
    unpack = _GRIDS.get(kind)
    return None if unpack is None else unpack(data)


def _halves(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at that byte of each block, float32 [N, blocks]."""
    return blocks[..., at : at + 2].copy().view(np.float16)[..., 0].astype(np.float32)


def _nibbles(data: np.ndarray) -> np.ndarray:
    """Bytes [..., n] -> codes [..., 2n]: the low nibbles first."""
    return np.concatenate((data & 15, data >> 4), axis=-1)


def _grid(codes: np.ndarray, scales: np.ndarray, offsets: np.ndarray) -> Grid:
    flat = torch.from_numpy(codes.astype(np.int8).reshape(len(codes), -1))
    return Grid(flat, *(torch.from_numpy(np.ascontiguousarray(part.reshape(len(codes), -1))) for part in (scales, offsets)))


def _q4_0(data: np.ndarray) -> Grid:
    """scale, 16 bytes: (code - 8) * scale."""
    blocks = data.reshape(len(data), -1, 2 + _BLOCK // 2)
    scales = _halves(blocks, 0)
    return _grid(_nibbles(blocks[..., 2:]).astype(np.int8) - 8, scales, np.zeros_like(scales))


def _q4_1(data: np.ndarray) -> Grid:
    """scale, offset, 16 bytes."""
    blocks = data.reshape(len(data), -1, 4 + _BLOCK // 2)
    return _grid(_nibbles(blocks[..., 4:]), _halves(blocks, 0), _halves(blocks, 2))


def _q4_k(data: np.ndarray) -> Grid:
    """256 columns: scale and offset of the 6-bit scales and offsets of 8 groups, these in 12 bytes, 128 bytes of codes."""
    blocks = data.reshape(len(data), -1, 4 + 12 + 128)
    packed = blocks[..., 4:16].reshape(*blocks.shape[:2], 3, 4)
    low, middle, high = (packed[..., part, :] for part in range(3))
    scales = np.concatenate((low & 63, (high & 15) | ((low >> 2) & 48)), axis=-1)
    offsets = np.concatenate((middle & 63, (high >> 4) | ((middle >> 2) & 48)), axis=-1)
    codes = _nibbles(blocks[..., 16:].reshape(*blocks.shape[:2], 4, _BLOCK))  # 4 times 64 columns: low nibbles are the first 32
    return _grid(codes, _halves(blocks, 0)[..., None] * scales, -_halves(blocks, 2)[..., None] * offsets)


_GRIDS: dict[gguf.GGMLQuantizationType, Callable[[np.ndarray], Grid]] = {
    _KIND.Q4_0: _q4_0,
    _KIND.Q4_1: _q4_1,
    _KIND.Q4_K: _q4_k,
}
