"""Constants: weight files mapped, never read whole; compressed weights decoded when needed and kept under a limit."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np

from phi3mobile.engines.mil.dtypes import unpack
from phi3mobile.engines.mil.spec import Blob
from phi3mobile.errors import InputError

_SENTINEL = 0xDEADBEEF
_HEADER = 64  # bytes of a blob's record: sentinel, type, size, offset of the data, bits of padding


class WeightFiles:
    """Weight files of one program, mapped into memory on first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: dict[str, np.ndarray] = {}

    def read(self, blob: Blob) -> np.ndarray:
        """The constant as stored (float16 stays so; 4 bit become int8). Raises InputError for a missing or damaged file."""
        data = self._map(blob.file)
        record = data[blob.offset : blob.offset + _HEADER]
        if len(record) < _HEADER:
            raise InputError(f"{blob.file} is shorter than the program says; copy the whole .mlpackage again")
        sentinel, _, size, offset = struct.unpack_from("<IIQQ", record.tobytes())
        if sentinel != _SENTINEL or offset + size > len(data):
            raise InputError(f"{blob.file} has no weights at {blob.offset}: not this program's file; copy the .mlpackage again")
        return unpack(data[offset : offset + size], blob.type)

    def _map(self, name: str) -> np.ndarray:
        if name not in self._maps:
            path = self._folder / name.removeprefix("@model_path/")
            try:
                with path.open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise InputError(f"{path} can't be read ({error}); copy the whole .mlpackage again") from None
            self._maps[name] = np.frombuffer(mapped, np.uint8)
        return self._maps[name]


class Constants:
    """Decoded constants by what made them, at most `limit` bytes; what does not fit is decoded on every use.

    A forward reads all weights in turn, so dropping the oldest would drop each before its next use: the first ones stay.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self.bytes = limit, 0
        self._kept: dict[Hashable, np.ndarray] = {}

    def get(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The kept array, or a new one."""
        if key in self._kept:
            return self._kept[key]
        value = make()
        size = getattr(value, "nbytes", 0)
        if self.bytes + size <= self._limit:
            self._kept[key], self.bytes = value, self.bytes + size
        return value
