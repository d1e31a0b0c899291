"""Matrices in tiles of 16 rows, as our product reads them: core/kernels/tiles.h states the layout. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TILE = 16  # rows
CODES = 32  # columns of 4 bits that lie together


@dataclass(frozen=True)
class TileForm:
    """Of a matrix: its width, columns that share a scale (8 bit: all), bits of a code, whether groups have offsets."""

    width: int
    group: int
    bits: int = 4
    offsets: bool = False

    @property
    def groups(self) -> int:
        return self.width // self.group

    @property
    def parts(self) -> list[int]:
        """Bytes of a tile's scales, with offsets steps and their codes, codes."""
        scales = TILE * 4 if self.bits == 8 else _lines(self.groups * TILE * 2)
        offsets = [TILE * 4, _lines(self.groups * TILE)] if self.offsets else []
        return [scales, *offsets, TILE * self.width * self.bits // 8]

    def matrix_bytes(self, rows: int) -> int:
        return -(-rows // TILE) * sum(self.parts)


@dataclass(frozen=True)
class Codes:
    """A matrix [N, K]. 4 bit: codes 0 ... 15, uint8 [N, K/2] with even columns low, scales uint16 [N, groups], bfloat16. 8 bit:
    codes int8 [N, K], scales float32 [N, 1]. Offsets are codes int8 [N, groups] times the row's step, float32 [N, 1]."""

    codes: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray | None = None
    steps: np.ndarray | None = None


def to_tiles(form: TileForm, matrix: Codes) -> np.ndarray:
    """uint8 [form.matrix_bytes(N)]."""
    rows = len(matrix.codes)
    tiles = -(-rows // TILE)

    def padded(values: np.ndarray, with_: int = 0) -> np.ndarray:
        return np.pad(values, ((0, tiles * TILE - rows), (0, 0)), constant_values=with_) if rows % TILE else values

    codes, scales = padded(matrix.codes, 0x88 if form.bits == 4 else 0), padded(matrix.scales)
    parts = [_by_group(scales, tiles)]
    if matrix.offsets is not None and matrix.steps is not None:
        parts += [_by_group(padded(matrix.steps), tiles), _by_group(padded(matrix.offsets), tiles)]
    made = np.empty((tiles, sum(form.parts)), np.uint8)
    at = 0
    for part, size in zip([*parts, _mixed(form, codes)], form.parts, strict=True):
        bytes_ = part.astype(part.dtype.newbyteorder("<"), copy=False).view(np.uint8)
        made[:, at : at + bytes_.shape[1]], made[:, at + bytes_.shape[1] : at + size] = bytes_, 0
        at += size
    return made.reshape(-1)


def from_tiles(form: TileForm, data: np.ndarray, rows: int) -> Codes:
    """to_tiles' other way."""
    tiles = data.reshape(-1, sum(form.parts))
    scales, *offsets, codes = np.split(tiles, np.cumsum(form.parts)[:-1], axis=1)

    def by_row(part: np.ndarray, dtype: str, width: int) -> np.ndarray:
        values = np.ascontiguousarray(part).view(dtype)[:, : TILE * width]
        return values.reshape(-1, width, TILE).transpose(0, 2, 1).reshape(-1, width)[:rows]

    return Codes(
        _unmixed(form, codes)[:rows],
        by_row(scales, "<f4", 1) if form.bits == 8 else by_row(scales, "<u2", form.groups),
        by_row(offsets[1], "i1", form.groups) if offsets else None,
        by_row(offsets[0], "<f4", 1) if offsets else None,
    )


def _lines(size: int) -> int:
    """Up to whole cache lines."""
    return -(-size // 64) * 64


def _by_group(values: np.ndarray, tiles: int) -> np.ndarray:
    """[N, groups] -> [tiles, groups * TILE], a group's values of all rows side by side."""
    return np.ascontiguousarray(values.reshape(tiles, TILE, -1).transpose(0, 2, 1)).reshape(tiles, -1)


def _mixed(form: TileForm, codes: np.ndarray) -> np.ndarray:
    """Codes -> [tiles, bytes]: four columns of each row side by side; of 4 bits two times four, in the halves of bytes."""
    fours = np.ascontiguousarray(codes if form.bits == 8 else _halves_of_blocks(codes)).view(np.uint32)
    rows = np.ascontiguousarray(fours.reshape(-1, TILE, fours.shape[1]).transpose(0, 2, 1))
    return rows.reshape(len(rows), -1).view(np.uint8)


def _unmixed(form: TileForm, data: np.ndarray) -> np.ndarray:
    fours = np.ascontiguousarray(data).view(np.uint32).reshape(len(data), -1, TILE).transpose(0, 2, 1)
    rows = np.ascontiguousarray(fours).reshape(len(data) * TILE, -1)
    return rows.view(np.int8) if form.bits == 8 else _neighbours(rows.view(np.uint8))


def _halves_of_blocks(codes: np.ndarray) -> np.ndarray:
    """uint8 [N, K/2], in a byte columns 2j and 2j + 1 -> in a byte columns j and j + 16 of a block of 32."""
    blocks = codes.reshape(len(codes), -1, 2, CODES // 4)
    low, high = blocks[:, :, 0], blocks[:, :, 1]
    found = np.empty((*low.shape, 2), np.uint8)
    found[..., 0], found[..., 1] = (low & 15) | (high << 4), (low >> 4) | (high & 0xF0)
    return found.reshape(codes.shape)


def _neighbours(codes: np.ndarray) -> np.ndarray:
    """_halves_of_blocks' other way."""
    even, odd = codes[:, 0::2].reshape(len(codes), -1, CODES // 4), codes[:, 1::2].reshape(len(codes), -1, CODES // 4)
    found = np.empty((*even.shape[:2], 2, CODES // 4), np.uint8)
    found[:, :, 0], found[:, :, 1] = (even & 15) | (odd << 4), (even >> 4) | (odd & 0xF0)
    return found.reshape(codes.shape)
