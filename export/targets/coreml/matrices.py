"""Packed matrices as Core ML weights: the same integers as every target, dequantized by the operator that keeps them packed."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var, types

from phi3mobile.export.targets.coreml.package import Weights
from phi3mobile.models.form import Form
from phi3mobile.models.quantized import Packed
from phi3mobile.models.tensors import Tensor


class PackedTensors(Protocol):
    """A PackedModel or a PackedVision."""

    def matrix(self, name: str) -> Packed: ...

    def matrix_form(self, name: str) -> Form: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def vector(self, name: str) -> torch.Tensor: ...

    def has_bias(self, name: str) -> bool: ...


class Matrices:
    """The model's tensors for MIL: declared while the graph is built, quantized one after the other when it is written."""

    def __init__(self, packed: PackedTensors, weights: Weights) -> None:
        self.packed, self.weights = packed, weights
        self._tensor = lru_cache(maxsize=1)(packed.matrix)  # codes and scales, and parts of one matrix, are asked for in turn

    def vector(self, tensor: str, shape: tuple[int, ...] = (-1,)) -> Var:
        """A norm's weight or bias, float16, as `shape`."""
        stored = self.packed.shape(tensor)
        shape = tuple(stored[0] if size == -1 else size for size in shape)
        return self.constant(tensor, shape, lambda: self.packed.vector(tensor).to(torch.float16).numpy().reshape(shape))

    def constant(self, name: str, shape: tuple[int, ...], value: Callable[[], np.ndarray]) -> Var:
        """Any float16 constant that functions share."""
        return self.weights.const(identifier(name), shape, types.fp16, value)

    def matrix(self, tensor: str, rows: slice = slice(None), trailing: int = 0) -> Var:
        """float16 [N, K] (with `trailing` dimensions of 1 behind), of some `rows`: constexpr over int4 or int8 codes."""
        bits, group, has_offsets, _ = self.packed.matrix_form(tensor)
        count, width = self.packed.shape(tensor)
        part, name = self._part(tensor, rows)
        count, columns, ones = len(range(count)[rows]), 1 if bits == 8 else width // group, (1,) * trailing

        def codes() -> np.ndarray:
            values = part().unpacked().numpy().reshape(count, width, *ones)
            return values.astype(types.np_int4_dtype, copy=False) if bits == 4 else values

        def scales() -> np.ndarray:
            return part().scales.to(torch.float16).numpy().reshape(count, columns, *ones)

        def offsets() -> np.ndarray:
            return code_offsets(part()).numpy().reshape(count, columns, *ones)

        data = self.weights.const(f"{name}_codes", (count, width, *ones), types.int4 if bits == 4 else types.int8, codes)
        scale = self.weights.const(f"{name}_scales", (count, columns, *ones), types.fp16, scales)
        given = {"offset": self.weights.const(f"{name}_offsets", scale.shape, types.fp16, offsets)} if has_offsets else {}
        return mb.constexpr_blockwise_shift_scale(data=data, scale=scale, name=name, **given)

    def bias(self, tensor: str, rows: slice = slice(None)) -> Var:
        """The bias [N] of the matrix `tensor`; zeros, one constant for all of a size, where there is none."""
        count = len(range(self.packed.shape(tensor)[0])[rows])
        if not self.packed.has_bias(tensor):
            return self.constant(f"no_bias_{count}", (count,), lambda: np.zeros(count, np.float16))
        part, name = self._part(tensor, rows)
        least = torch.finfo(torch.float16).min  # masked ids carry float32's least

        def values() -> np.ndarray:
            own = part().bias
            assert own is not None, tensor
            return own.clamp(min=least).to(torch.float16).numpy()

        return self.constant(f"{name}_bias", (count,), values)

    def linear(self, x: Var, tensor: str, rows: slice = slice(None), name: str | None = None) -> Var:
        """x [1, T, K] -> [1, T, N], of some rows of the matrix."""
        weight, bias = self.matrix(tensor, rows), self.bias(tensor, rows)
        return mb.linear(x=x, weight=weight, bias=bias, **({} if name is None else {"name": name}))

    def _part(self, tensor: str, rows: slice) -> tuple[Callable[[], Packed], str]:
        """The rows, when asked for, and a name for them."""
        name = identifier(tensor)
        if rows == slice(None):
            return lambda: self._tensor(tensor), name
        start, _, step = rows.indices(self.packed.shape(tensor)[0])
        return lambda: self._tensor(tensor).rows(rows), f"{name}_from{start}" + (f"_by{step}" if step > 1 else "")


def code_offsets(packed: Packed) -> torch.Tensor:
    """float16 [N, K/group]: what Core ML takes off the codes before it multiplies by the scales."""
    assert packed.offsets is not None, packed.form
    return (-packed.offsets.dequantized() / packed.scales.float()).half()


def part_rows(tensor: Tensor, part: str) -> slice:
    """Which rows of a fused weight are its `part`, where they are a slice."""
    rows = tensor.rows[part]
    assert isinstance(rows, slice), f"{tensor.name} has {part} in a list of rows"
    return rows


def identifier(name: str) -> str:
    return name.removeprefix("model.").removesuffix(".weight").replace(".", "_")  # MIL names hold no dots
