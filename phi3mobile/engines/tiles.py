"""Matrices in tiles of 16 rows, as our product reads them: core/kernels/tiles.h states the layout. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TILE = 16  # rows
CODES = 32  # columns of 4 bits that lie together
MOST_SUMMED = 128  # columns of a group with offsets


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
        """Bytes of a tile's sums, scales, then with offsets steps and their codes, then codes."""
        scales = TILE * 4 if self.bits == 8 else _lines(self.groups * TILE * 2)
        offsets = [TILE * 4, _lines(-(-self.groups // 2) * 2 * TILE)] if self.offsets else []
        return [TILE * 4, scales, *offsets, TILE * self.width * self.bits // 8]

    def matrix_bytes(self, rows: int) -> int:
        return -(-rows // TILE) * sum(self.parts)


@dataclass(frozen=True)
class Codes:
    """A matrix [N, K]. 4 bit: codes uint8 in 0 ... 15, scales uint16 [N, groups], bfloat16; 8 bit: codes int8, scales float32
    [N, 1]. With offsets, of each group its code, int8 [N, groups], times the row's step, float32 [N, 1]."""

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

    codes, scales = padded(matrix.codes, 8 if form.bits == 4 else 0), padded(matrix.scales)
    values = scales if form.bits == 8 else (scales.astype(np.uint32) << 16).view(np.float32)
    summed = codes.reshape(tiles * TILE, form.groups, form.group).sum(2, dtype=np.int32)
    sums = ((summed - (8 * form.group if form.bits == 4 else 0)) * values.astype(np.float64)).sum(1)
    parts = [sums.astype(np.float32).reshape(tiles, TILE), _by_group(scales, tiles)]
    if matrix.offsets is not None and matrix.steps is not None:
        parts += [_by_group(padded(matrix.steps), tiles), _in_pairs(padded(matrix.offsets), tiles)]
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
    _, scales, *offsets, codes = np.split(tiles, np.cumsum(form.parts)[:-1], axis=1)

    def by_row(part: np.ndarray, dtype: str, width: int) -> np.ndarray:
        values = np.ascontiguousarray(part).view(dtype)[:, : TILE * width]
        return values.reshape(-1, width, TILE).transpose(0, 2, 1).reshape(-1, width)[:rows]

    return Codes(
        _unmixed(form, codes)[:rows],
        by_row(scales, "<f4", 1) if form.bits == 8 else by_row(scales, "<u2", form.groups),
        _out_of_pairs(form, offsets[1])[:rows] if offsets else None,
        by_row(offsets[0], "<f4", 1) if offsets else None,
    )


def _lines(size: int) -> int:
    """Up to whole cache lines."""
    return -(-size // 64) * 64


def _by_group(values: np.ndarray, tiles: int) -> np.ndarray:
    """[N, groups] -> [tiles, groups * TILE], a group's values of all rows side by side."""
    return np.ascontiguousarray(values.reshape(tiles, TILE, -1).transpose(0, 2, 1)).reshape(tiles, -1)


def _in_pairs(values: np.ndarray, tiles: int) -> np.ndarray:
    """[N, groups] -> [tiles, bytes], two groups' values of each row side by side."""
    even = np.pad(values, ((0, 0), (0, values.shape[1] % 2)))
    return np.ascontiguousarray(even.reshape(tiles, TILE, -1, 2).transpose(0, 2, 1, 3)).reshape(tiles, -1)


def _out_of_pairs(form: TileForm, data: np.ndarray) -> np.ndarray:
    pairs = -(-form.groups // 2)
    values = np.ascontiguousarray(data[:, : pairs * 2 * TILE]).view(np.int8).reshape(len(data), pairs, TILE, 2)
    return values.transpose(0, 2, 1, 3).reshape(-1, pairs * 2)[:, : form.groups]


def _mixed(form: TileForm, codes: np.ndarray) -> np.ndarray:
    """[N, K] -> [tiles, bytes]: four columns of each row side by side; of 4 bits two times four, in the halves of bytes."""
    if form.bits == 8:
        four = codes.reshape(-1, TILE, form.width // 4, 4).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(four).reshape(len(four), -1).view(np.uint8)
    cut = codes.reshape(-1, TILE, form.width // CODES, 2, 4, 4)  # [tile, row, block, half, v, i]
    low, high = (np.ascontiguousarray(cut[:, :, :, half].transpose(0, 2, 3, 1, 4)).reshape(len(cut), -1) for half in (0, 1))
    return low | (high << 4)


def _unmixed(form: TileForm, data: np.ndarray) -> np.ndarray:
    if form.bits == 8:
        four = np.ascontiguousarray(data).view(np.int8).reshape(len(data), -1, TILE, 4)
        return four.transpose(0, 2, 1, 3).reshape(-1, form.width)
    blocks = data.reshape(len(data), form.width // CODES, 4, TILE, 4)
    both = np.stack([blocks & 15, blocks >> 4], axis=2)  # [tile, block, half, v, row, i]
    return both.transpose(0, 4, 1, 2, 3, 5).reshape(-1, form.width)
