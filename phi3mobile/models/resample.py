"""Bilinear, antialiased resizing of uint8 pictures: by Pillow where it is installed, else in numpy with the same bits.

Pillow's way (src/libImaging/Resample.c): per axis a triangle as wide as the factor of reduction, weights in 22-bit fixed
point, first along rows, rounded to uint8, then along columns. Pillow 13 begins with columns where the height shrinks much
more than the width; the models were trained before. Here in blocks of rows, so that a big picture is never held twice.
"""

from __future__ import annotations

import numpy as np

_BITS = 22  # of a weight: 255 << 22 still fits into int32
_BLOCK = 1 << 21  # values worked on at a time


def resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """picture uint8 [H, W, 3], whatever its strides, as uint8 [h, w, 3] for size (w, h): the bits of Pillow's BILINEAR."""
    way = _with_pillow if has_pillow() else _with_numpy
    height, width = picture.shape[:2]
    narrow = np.empty((height, size[0], 3), np.uint8)
    step = max(1, _BLOCK // (3 * max(width, size[0])))
    for top in range(0, height, step):
        rows = picture[top : top + step]
        narrow[top : top + step] = way(rows, (size[0], len(rows)))
    return way(narrow, size)


def has_pillow() -> bool:
    """Whether Pillow can be imported."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        return False
    return True


def _with_pillow(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BILINEAR))


def _with_numpy(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    if width != picture.shape[1]:
        picture = _lines(picture.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return picture if height == picture.shape[0] else _lines(picture, height)


def _lines(picture: np.ndarray, count: int) -> np.ndarray:
    """picture uint8 [n, m, 3] resampled along its first axis to uint8 [count, m, 3]."""
    first, weights = _weights(len(picture), count)
    lines = np.ascontiguousarray(picture).reshape(len(picture), -1)
    out = np.empty((count, lines.shape[1]), np.uint8)
    step = max(1, _BLOCK // lines.shape[1])
    for top in range(0, count, step):
        part = slice(top, min(top + step, count))
        total = np.full((part.stop - top, lines.shape[1]), 1 << (_BITS - 1), np.int32)
        for tap in range(weights.shape[1]):
            near = lines[np.minimum(first[part] + tap, len(lines) - 1)]  # past the end the weight is 0
            total += near * weights[part, tap, None]
        out[part] = total >> _BITS
    return out.reshape(count, *picture.shape[1:])


def _weights(length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of `count` output lines: the first of `length` input lines that each reads, int64 [count]; weights int32 [count, taps].

    float64 in Pillow's order of operations, the sum of weights one by one: other orders differ in the last bit.
    """
    scale = length / count
    support = max(scale, 1.0)
    centre = (np.arange(count) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    taps = np.minimum((centre + support + 0.5).astype(np.int64), length) - first
    at = np.arange(taps.max())
    distance = np.abs((first[:, None] + at - centre[:, None] + 0.5) * (1.0 / support))
    weights = np.where((distance < 1.0) & (at < taps[:, None]), 1.0 - distance, 0.0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]
    return first, (0.5 + weights * (1 << _BITS)).astype(np.int32)
