"""Packed matrices as Core AI constants: the same integers as every target, dequantized by the operator that keeps them so."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from phi3mobile.errors import InputError
from phi3mobile.export.packed import EMBEDDING, PackedModel
from phi3mobile.export.targets.coreai import door
from phi3mobile.export.targets.coreai.door import Program, Value
from phi3mobile.models.form import Form
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
        self.groups: dict[str, int] = {}  # columns of a scale, of a 4-bit table and of matrices with more than BLOCK
        self._written, self._count = 0, 2 + sum(len(tensor.shape) == 2 for tensor in packed.config.tensors().values())
        self._tensor = lru_cache(maxsize=1)(packed.matrix)  # codes, scales and parts of one matrix are asked for in turn

    def vector(self, name: str) -> Value:
        """A norm's weight [K]."""
        return self._floats(name, self.packed.shape(name), lambda: self.packed.vector(name))

    def table(self, name: str, values: torch.Tensor) -> Value:
        """A constant of the program's own."""
        return self._floats(name, tuple(values.shape), lambda: values)

    def embedded(self, tokens: Value) -> Value:
        """Rows [T, K] of the table at int32 [T, 1]: the rows are dequantized, never the table.

        Integers of 4 bits are kept in 8: no device is known to gather smaller ones.
        """
        name, (rows, width) = EMBEDDING, self.packed.shape(EMBEDDING)
        form = self._form(name)
        columns = width // form.group
        codes = self._resource(f"{name}/codes", (rows, width), "int8", lambda: self._tensor(name).unpacked().numpy())
        scales = self._floats(f"{name}/scales", (rows, columns), lambda: self._tensor(name).scales)
        blocks = door.reshape(door.cast(door.rows_at(codes, tokens), self.dtype), (None, columns, width // columns))
        x = door.mul(blocks, door.expanded(door.rows_at(scales, tokens), 2))
        if form.offsets:
            offsets = self._floats(f"{name}/offsets", (rows, columns), lambda: self._offsets(name))
            x = door.add(x, door.expanded(door.rows_at(offsets, tokens), 2))
        return door.reshape(x, (None, width))

    def linear(self, x: Value, name: str, part: str = "", rows: slice = slice(None)) -> Value:
        """x [1, T, K] -> [1, T, N], of some rows of the matrix, stored as `part` of it."""
        if self.packed.has_bias(name):
            raise InputError(f"{name} has a bias: recipe {self.packed.recipe.name} takes layers without")
        return door.matmul(x, door.transpose(self._matrix(name, f"{name}/{part}" if part else name, rows), 1, 0))

    def _matrix(self, name: str, stored: str, rows: slice) -> Value:
        """[N, K]."""
        form = self._form(name)
        count, width = self.packed.shape(name)
        count = len(range(count)[rows])
        shape = count, width // BLOCK

        def codes() -> np.ndarray:
            part = self._tensor(name).codes[rows].contiguous().numpy()
            return signed_nibbles(part) if form.bits == 4 else part

        data = self._resource(f"{stored}/codes", (count, width), "int4" if form.bits == 4 else "int8", codes)
        repeated = lambda values: in_blocks(values[rows], width)  # noqa: E731
        scales = self._floats(f"{stored}/scales", shape, lambda: repeated(self._tensor(name).scales))
        given = self._floats(f"{stored}/offsets", shape, lambda: repeated(self._offsets(name))) if form.offsets else None
        return door.dequantized(data, scales, given)

    def _form(self, name: str) -> Form:
        """InputError for scales of parts of a block."""
        form, width = self.packed.matrix_form(name), self.packed.shape(name)[1]
        if form.group % BLOCK or width % form.group:
            raise InputError(f"{name} has a scale for {form.group} of {width} columns; Core AI takes multiples of {BLOCK}")
        if form.bits == 4 and (form.group != BLOCK or name == EMBEDDING):
            self.groups[name] = form.group
        return form

    def _offsets(self, name: str) -> torch.Tensor:
        own = self._tensor(name).offsets
        assert own is not None, name
        return own.dequantized()

    def _resource(self, name: str, shape: tuple[int, int], dtype: str, codes: Callable[[], np.ndarray]) -> Value:
        def value() -> np.ndarray:
            self._written += 1
            self._progress("weights", self._written, self._count)
            return self._mapped(codes())

        return self.program.resource(name, shape, dtype, value)

    def _floats(self, name: str, shape: tuple[int, ...], value: Callable[[], torch.Tensor]) -> Value:
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


def in_blocks(values: torch.Tensor, width: int) -> torch.Tensor:
    """Values [N, groups] of rows of `width` columns, repeated for the blocks of each group; 8 bits: one group."""
    return values.repeat_interleave(width // BLOCK // values.shape[1], 1)


def signed_nibbles(codes: np.ndarray) -> np.ndarray:
    """Two's complement, even column in the low nibble: ours are the codes plus 8. Its own inverse."""
    return codes ^ np.uint8(0x88)
