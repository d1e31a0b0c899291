"""A bundle's file of experts: its header, its tiles, what the runner counts. No torch.

The layout stands in core/src/expert_file.h and core/kernels/tiles.h: a header of 64 bytes, two checksums a record, then one
record for each layer and expert, [w13][w2], both at multiples of ALIGN. It is used as it lies: all of it mapped, or experts
read as they are needed.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

ALIGN = 16384
TILE = 16  # rows
CODES = 32  # columns that lie together
HEADER = struct.Struct("<4s9I3Q")
MAGIC, VERSION = b"P3ME", 2


@dataclass(frozen=True)
class ExpertShape:
    """Sizes of a file of experts: w13 is [2 * inner, hidden], w2 [hidden, inner]; groups: columns of a scale."""

    layers: int
    experts: int
    hidden: int
    inner: int
    group13: int
    group2: int

    @property
    def bytes13(self) -> int:
        return 2 * matrix_bytes(self.inner, self.hidden, self.group13)

    @property
    def bytes2(self) -> int:
        return matrix_bytes(self.hidden, self.inner, self.group2)

    @property
    def record(self) -> int:
        """Bytes of one expert."""
        return padded(self.bytes13) + padded(self.bytes2)

    @property
    def data_at(self) -> int:
        return padded(HEADER.size + 16 * self.layers * self.experts)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.data_at + self.layers * self.experts * self.record

    def header(self, check: int = 0) -> bytes:
        shape = (self.layers, self.experts, self.hidden, self.inner, self.group13, self.group2)
        return HEADER.pack(MAGIC, VERSION, *shape, 0, 0, self.bytes13, self.bytes2, check)


def padded(size: int) -> int:
    """Up to the next multiple of ALIGN."""
    return -(-size // ALIGN) * ALIGN


def scales_bytes(width: int, group: int) -> int:
    """Of a tile: bfloat16, rounded up to whole cache lines."""
    return -(-width // group * TILE * 2 // 64) * 64


def matrix_bytes(rows: int, width: int, group: int) -> int:
    """Of a matrix [rows, width] in tiles."""
    return -(-rows // TILE) * (TILE * 4 + scales_bytes(width, group) + TILE * width // 2)


def to_tiles(codes: np.ndarray, scales: np.ndarray) -> bytes:
    """Codes uint8 [N, K] in 0 ... 15 and scales [N, K/group], bfloat16 as uint16 -> the matrix in tiles."""
    rows, width = codes.shape
    tiles = -(-rows // TILE)
    codes = np.pad(codes, ((0, tiles * TILE - rows), (0, 0)), constant_values=8)
    scales = np.pad(scales, ((0, tiles * TILE - rows), (0, 0)))
    values = (scales.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    group = width // scales.shape[1]
    groups = codes.reshape(tiles * TILE, -1, group).sum(2, dtype=np.int32) - 8 * group
    sums = (groups * values).sum(1).astype(np.float32).reshape(tiles, TILE)
    rest = scales_bytes(width, group) // 2 - TILE * scales.shape[1]
    by_group = np.pad(scales.reshape(tiles, TILE, -1).transpose(0, 2, 1).reshape(tiles, -1), ((0, 0), (0, rest)))
    # [tile, row, block, half, v, i] -> [tile, block, v, row, i], two halves to a byte
    cut = codes.reshape(tiles, TILE, width // CODES, 2, 4, 4)
    low, high = (cut[:, :, :, half].transpose(0, 2, 3, 1, 4).reshape(tiles, -1) for half in (0, 1))
    parts = [part.astype(part.dtype.newbyteorder("<")).view(np.uint8) for part in (sums, by_group, low | (high << 4))]
    return np.concatenate(parts, axis=1).tobytes()


def from_tiles(data: np.ndarray, rows: int, width: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """to_tiles' other way: bytes -> codes uint8 [N, K] and scales uint16 [N, K/group]."""
    groups, start = width // group, TILE * 4
    tiles = data.reshape(-(-rows // TILE), -1)
    scales = np.ascontiguousarray(tiles[:, start : start + groups * TILE * 2]).view("<u2").reshape(-1, groups, TILE)
    bytes_ = tiles[:, start + scales_bytes(width, group) :].reshape(len(tiles), width // CODES, 4, TILE, 4)
    both = np.stack([bytes_ & 15, bytes_ >> 4], axis=2)  # [tile, block, half, v, row, i]
    codes = both.transpose(0, 4, 1, 2, 3, 5).reshape(-1, width)
    return codes[:rows], scales.transpose(0, 2, 1).reshape(-1, groups)[:rows]


_COUNTS = ("hits", "misses", "bytes_read", "stall_us", "slots", "mapped", "bytes", "bytes_of_one")


def statistics(library: ctypes.CDLL, model: int) -> dict[str, Any] | None:
    """What the runner counted since the model was opened: experts found in memory (hits) and not, bytes read, seconds waited
    for reads, slots, whether all are mapped, bytes of all experts and of one. None: a model without experts."""
    values = (ctypes.c_int64 * len(_COUNTS))()
    if not library.p3m_expert_statistics(model, values, len(values)):
        return None
    found: dict[str, Any] = dict(zip(_COUNTS, values, strict=True))
    asked = found["hits"] + found["misses"]
    found["stall_s"] = found.pop("stall_us") / 1e6
    found["mapped"] = bool(found["mapped"])
    return found | {"hit_rate": round(found["hits"] / asked, 4) if asked else None}
