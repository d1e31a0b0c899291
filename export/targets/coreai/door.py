"""The only place that touches coreai-core's private `_compiler`, whose names move with every beta: operators, types, files.

The rest of this room sees values with a `type`, and the functions here. Sizes are whole numbers, or None where they are told
when the program runs. Errors of an operator show when the program is left, with its name.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import coreai.authoring  # noqa: F401  first: its dialects import it in a circle
import numpy as np
from coreai._compiler import ir
from coreai._compiler.dialects import _coreai_ops_gen as raw
from coreai._compiler.dialects import coreai as ops
from coreai.authoring import AIProgram, Module

from phi3mobile.errors import InputError
from phi3mobile.files import sha256

Value = Any  # of the program being written
Shape = Sequence[int | None]

BYTECODE, HASH = "main.mlirb", "main.hash"
INPUTS, STATES = 2, 2  # of every function: Apple's engine checks that there are no more

_FLOATS = {"float16": ir.F16Type, "float32": ir.F32Type}
_BITS = {"int4": 4, "int8": 8, "int32": 32}


def version_installed() -> str:
    return version("coreai-core")


class Program:
    """A module of public functions that share constants and private operators; `save` writes it as an .aimodel."""

    def __init__(self) -> None:
        self._module = Module.create()
        self._resources: dict[str, Any] = {}
        self._composites: dict[str, Any] = {}
        self.same: dict[str, list[str]] = {}  # hash -> names of the constants with these bytes, which are stored once

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Functions are made in here; on leaving, the compiler checks and rewrites them."""
        with self._module:
            yield

    def function(
        self,
        name: str,
        inputs: Mapping[str, tuple[Shape, str]],
        states: Mapping[str, tuple[Shape, str]],
        body: Callable[..., Mapping[str, Value]],
    ) -> None:
        """A function of inputs and states (shape and dtype), whose body takes their values and gives outputs and new states.

        InputError for more of either than Apple's engine takes.
        """
        if len(inputs) != INPUTS or len(states) != STATES:
            raise InputError(f"function {name}: {len(inputs)} inputs, {len(states)} states; Core AI's engine takes 2 and 2")
        given = {**inputs, **states}
        types = [_type(*of) for of in given.values()]
        graph = ops.GraphOp(name=name, input_types=types, result_types=[], input_names=list(given))
        with graph.block:
            results = body(*graph.arguments)
        graph.set_outputs_spec_from_dict(OrderedDict(results))
        marks = [{"MutableBuffers.buffer_mutation": ir.StringAttr.get(key)} if key in states else {} for key in given]
        graph.arg_attrs = ir.ArrayAttr.get(
            [
                ir.DictAttr.get({own.name: own.attr for own in had} | mark)
                for had, mark in zip(graph.arg_attrs, marks, strict=True)
            ]
        )

    def resource(self, name: str, shape: Sequence[int], dtype: str, value: Callable[[], np.ndarray]) -> Value:
        """A stored constant. `value`, called once for all functions, gives its bytes; a memory-mapped one stays in its file."""
        if name not in self._resources:
            data = np.ascontiguousarray(value())
            self.same.setdefault(hashlib.sha256(data.data).hexdigest(), []).append(name)
            self._resources[name] = ir.DenseResourceElementsAttr.get_from_buffer(data, name, _type(shape, dtype))
        return raw.ConstantOp(value=self._resources[name]).result

    def composite(
        self, key: str, kind: str, attributes: str, operands: Mapping[str, Value], body: Callable[..., Value]
    ) -> Value:
        """An operator that a device may have a kernel for, with its meaning as a body. `key`: one for all of equal types."""
        if key not in self._composites:
            names = ", ".join(f'"{name}"' for name in operands)
            about = f'input_names = [{names}], op_attrs = {{{attributes}, version = 1 : si64}}, output_names = ["output"]'
            graph = ops.GraphOp(
                name=key,
                input_types=[value.type for value in operands.values()],
                result_types=[],
                input_names=list(operands),
                private=True,
                no_inline=True,
                composite_decl=ir.Attribute.parse(f'#coreai.composite_declaration<"{kind}" = {{{about}}}>'),
                ip=ir.InsertionPoint.at_block_begin(self._module._body),
            )
            with graph.block:
                graph.set_outputs_spec_from_dict(OrderedDict(output=body(*graph.arguments)))
            self._composites[key] = graph
        return self._composites[key](*operands.values())[0]

    def operators(self) -> list[str]:
        """Types of the operators, as the compiler has rewritten them."""
        found: set[str] = set()

        def visit(operation: Any) -> ir.WalkResult:
            found.add(operation.name)
            return ir.WalkResult.ADVANCE

        self._module._mlir_module.operation.walk(visit)
        return sorted(name for name in found if name.startswith("coreai."))

    def save(self, folder: Path) -> None:
        """Write `folder` (an .aimodel that is not there yet). Reads the constants once, and hashes the file in pieces."""
        self._module.verify()
        folder.mkdir()
        AIProgram(self._module)._save_bytecode(folder / BYTECODE)
        (folder / HASH).write_bytes(bytes.fromhex(sha256(folder / BYTECODE)))
        about = {"assetVersion": "2.0", "producer": f"coreai-core {version_installed()}"}
        (folder / "metadata.json").write_text(json.dumps(about, indent=2))


