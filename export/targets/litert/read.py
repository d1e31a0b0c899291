"""The integers of a .tflite, read back by their names: decoder.Weights the other way round."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema

from phi3mobile.errors import InputError
from phi3mobile.export.integers import HEAD, Integers
from phi3mobile.export.recipe import EMBEDDING
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.form import Form
from phi3mobile.models.quantized import Packed


class TfliteIntegers(Integers):
    """Of the program at `path`, mapped."""

    def __init__(self, path: Path, config: DecoderConfig) -> None:
        self.config = config
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._model = schema.Model.GetRootAs(self._data)
        graph = self._model.Subgraphs(0)  # all have the same weights
        self._tensors = [graph.Tensors(index) for index in range(graph.TensorsLength())]
        self._named = {tensor.Name().decode(): tensor for tensor in self._tensors}
        if missing := [name for name in (*self.names(), HEAD) if self._stored(name) not in self._named]:
            raise InputError(f"{path} lacks {', '.join(missing[:6])}; export it again")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._named[self._stored(name)].ShapeAsNumpy().tolist())

    def form_of(self, name: str) -> Form | None:
        tensor = self._named[self._stored(name)]
        if tensor.Type() == schema.TensorType.FLOAT32:
            return None
        if tensor.Type() == schema.TensorType.INT8:
            return Form(8, self.shape(name)[1])
        return Form(4, _blockwise(tensor).BlockSize(), f"{name}.offsets" in self._named)

    def tensor(self, name: str) -> Packed | torch.Tensor:
        form, shape, data = self.form_of(name), self.shape(name), self._bytes(self._named[self._stored(name)])
        if form is None:
            return data.view(torch.float32).view(shape)
        if form.bits == 8:
            return self._int8(self._stored(name))
        codes = (data ^ 0x88).view(shape[0], -1)
        scales = self._bytes(self._tensors[_blockwise(self._named[name]).Scales()]).view(torch.float16)
        offsets = self._int8(f"{name}.offsets") if form.offsets else None
        return Packed(4, form.group, codes, scales.view(shape[0], -1).bfloat16(), offsets=offsets)

    def _int8(self, stored: str) -> Packed:
        tensor = self._named[stored]
        rows, width = tensor.ShapeAsNumpy().tolist()
        scales = torch.from_numpy(tensor.Quantization().ScaleAsNumpy().copy()).view(rows, 1)
        return Packed(8, width, self._bytes(tensor).view(torch.int8).view(rows, width), scales)

    def _stored(self, name: str) -> str:
        """A head may share the embedding's table."""
        return EMBEDDING if name == HEAD and HEAD not in self._named else name

    def _bytes(self, tensor: schema.Tensor) -> torch.Tensor:
        buffer = self._model.Buffers(tensor.Buffer())
        return torch.from_numpy(np.frombuffer(self._data, np.uint8, buffer.Size(), buffer.Offset()).copy())


def _blockwise(tensor: schema.Tensor) -> schema.BlockwiseQuantization:
    details, found = tensor.Quantization().Details(), schema.BlockwiseQuantization()
    found.Init(details.Bytes, details.Pos)
    return found
