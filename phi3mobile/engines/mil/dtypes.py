"""Element types of MIL, and how numpy holds them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}


@dataclass(frozen=True)
class Type:
    """Element type in MIL's names in lower case ("float16", "int4", "string", "list", ...), and shape; None: not known."""

    dtype: str
    shape: tuple[int | None, ...] = ()

    @property
    def elements(self) -> int | None:
        known = [size for size in self.shape if size is not None]
        return math.prod(known) if len(known) == len(self.shape) else None

    @property
    def known_shape(self) -> tuple[int, ...]:
        """The shape of a value that has one, as constants do. Raises ValueError for a size that only a run knows."""
        known = tuple(size for size in self.shape if size is not None)
        if len(known) < len(self.shape):
            raise ValueError(f"a constant of shape {self.shape}")
        return known


def storage(dtype: str) -> str:
    """The numpy type for a MIL type: below 8 bits it is 8 bits, and bfloat16 is float32."""
    if dtype in _BITS:
        return "int8" if dtype == "int4" else "uint8"
    return {"bfloat16": "float32", "unused_type": "float32"}.get(dtype, dtype)


def unpack(data: np.ndarray, kind: Type) -> np.ndarray:
    """Bytes uint8 [N] -> the array of that type; elements below 8 bits are packed, lowest bits first, and become 8 bit."""
    shape = kind.known_shape
    count = math.prod(shape)
    if kind.dtype == "bfloat16":
        wide = np.frombuffer(data, np.uint16, count).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    if kind.dtype not in _BITS:
        return np.frombuffer(data, np.dtype(kind.dtype), count).reshape(shape)
    bits = _BITS[kind.dtype]
    if bits == 4:
        values = np.empty((len(data), 2), np.uint8)
        np.bitwise_and(data, 15, out=values[:, 0])
        np.right_shift(data, 4, out=values[:, 1])
        values = values.reshape(-1)[:count]
    else:
        flat = np.unpackbits(data.view(np.uint8), bitorder="little", count=count * bits).reshape(count, bits)
        values = np.packbits(flat, axis=-1, bitorder="little")[:, 0]
    if kind.dtype == "int4":
        values = values.view(np.int8)
        values = np.subtract(values, (values & 8) << 1, dtype=np.int8)
    return values.reshape(shape)
