"""Operators that move values without changing them: shapes, slices, joins, repeats, padding, constants by shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray


def _ints(values: Array) -> list[int]:
    return np.asarray(values).astype(np.int64).ravel().tolist()


def reshape(x: Array, shape: Array) -> Array:
    """A 0 in `shape` keeps that dimension of x, both counted from the right."""
    wanted = _ints(shape)
    if 0 in wanted and x.size:
        kept = [1] * len(wanted) + list(x.shape)
        wanted = [size or kept[i - len(wanted)] for i, size in enumerate(wanted)]
    return x.reshape(wanted)


def reshape_like(x: Array, ref_tensors: Sequence[Array], begins: Array, ends: Array, end_masks: Array) -> Array:
    shape: list[int] = []
    for tensor, begin, end, to_end in zip(ref_tensors, _ints(begins), _ints(ends), end_masks, strict=True):
        shape += tensor.shape[begin : None if to_end else end]
    return x.reshape(shape)


def slices(
    x: Array,
    begin: Array,
    end: Array,
    stride: Array | None,
    begin_mask: Array | None,
    end_mask: Array | None,
    squeeze_mask: Array | None,
) -> tuple:
    """The index that MIL's slice parameters mean."""
    rank, none = x.ndim, [False] * x.ndim
    steps = [1] * rank if stride is None else _ints(stride)
    opens, closes, squeezed = (none if m is None else m for m in (begin_mask, end_mask, squeeze_mask))
    first, last = _ints(begin), _ints(end)
    return tuple(
        (0 if opens[i] else first[i])
        if squeezed[i]
        else slice(None if opens[i] else first[i], None if closes[i] else last[i], steps[i])
        for i in range(rank)
    )


def slice_by_index(
    x: Array,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    return x[slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)]


def slice_update(
    x: Array,
    update: Array,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    """Writes into x: the caller copies where x is still needed."""
    x[slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)] = update
    return x


def slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    """Size -1: to the end."""
    spans = zip(_ints(begin), _ints(size), strict=True)
    return x[tuple(slice(start, None if count == -1 else start + count) for start, count in spans)]


def split(x: Array, axis: Array, num_splits: Array | None = None, split_sizes: Array | None = None) -> list[Array]:
    if split_sizes is None:
        assert num_splits is not None  # one of the two is given
        return np.split(x, int(num_splits), int(axis))
    return np.split(x, np.cumsum(_ints(split_sizes))[:-1], int(axis))


def concat(values: Sequence[Array], axis: Array, interleave: Array | bool = False) -> Array:
    if not interleave:
        return np.concatenate([np.atleast_1d(value) for value in values], int(axis))
    stacked = np.stack(values, int(axis) % values[0].ndim + 1)
    shape = list(values[0].shape)
    shape[int(axis)] *= len(values)
    return stacked.reshape(shape)


def squeeze(x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, None if axes is None else tuple(_ints(axes)))


def pad(x: Array, pad: Array, mode: str = "constant", constant_val: Array | float = 0.0) -> Array:
    pairs = np.asarray(pad).reshape(-1, 2).tolist()
    widths = [[0, 0]] * (x.ndim - len(pairs)) + pairs
    if mode == "constant":
        return np.pad(x, widths, constant_values=np.asarray(constant_val, x.dtype))
    return np.pad(x, widths, mode="edge") if mode == "replicate" else np.pad(x, widths, mode="reflect")


def band_part(x: Array, lower: Array | int = -1, upper: Array | int = -1) -> Array:
    """Zero outside the diagonals -lower..upper; -1: all on that side."""
    below = np.subtract.outer(np.arange(x.shape[-2]), np.arange(x.shape[-1]))
    keep = ((int(lower) < 0) | (below <= int(lower))) & ((int(upper) < 0) | (-below <= int(upper)))
    return np.where(keep, x, np.zeros((), x.dtype))


def range_1d(start: Array, end: Array, step: Array) -> Array:
    first, last, by = (np.asarray(value).item() for value in (start, end, step))
    return np.arange(first, last, by, dtype=np.asarray(start).dtype.type)


def flatten2d(x: Array, axis: Array | int = 1) -> Array:
    return x.reshape(int(np.prod(x.shape[: int(axis)])), -1)


def pixel_shuffle(x: Array, upscale_factor: Array) -> Array:
    n, channels, height, width = x.shape
    factor = int(upscale_factor)
    split_up = x.reshape(n, channels // factor**2, factor, factor, height, width)
    return split_up.transpose(0, 1, 4, 2, 5, 3).reshape(n, channels // factor**2, height * factor, width * factor)


def pixel_unshuffle(x: Array, downscale_factor: Array) -> Array:
    n, channels, height, width = x.shape
    factor = int(downscale_factor)
    split_up = x.reshape(n, channels, height // factor, factor, width // factor, factor)
    return split_up.transpose(0, 1, 3, 5, 2, 4).reshape(n, channels * factor**2, height // factor, width // factor)


def sliding_windows(x: Array, axis: Array, size: Array, stride: Array | int = 1) -> Array:
    along = int(axis) % x.ndim
    windows = np.lib.stride_tricks.sliding_window_view(x, int(size), along)
    every = tuple(slice(None, None, int(stride)) if i == along else slice(None) for i in range(x.ndim))
    return np.moveaxis(windows[every], -1, along + 1)


OPERATORS: dict[str, Callable] = {
    "reshape": reshape,
    "reshape_like": reshape_like,
    "slice_by_index": slice_by_index,
    "slice_update": slice_update,
    "slice_by_size": slice_by_size,
    "split": split,
    "concat": concat,
    "squeeze": squeeze,
    "pad": pad,
    "band_part": band_part,
    "range_1d": range_1d,
    "flatten2d": flatten2d,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "sliding_windows": sliding_windows,
    "identity": lambda x: x,
    "transpose": lambda x, perm: x.transpose(_ints(perm)),
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(_ints(axes))),
    "stack": lambda values, axis: np.stack(values, int(axis)),
    "tile": lambda x, reps: np.tile(x, _ints(reps)),
    "reverse": lambda x, axes=None: np.flip(x, None if axes is None else tuple(_ints(axes))),
    "shape": lambda x: np.array(x.shape, np.int32),
    "fill": lambda shape, value=0.0: np.full(_ints(shape), value),
    "fill_like": lambda ref_tensor, value=0.0: np.full(ref_tensor.shape, value),
}
