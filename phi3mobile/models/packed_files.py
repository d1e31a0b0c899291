"""A quantized checkpoint's files as if each packed layer were one tensor: what Checkpoint reads by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from phi3mobile.errors import InputError
from phi3mobile.models.grid import Grid
from phi3mobile.models.packed_layers import Layers


class PackedWeight:
    """One weight [N, K] in several stored tensors. It stands where an open safetensors file does, for its own name."""

    def __init__(self, module: str, layers: Layers, where: Mapping[str, Any]) -> None:
        """where: file of each stored tensor. InputError if one is missing."""
        self.module, self.layers = module, layers
        names = {end: f"{module}.{end}" for end in (*layers.ends, *layers.optional)}
        if missing := [name for end, name in names.items() if end in layers.ends and name not in where]:
            raise InputError(f"{layers.method}: tensor {missing[0]} is missing beside {module}.{layers.ends[0]}")
        self._where = {end: where[name] for end, name in names.items() if name in where}

    def stored(self) -> Iterator[str]:
        """Names of its tensors in the files."""
        return (f"{self.module}.{end}" for end in self._where)

    def read(self) -> Grid | torch.Tensor:
        """Its integers, or values [N, K] where they are on no grid."""
        parts = {end: file.get_tensor(f"{self.module}.{end}") for end, file in self._where.items()}
        try:
            return self.layers.read(parts)
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"{self.layers.method}: {self.module} can't be unpacked ({reason}): is it damaged?") from None

    def bits(self) -> float:
        """Bits per weight, scales included."""
        rows, width = self.get_shape()
        sizes = (self._file_slice(end) for end in self._where)
        return sum(_BITS[one.get_dtype()] * math.prod(one.get_shape()) for one in sizes) / (rows * width)

    # As an open file and as a slice of it

    def get_tensor(self, _: str) -> torch.Tensor:
        found = self.read()
        return found.values() if isinstance(found, Grid) else found

    def get_slice(self, _: str) -> PackedWeight:
        return self

    def get_shape(self) -> tuple[int, int]:
        shapes = {end: tuple(self._file_slice(end).get_shape()) for end in self._where}
        small = {end: file.get_tensor(f"{self.module}.{end}") for end, file in self._where.items() if len(shapes[end]) == 1}
        return self.layers.shape(shapes, small)

    def get_dtype(self) -> str:
        return "F32"

    def _file_slice(self, end: str) -> Any:
        return self._where[end].get_slice(f"{self.module}.{end}")


_BITS = {"I64": 64, "I32": 32, "F32": 32, "F16": 16, "BF16": 16, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}


def packed_weights(where: Mapping[str, Any], layers: Layers) -> dict[str, Any]:
    """Name -> file, as `where`, with each packed weight in its tensors' place, under the name that a float one would have."""
    found = dict(where)
    marker = f".{layers.ends[0]}"
    others = [end for end in layers.ends if end != layers.ends[0]]
    for name in [name for name in where if name.endswith(marker)]:
        module = name.removesuffix(marker)
        if marker == ".weight" and not any(f"{module}.{end}" in where for end in others):
            continue  # a weight in float
        weight = PackedWeight(module, layers, where)
        for stored in weight.stored():
            found.pop(stored, None)
        found[f"{module}.weight"] = weight
    return found
