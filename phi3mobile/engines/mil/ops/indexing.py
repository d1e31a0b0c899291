"""Gathers, scatters, sorting and other operators that choose elements by index."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def gather(
    x: Array, indices: Array, axis: Array | int = 0, batch_dims: Array | int = 0, validate_indices: Array | bool = False
) -> Array:
    axis, batch = int(axis) % x.ndim, int(batch_dims)
    if not batch:
        return np.take(x, indices, axis)
    flat, lists = x.reshape(-1, *x.shape[batch:]), indices.reshape(-1, *indices.shape[batch:])
    taken = np.stack([np.take(row, chosen, axis - batch) for row, chosen in zip(flat, lists, strict=True)])
    return taken.reshape(*x.shape[:batch], *taken.shape[1:])


def gather_along_axis(x: Array, indices: Array, axis: Array | int = 0, validate_indices: Array | bool = False) -> Array:
    return np.take_along_axis(x, indices.astype(np.int64), int(axis))


def gather_nd(x: Array, indices: Array, batch_dims: Array | int = 0, validate_indices: Array | bool = False) -> Array:
    batch = int(batch_dims)
    grid = np.indices(x.shape[:batch]).reshape(batch, *x.shape[:batch], *[1] * (indices.ndim - 1 - batch))
    return x[(*grid, *np.moveaxis(indices.astype(np.int64), -1, 0))]


_MODES: dict[str, Callable] = {
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": np.divide.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}


def _scatter(data: Array, index: tuple, updates: Array, mode: str) -> Array:
    if mode == "update":
        data[index] = updates
    else:
        _MODES[mode](data, index, updates)
    return data


def scatter(
    data: Array,
    indices: Array,
    updates: Array,
    axis: Array | int = 0,
    mode: str = "add",
    validate_indices: Array | bool = False,
) -> Array:
    """Writes into data, as the other scatters do: the caller copies where data is still needed."""
    axis = int(axis) % data.ndim
    return _scatter(data, (*[slice(None)] * axis, np.asarray(indices).astype(np.int64)), updates, mode)


def scatter_along_axis(
    data: Array,
    indices: Array,
    updates: Array,
    axis: Array | int = 0,
    mode: str = "add",
    validate_indices: Array | bool = False,
) -> Array:
    index: list[Array] = list(np.indices(indices.shape, sparse=True))
    index[int(axis)] = indices.astype(np.int64)
    return _scatter(data, tuple(index), updates, mode)


def scatter_nd(data: Array, indices: Array, updates: Array, mode: str = "add", validate_indices: Array | bool = False) -> Array:
    return _scatter(data, tuple(np.moveaxis(indices.astype(np.int64), -1, 0)), updates, mode)


def argsort(x: Array, axis: Array | int = -1, ascending: Array | bool = False) -> Array:
    return np.argsort(x if ascending else -x, int(axis), kind="stable")


def topk(
    x: Array,
    k: Array | int = 1,
    axis: Array | int = -1,
    ascending: Array | bool = False,
    sort: Array | bool = True,
    return_indices: Array | bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Array, ...]:
    order = np.take(argsort(x, axis, ascending), np.arange(int(k)), int(axis))
    values = np.take_along_axis(x, order, int(axis))
    return (values, order) if return_indices else (values,)


def one_hot(
    indices: Array, one_hot_vector_size: Array, axis: Array | int = -1, on_value: Array | int = 1, off_value: Array | int = 0
) -> Array:
    hit = np.expand_dims(indices, int(axis)) == np.expand_dims(
        np.arange(int(one_hot_vector_size)), tuple(i for i in range(indices.ndim + 1) if i != int(axis) % (indices.ndim + 1))
    )
    return np.where(hit, on_value, off_value)


OPERATORS: dict[str, Callable] = {
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "scatter": scatter,
    "scatter_along_axis": scatter_along_axis,
    "scatter_nd": scatter_nd,
    "argsort": argsort,
    "topk": topk,
    "one_hot": one_hot,
    "non_zero": lambda x: np.argwhere(x),
}
