"""Packed matrices as Core AI constants: the same integers as every target, dequantized by the operator that keeps them so."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from phi3mobile.errors import InputError
from phi3mobile.export.packed import EMBEDDING, PackedModel
from phi3mobile.export.targets.coreai import door
from phi3mobile.export.targets.coreai.door import Program, Value
from phi3mobile.models.quantized import Packed
from phi3mobile.progress import Progress, silent

BLOCK = 32  # columns of a scale: what GPUs have fast kernels for
_MAPPED = 1 << 16  # bytes from which a constant lies in a file until the program is written
_ALIGNMENT = 64


class Matrices:
    """The model's tensors in a program: quantized one after the other while the first function is written.

    dtype: of scales, vectors and all that is computed, "float16"; "float32" makes the twin that checks the rewriting.
    scratch: a file for their bytes, so that a 3.8B model never stands in memory.
    """

    def __init__(self, packed: PackedModel, program: Program, dtype: str, scratch: Path, progress: Progress = silent) -> None:
        self.packed, self.program, self.dtype, self._scratch, self._progress = packed, program, dtype, scratch, progress
        self._written, self._count = 0, 2 + sum(len(tensor.shape) == 2 for tensor in packed.config.tensors().values())
        self._tensor = lru_cache(maxsize=1)(packed.matrix)  # codes, scales and parts of one matrix are asked for in turn

    def vector(self, name: str) -> Value:
        """A norm's weight [K]."""
        return self._floats(name, self.packed.shape(name), lambda: self.packed.vector(name))

    def table(self, name: str, values: torch.Tensor) -> Value:
        """A constant of the program's own."""
        return self._floats(name, tuple(values.shape), lambda: values)

    def embedded(self, tokens: Value) -> Value:
        """Rows [T, K] of the 8-bit table at int32 [T, 1]: the rows are dequantized, never the table."""
        rows, width = self.packed.shape(EMBEDDING)
        if self.packed.matrix_form(EMBEDDING).bits != 8:
            raise InputError(f"{EMBEDDING} has {self.packed.matrix_form(EMBEDDING).bits} bits; Core AI takes 8 there")
        codes = self._codes(EMBEDDING, EMBEDDING, slice(None), (rows, width), "int8")
        scales = self._floats(f"{EMBEDDING}/scales", (rows, 1), lambda: self._tensor(EMBEDDING).scales)
        return door.mul(door.cast(door.rows_at(codes, tokens), self.dtype), door.rows_at(scales, tokens))

    def linear(self, x: Value, name: str, part: str = "", rows: slice = slice(None)) -> Value:
        """x [1, T, K] -> [1, T, N], of some rows of the matrix, stored as `part` of it."""
        if self.packed.has_bias(name):
            raise InputError(f"{name} has a bias: recipe {self.packed.recipe.name} takes layers without")
        return door.matmul(x, door.transpose(self._matrix(name, f"{name}/{part}" if part else name, rows), 1, 0))

    def _matrix(self, name: str, stored: str, rows: slice) -> Value:
        """[N, K]."""
        bits, group, has_offsets = self.packed.matrix_form(name)
        count, width = self.packed.shape(name)
        if (bits == 4 and group != BLOCK) or width % BLOCK:
            raise InputError(f"{name} has a scale for {group} of {width} columns; Core AI takes blocks of {BLOCK}")
        count = len(range(count)[rows])
        shape = count, width // BLOCK

        def scales() -> torch.Tensor:
            return self._tensor(name).scales[rows].expand(shape) if bits == 8 else self._tensor(name).scales[rows]

        def offsets() -> torch.Tensor:
            own = self._tensor(name).offsets
            assert own is not None, name
            return own.dequantized()[rows]

        codes = self._codes(name, stored, rows, (count, width), "int4" if bits == 4 else "int8")
        given = self._floats(f"{stored}/offsets", shape, offsets) if has_offsets else None
        return door.dequantized(codes, self._floats(f"{stored}/scales", shape, scales), given)

    def _codes(self, name: str, stored: str, rows: slice, shape: tuple[int, int], dtype: str) -> Value:
        def value() -> np.ndarray:
            self._written += 1
            self._progress("weights", self._written, self._count)
            part = self._tensor(name).codes[rows].contiguous().numpy()
            return self._mapped(signed_nibbles(part) if dtype == "int4" else part)

        return self.program.resource(f"{stored}/codes", shape, dtype, value)

    def _floats(self, name: str, shape: tuple[int, ...], value) -> Value:
        kind = getattr(torch, self.dtype)
        return self.program.resource(name, shape, self.dtype, lambda: self._mapped(value().to(kind).contiguous().numpy()))

    def _mapped(self, values: np.ndarray) -> np.ndarray:
        """The same values, in the scratch file if they are many."""
        if values.nbytes < _MAPPED:
            return values
        with self._scratch.open("ab") as file:
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            offset = file.tell()
            file.write(values.data)
        return np.memmap(self._scratch, values.dtype, "r", offset, values.shape)


def signed_nibbles(codes: np.ndarray) -> np.ndarray:
    """Two's complement, even column in the low nibble: ours are the codes plus 8. Its own inverse."""
    return codes ^ np.uint8(0x88)


def packed_codes(packed: Packed) -> np.ndarray:
    """A matrix's bytes as a program holds them."""
    codes = packed.codes.numpy()
    return signed_nibbles(codes) if packed.bits == 4 else codes
