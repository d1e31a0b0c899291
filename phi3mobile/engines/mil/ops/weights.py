"""constexpr operators: weights decoded from their compressed form to float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def _blocks(data: Array, scale: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes that put every axis of data beside its block: data [s0, b0, s1, b1, ...], scale [s0, 1, s1, 1, ...]."""
    wide = tuple(n for size, count in zip(data.shape, scale.shape, strict=True) for n in (count, size // count))
    return wide, tuple(n for count in scale.shape for n in (count, 1))


def blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """scale * (data - offset), one scale and offset a block; the block sizes are data.shape / scale.shape."""
    wide, narrow = _blocks(data, scale)
    out = data.reshape(wide).astype(np.float32)
    if offset is not None:
        out -= offset.reshape(narrow).astype(np.float32)
    out *= scale.reshape(narrow)
    return out.reshape(data.shape)


def affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> Array:
    shape = [1] * quantized_data.ndim
    shape[int(axis)] = -1
    zero, factor = (value.reshape(shape) if value.ndim else value for value in map(np.asarray, (zero_point, scale)))
    return (quantized_data.astype(np.float32) - zero.astype(np.float32)) * factor


def lut_to_dense(indices: Array, lut: Array, vector_axis: Array | None = None, shape: Array | None = None) -> Array:
    """iOS16: packed bytes, one table and `shape`. iOS18: a table per block [*blocks, palettes, vector]."""
    if shape is not None:
        return lut[_unpacked(indices, int(np.log2(lut.size)), shape)]
    size = lut.shape[-1]
    wide, narrow = _blocks(indices, np.empty(lut.shape[:-2], np.bool_))
    table = np.arange(int(np.prod(lut.shape[:-2]))).reshape(narrow)
    found = lut.reshape(-1, *lut.shape[-2:])[table, indices.reshape(wide)].reshape(*indices.shape, size)
    if size == 1:
        return found[..., 0]
    assert vector_axis is not None  # entries that are vectors lie along an axis
    axis = int(vector_axis) % indices.ndim
    joined = list(indices.shape)
    joined[axis] *= size
    return np.moveaxis(found, -1, axis + 1).reshape(joined)


def _unpacked(data: Array, bits: int, shape: Array) -> Array:
    """Indices of `bits` bits each, lowest first."""
    sizes = np.asarray(shape).astype(np.int64).tolist()
    flat = np.unpackbits(data.astype(np.uint8), bitorder="little", count=int(np.prod(sizes)) * bits)
    return np.packbits(flat.reshape(-1, bits), axis=-1, bitorder="little")[:, 0].reshape(sizes)


def sparse_to_dense(nonzero_data: Array, mask: Array, shape: Array | None = None) -> Array:
    """iOS16: bits and `shape`; iOS18: a mask of the dense shape."""
    chosen = mask.astype(bool) if shape is None else _unpacked(mask, 1, shape).astype(bool)
    out = np.zeros(chosen.shape, nonzero_data.dtype)
    out[chosen] = nonzero_data
    return out


def sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    """The mask and the dequantized elements where it is set."""
    dense = blockwise_shift_scale(sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask.astype(bool)]


def lut_to_sparse(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: Array | None = None
) -> tuple[Array, Array]:
    """The mask, widened along the vector axis, and the looked-up elements where it is set."""
    dense = lut_to_dense(sparse_to_dense(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1:
        assert vector_axis is not None  # as above
        mask = np.repeat(mask, lut.shape[-1], int(vector_axis))
    return mask, dense[mask.astype(bool)]


OPERATORS: dict[str, Callable] = {
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_sparse_to_dense": sparse_to_dense,
    "constexpr_sparse_blockwise_shift_scale": sparse_blockwise_shift_scale,
    "constexpr_lut_to_sparse": lut_to_sparse,
    "constexpr_cast": lambda source_val, output_dtype: source_val,
}
