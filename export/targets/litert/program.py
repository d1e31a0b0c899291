"""A .tflite file written directly: subgraphs of operators over tensors, whose weights lie behind the flatbuffer.

The flatbuffer holds the graphs and small constants; every weight is a range of the same file after it, made and written when
its turn comes. So the file may be larger than memory and than 2 GB, and signatures share weights by naming the same range.
Format: LiteRT's tflite/converter/schema/schema.fbs (Buffer.offset and .size); classes from ai_edge_litert.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_IDENTIFIER = b"TFL3"
_ALIGNMENT = 64
DYNAMIC = -1
_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int32": schema.TensorType.INT32,
    "int8": schema.TensorType.INT8,
    "int4": schema.TensorType.INT4,
    "bool": schema.TensorType.BOOL,
}
_BITS = {"float32": 32, "float16": 16, "int32": 32, "int8": 8, "int4": 4}
_INT4_IS_KNOWN = {"FULLY_CONNECTED": 12, "EMBEDDING_LOOKUP": 4}  # since these versions


@dataclass(frozen=True)
class Value:
    """A tensor of one graph. DYNAMIC in `shape` marks the one size that the runtime tells; the file says 1 there."""

    index: int
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class _Stored:
    """A range of bytes behind the flatbuffer."""

    buffer: int
    size: int
    make: Callable[[], np.ndarray]


class ProgramFile:
    """The constants, weights and operators of graphs, one a signature; `write` makes a file of some of them."""

    def __init__(self) -> None:
        self._buffers = [schema.BufferT()]  # the first means: no data
        self._stored: dict[str, _Stored] = {}
        self._inline: dict[tuple[str, bytes], int] = {}
        self._codes: dict[str, int] = {}

    def operators(self) -> list[str]:
        return sorted(self._codes)

    def stored(self, name: str, size: int, make: Callable[[], np.ndarray]) -> int:
        """The buffer of `size` bytes called `name`, which `make` computes when the file is written."""
        if name not in self._stored:
            self._buffers.append(schema.BufferT())
            self._stored[name] = _Stored(len(self._buffers) - 1, size, make)
        return self._stored[name].buffer

    def inline(self, array: np.ndarray) -> int:
        """The buffer of a small constant."""
        key = (str(array.dtype), array.tobytes())
        if key not in self._inline:
            self._buffers.append(schema.BufferT(data=np.frombuffer(key[1], np.uint8)))
            self._inline[key] = len(self._buffers) - 1
        return self._inline[key]

    def code(self, operator: str) -> int:
        return self._codes.setdefault(operator, len(self._codes))

    def write(self, path: Path, graphs: list[Graph], progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """The graphs first, then the weights one after the other; returns where these begin."""
        head = self._head(graphs)
        with path.open("wb") as file:
            file.write(head)
            for done, (name, stored) in enumerate(self._stored.items()):
                file.write(bytes(self._buffers[stored.buffer].offset - file.tell()))
                data = np.ascontiguousarray(stored.make())
                assert data.nbytes == stored.size, (name, data.nbytes, stored.size)
                data.tofile(file)
                progress(done + 1, len(self._stored))
        return len(head)

    def write_again(self, path: Path, graphs: list[Graph], other: Path, begin: int) -> None:
        """Other graphs with the weights that stand in the file `other` from `begin` on."""
        head = self._head(graphs)
        with path.open("wb") as file, other.open("rb") as source:
            file.write(head)
            source.seek(begin)
            shutil.copyfileobj(source, file, 1 << 24)

    def _head(self, graphs: list[Graph]) -> bytes:
        """The flatbuffer, up to where the weights begin."""
        self._place(_ALIGNMENT)
        base = _aligned(len(self._packed(graphs)))
        self._place(base)
        head = self._packed(graphs)
        assert len(head) <= base  # numbers of a fixed width: their values don't change its length
        return head.ljust(base, b"\0")

    def _place(self, base: int) -> None:
        for stored in self._stored.values():
            buffer = self._buffers[stored.buffer]
            buffer.offset, buffer.size = base, stored.size
            base = _aligned(base + stored.size)

    def _packed(self, graphs: list[Graph]) -> bytes:
        builder = flatbuffers.Builder(1 << 20)
        model = schema.ModelT(
            version=3,
            operatorCodes=[_operator_code(name) for name in self._codes],
            buffers=self._buffers,
            subgraphs=[graph.packable() for graph in graphs],
            description="phi3mobile",
            signatureDefs=[graph.signature(index) for index, graph in enumerate(graphs)],
        )
        builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
        return bytes(builder.Output())


@dataclass
class Graph:
    """One signature. Tensors belong to a graph, their data to the program."""

    program: ProgramFile
    name: str
    tensors: list[schema.TensorT] = field(default_factory=list)
    operators: list[schema.OperatorT] = field(default_factory=list)
    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    constants: dict[tuple[int, tuple[int, ...], str], Value] = field(default_factory=dict)

    def input(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> Value:
        self.inputs[name] = self._tensor(shape, dtype, name=f"{self.name}_{name}")
        return self.inputs[name]

    def output(self, name: str, value: Value) -> None:
        self.outputs[name] = value

    def constant(self, array: np.ndarray) -> Value:
        return self._shared(self.program.inline(array), array.shape, str(array.dtype), None, None)

    def stored(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        make: Callable[[], np.ndarray],
        quantization: schema.QuantizationParametersT | None = None,
    ) -> Value:
        """The weight called `name`; `make` computes it, as bytes or as an array, when the file is written."""
        size = math.prod(shape) * _BITS[dtype] // 8
        return self._shared(self.program.stored(name, size, make), shape, dtype, quantization, name)

    def _shared(self, buffer: int, shape: tuple[int, ...], dtype: str, quantization: Any, name: str | None) -> Value:
        """The tensor over a buffer: one a graph, so that what is used twice is packed once."""
        key = (buffer, shape, dtype)
        if key not in self.constants:
            self.constants[key] = self._tensor(shape, dtype, buffer, quantization, name)
        return self.constants[key]

    def apply(
        self, operator: str, inputs: list[Value], shape: tuple[int, ...], options: Any = None, dtype: str | None = None
    ) -> Value:
        """One operator with one result of `shape`, of the first input's type unless told. `options`: the schema's object."""
        return self.split(operator, inputs, [shape], options, dtype)[0]

    def split(
        self, operator: str, inputs: list[Value], shapes: list[tuple[int, ...]], options: Any = None, dtype: str | None = None
    ) -> list[Value]:
        """One operator with several results."""
        values = [self._tensor(shape, dtype or inputs[0].dtype) for shape in shapes]
        kind = schema.BuiltinOptions.NONE
        if options is not None:
            kind = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=self.program.code(operator),
                inputs=[value.index for value in inputs],
                outputs=[value.index for value in values],
                builtinOptionsType=kind,
                builtinOptions=options,
            )
        )
        return values

    def packable(self) -> schema.SubGraphT:
        return schema.SubGraphT(
            tensors=self.tensors,
            inputs=[v.index for v in self.inputs.values()],
            outputs=[v.index for v in self.outputs.values()],
            operators=self.operators,
            name=self.name,
        )

    def signature(self, index: int) -> schema.SignatureDefT:
        inputs, outputs = (
            [schema.TensorMapT(name, value.index) for name, value in values.items()] for values in (self.inputs, self.outputs)
        )
        return schema.SignatureDefT(inputs, outputs, self.name, index)

    def _tensor(
        self, shape: tuple[int, ...], dtype: str, buffer: int = 0, quantization: Any = None, name: str | None = None
    ) -> Value:
        index = len(self.tensors)
        self.tensors.append(
            schema.TensorT(
                shape=[1 if size == DYNAMIC else size for size in shape],
                type=_TYPES[dtype],
                buffer=buffer,
                name=name or f"t{index}",
                quantization=quantization,
                hasRank=True,
                shapeSignature=list(shape) if DYNAMIC in shape else None,
            )
        )
        return Value(index, tuple(shape), dtype)


def _operator_code(name: str) -> schema.OperatorCodeT:
    code = getattr(schema.BuiltinOperator, name)
    return schema.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), version=_INT4_IS_KNOWN.get(name, 1), builtinCode=code)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
