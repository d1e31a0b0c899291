"""The integers of an .aimodel, read back by their names: matrices.py the other way round.

A program keeps float16: 8-bit scales, norms and offsets are those that were packed, rounded.
"""

from __future__ import annotations

import mmap

import numpy as np
import torch

from phi3mobile.bundle import Bundle
from phi3mobile.errors import InputError
from phi3mobile.export.integers import HEAD, Integers
from phi3mobile.export.recipe import EMBEDDING
from phi3mobile.export.targets.coreai.decoder import part_rows
from phi3mobile.export.targets.coreai.matrices import BLOCK
from phi3mobile.export.targets.coreai.mlirb import resources
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.form import Form
from phi3mobile.models.quantized import Packed, pack_nibbles
from phi3mobile.models.tensors import QKV


class AimodelIntegers(Integers):
    """Of a bundle's program, mapped."""

    rounding = 2.0**-10

    def __init__(self, bundle: Bundle, config: DecoderConfig) -> None:
        self.config, self._path = config, bundle.program / "main.mlirb"
        self._same, self._groups = (bundle.manifest["runtime"][key] for key in ("same", "groups"))
        self._found = resources(self._path)
        with self._path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._stacked = (
            {config.tensor(QKV, layer).name for layer in range(config.num_hidden_layers)} if part_rows(config) else set()
        )
        wanted = [f"{name}{self._parts(name)[0]}" for name in (*self.names(), HEAD)]
        if missing := [name for name in wanted if not self._has(name) and not self._has(f"{name}/codes")]:
            raise InputError(f"{bundle.program} lacks {', '.join(missing[:6])}; export it again")

    def shape(self, name: str) -> tuple[int, ...]:
        return (self.config.vocab_size, self.config.hidden_size) if name == HEAD else self.config.tensors()[name].shape

    def form_of(self, name: str) -> Form | None:
        first = f"{name}{self._parts(name)[0]}"
        if not self._has(f"{first}/codes"):
            return None
        rows, width = self.shape(name)
        if name == EMBEDDING:  # integers of 4 bits are kept in 8 there
            eight = name not in self._groups
        else:
            eight = sum(self._length(f"{name}{part}/codes") for part in self._parts(name)) == rows * width
        return Form(8, width) if eight else Form(4, self._groups.get(name, BLOCK), self._has(f"{first}/offsets"))

    def tensor(self, name: str) -> Packed | torch.Tensor:
        form, shape = self.form_of(name), self.shape(name)
        if form is None:
            return self._floats(name).view(shape)
        codes, scales = torch.from_numpy(self._joined(name, "codes")), self._grouped(name, "scales", form)
        if form.bits == 8:
            return Packed(8, form.group, codes.view(torch.int8).view(shape), scales)
        offsets = None
        if form.offsets:  # float16: each is its own scale here
            values = self._grouped(name, "offsets", form)
            offsets = Packed(8, 1, torch.ones(values.shape, dtype=torch.int8), values)
        packed = pack_nibbles(codes.view(torch.int8).view(shape)) if name == EMBEDDING else codes.view(shape[0], -1) ^ 0x88
        return Packed(4, form.group, packed, scales.bfloat16(), offsets=offsets)

    def _grouped(self, name: str, what: str, form: Form) -> torch.Tensor:
        """One value a group, of those that the program repeats for blocks. InputError: it does not repeat them."""
        rows, width = self.shape(name)
        values = self._floats(name, what).view(rows, width // form.group, -1)
        if not torch.equal(values, values[:, :, :1].expand_as(values)):
            raise InputError(f"{self._path} has several {what} in a group of {name}; export it again")
        return values[:, :, 0].contiguous()

    def _parts(self, name: str) -> list[str]:
        """What its constants' names have behind the tensor's."""
        return [f"/{part}" for part in part_rows(self.config)] if name in self._stacked else [""]

    def _joined(self, name: str, what: str) -> np.ndarray:
        return np.concatenate([self._bytes(f"{name}{part}/{what}") for part in self._parts(name)])

    def _floats(self, name: str, what: str = "") -> torch.Tensor:
        values = self._joined(name, what) if what else self._bytes(name)
        return torch.from_numpy(values).view(torch.float16).float()

    def _has(self, name: str) -> bool:
        return self._same.get(name, name) in self._found

    def _length(self, name: str) -> int:
        return self._found[self._same.get(name, name)][1]

    def _bytes(self, name: str) -> np.ndarray:
        at, length = self._found[self._same.get(name, name)]
        return np.frombuffer(self._data, np.uint8, length, at).copy()