def _type(shape: Shape, dtype: str) -> Any:
    """InputError for what devices can't hold: nothing along an axis, and 64 bits."""
    if 0 in shape:
        raise InputError(f"a value of shape {list(shape)}: Core AI's runtime ends at sizes of 0")
    if dtype not in (*_FLOATS, *_BITS):
        raise InputError(f"a value of {dtype}: Core AI's programs have {', '.join((*_FLOATS, *_BITS))}")
    element = _FLOATS[dtype].get() if dtype in _FLOATS else ir.IntegerType.get_signed(_BITS[dtype])
    dynamic = ir.ShapedType.get_dynamic_size()
    return ir.RankedTensorType.get([dynamic if size is None else size for size in shape], element)


def shape_of(x: Value) -> tuple[int | None, ...]:
    """Sizes of a value; None where they are told when the program runs."""
    dynamic = ir.ShapedType.get_dynamic_size()
    return tuple(None if size == dynamic else size for size in x.type.shape)


def dtype_of(x: Value) -> str:
    return {"f16": "float16", "f32": "float32", "si4": "int4", "si8": "int8", "si32": "int32", "i1": "bool"}[
        str(x.type.element_type)
    ]


def number(value: float, dtype: str) -> Value:
    """A constant of one number, shape []."""
    return ops.constant(np.array(value, dtype))


def zeros(shape: Shape, dtype: str) -> Value:
    """A constant of zeros, kept as one number."""
    of = _type(shape, dtype)
    zero = ir.FloatAttr.get(of.element_type, 0.0) if dtype in _FLOATS else ir.IntegerAttr.get(of.element_type, 0)
    return raw.ConstantOp(value=ir.DenseElementsAttr.get_splat(of, zero)).result


@dataclass(frozen=True)
class Size:
    """A number that follows from the inputs' sizes alone, int32 [1]: the only kind that slices may be at."""

    value: Value

    def __sub__(self, other: Size) -> Size:
        return Size(ops.broadcasting_sub(self.value, other.value))


Place = int | Size


def size(x: Value, axis: int) -> Size:
    """A size of x, told when the program runs."""
    corners = (np.array([at], np.int32) for at in (axis, axis + 1, 1))
    return Size(ops.slice_(ops.cast(ops.get_shape(x), np.int32), *corners))


def _places(parts: Sequence[Place]) -> Value:
    """int32 [rank]. InputError for places that the program computes: compilers for GPU and Neural Engine crash at them."""
    if computed := [part for part in parts if not isinstance(part, int | Size)]:
        raise InputError(f"a slice at {computed[0]}: Core AI's compilers take places from sizes only, not from values")
    return ops.concat(0, [part.value if isinstance(part, Size) else np.array([part], np.int32) for part in parts])


def between(x: Value, begin: Sequence[Place], end: Sequence[Place], shape: Shape) -> Value:
    """x[begin:end] along every axis; `shape` is the result's."""
    strides = ops.constant(np.ones(len(begin), np.int32))
    return raw.SliceOp(x, _places(begin), _places(end), strides, results=[_type(shape, dtype_of(x))]).result


def updated(x: Value, rows: Value, begin: Sequence[Place], end: Sequence[Place]) -> Value:
    """x with `rows` in place of x[begin:end]."""
    return ops.slice_update(x, _places(begin), _places(end), np.ones(len(begin), np.int32), rows)


def reshape(x: Value, shape: Shape) -> Value:
    """At most one size is None: what is left."""
    sizes = ops.constant(np.array([-1 if size is None else size for size in shape], np.int32))
    return raw.ReshapeOp(x, sizes, results=[_type(shape, dtype_of(x))]).result


def expanded(x: Value, axis: int) -> Value:
    """x with an axis of size 1 before `axis`."""
    return ops.expand_dims(x, np.array([axis], np.int32))


def transpose(x: Value, *order: int) -> Value:
    return ops.transpose(x, np.array(order, np.uint32))


def split(x: Value, sizes: Sequence[int], axis: int) -> list[Value]:
    return list(ops.split(x, np.array(sizes, np.uint32), axis))


def concat(parts: Sequence[Value], axis: int) -> Value:
    return ops.concat(axis, list(parts))


def rows_at(table: Value, numbers: Value) -> Value:
    """Rows [T, K] of a table [N, K] at int32 [T, 1]."""
    return ops.gather_nd(table, numbers)


def cast(x: Value, dtype: str) -> Value:
    return x if dtype_of(x) == dtype else ops.cast(x, _type(shape_of(x), dtype))


def counted(begin: Place, end: Place) -> Value:
    """int32 begin, begin + 1, ... before end.

    Not 0, 1, ... with a number added: of that add the runtime loses an operand where a function has it three times.
    """
    first, last = (ops.shrink_dims(x.value, np.array([0], np.int32)) if isinstance(x, Size) else x for x in (begin, end))
    return ops.range_(first, last, 1)


def dequantized(codes: Value, scales: Value, offsets: Value | None) -> Value:
    """[N, K] in the scales' type: codes times the scale of their block, plus its offset."""
    shape, dtype = shape_of(scales), dtype_of(scales)
    offsets = zeros(shape, dtype) if offsets is None else offsets
    return ops.blockwise_shift_scale(codes, scales, zeros(shape, dtype_of(codes)), offsets)


add, sub, mul = ops.broadcasting_add, ops.broadcasting_sub, ops.broadcasting_mul
maximum, minimum = ops.broadcasting_maximum, ops.broadcasting_minimum
matmul = ops.broadcasting_batch_matmul  # the last two axes; those before them are broadcast
silu, sigmoid, rsqrt = ops.silu, ops.sigmoid, ops.rsqrt


def softmax(x: Value) -> Value:
    return ops.softmax(x, -1)


def mean(x: Value) -> Value:
    """Over the last axis, which stays as one."""
    return ops.reduce_mean(x, np.array([-1], np.int32))
