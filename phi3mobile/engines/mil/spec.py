"""The protobuf of an mlprogram as plain records: functions, blocks, operators, types, constants."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from phi3mobile import extras
from phi3mobile.engines.mil.dtypes import Type, storage, unpack
from phi3mobile.errors import InputError

MODEL_FILE = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS_FOLDER = "Data/com.apple.CoreML"
_LISTS = {"values", "loop_vars", "ref_tensors", "elem_shape"}  # arguments that are lists even of one element
_FEATURE_TYPES = {65568: "float32", 65600: "float64", 131104: "int32", 65552: "float16", 131080: "int8"}


@dataclass(frozen=True)
class Blob:
    """A constant in a weight file."""

    file: str  # as the program names it: @model_path/weights/weight.bin
    offset: int
    type: Type


@dataclass(frozen=True)
class Name:
    """An argument that is the result of an operator, or an input."""

    name: str


@dataclass(frozen=True)
class Op:
    """One operator. Arguments are Name, Blob, a numpy array, a string, or lists of these."""

    type: str
    name: str
    arguments: dict[str, Any]
    outputs: tuple[tuple[str, Type], ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Block:
    inputs: tuple[tuple[str, Type], ...]
    outputs: tuple[str, ...]
    ops: tuple[Op, ...]

    def walk(self) -> Iterator[Op]:
        """Every operator, those of nested blocks too."""
        for op in self.ops:
            yield op
            for block in op.blocks:
                yield from block.walk()


@dataclass(frozen=True)
class Feature:
    """An input, output or state: element type; default shape; if flexible, (least, most) per axis or the shapes allowed."""

    dtype: str
    shape: tuple[int | None, ...]
    ranges: tuple[tuple[int, int | None], ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of that shape may be given."""
        if self.choices:
            return shape in self.choices
        if self.ranges:
            bounds = zip(shape, self.ranges, strict=False)
            fits = (least <= size and (most is None or size <= most) for size, (least, most) in bounds)
            return len(shape) == len(self.ranges) and all(fits)
        fits = (want in (None, size) for size, want in zip(shape, self.shape, strict=False))
        return len(shape) == len(self.shape) and all(fits)

    def allowed(self) -> str:
        if self.choices:
            return " or ".join(str(list(choice)) for choice in self.choices)
        if self.ranges:
            return "[" + ", ".join(f"{a}" if a == b else f"{a}..{b or ''}" for a, b in self.ranges) + "]"
        return str(["any" if size is None else size for size in self.shape])


@dataclass(frozen=True)
class Function:
    """One function of a program."""

    inputs: dict[str, Feature]
    outputs: dict[str, Feature]
    states: dict[str, Feature]
    block: Block


def read_model(file: Path) -> tuple[dict[str, Function], str]:
    """Functions of a .mlmodel or .mlpackage model file, and the default function's name. Raises InputError."""
    messages = _messages("Model_pb2")
    model = messages.Model()
    try:
        model.ParseFromString(file.read_bytes())
    except Exception as error:  # the protobuf package's own, which differs between its versions
        raise InputError(f"{file} is not a Core ML model ({error}); give an .mlpackage made by coremltools") from None
    if (kind := model.WhichOneof("Type")) != "mlProgram":
        raise InputError(f"{file} holds a {kind or 'nothing'}, not an mlprogram; convert with convert_to='mlprogram'")
    described = {function.name: function for function in model.description.functions} or {"main": model.description}
    try:
        functions = {
            name: _function(function, described.get(name, model.description))
            for name, function in model.mlProgram.functions.items()
        }
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"{file} is damaged or newer than this reader ({error!r}); convert it again") from None
    return functions, model.description.defaultFunctionName or next(iter(functions))


def _messages(module: str) -> ModuleType:
    """A module of coremltools.proto, without importing all of coremltools, which takes seconds and loads torch."""
    if "coremltools" in sys.modules:
        return importlib.import_module(f"coremltools.proto.{module}")
    package = "_phi3mobile_coreml_proto"
    if package not in sys.modules:
        found = importlib.util.find_spec("coremltools")
        if found is None or found.origin is None:
            raise InputError(f"reading Core ML models takes coremltools: {extras.command('coreml')}")
        folder = Path(found.origin).parent / "proto"
        spec = importlib.util.spec_from_file_location(package, folder / "__init__.py", submodule_search_locations=[str(folder)])
        assert spec is not None and spec.loader is not None  # of a .py file
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{module}")


def _function(function: Any, description: Any) -> Function:
    block = _block(function.block_specializations[function.opset], function.inputs)
    described = {feature.name: feature for feature in (*description.input, *description.output, *description.state)}
    wrapped = {item.name: item.type.WhichOneof("type") == "stateType" for item in function.inputs}
    features = {name: _feature(described.get(name), kind) for name, kind in block.inputs}
    types = {name: kind for op in block.ops for name, kind in op.outputs} | dict(block.inputs)
    return Function(
        {name: feature for name, feature in features.items() if not wrapped[name]},
        {name: _feature(described.get(name), types[name]) for name in block.outputs},
        {name: feature for name, feature in features.items() if wrapped[name]},
        block,
    )


def _feature(described: Any, declared: Type) -> Feature:
    """What the model description says; where it is silent (images, the blob of a .pte), what the program says."""
    kind = described.type.WhichOneof("Type") if described is not None else None
    if kind == "stateType":
        array = described.type.stateType.arrayType
    elif kind == "multiArrayType":
        array = described.type.multiArrayType
    else:
        return Feature(declared.dtype, declared.shape)
    ranges: tuple[tuple[int, int | None], ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()
    if array.WhichOneof("ShapeFlexibility") == "shapeRange":
        bounds = array.shapeRange.sizeRanges
        ranges = tuple((int(b.lowerBound), int(b.upperBound) if b.upperBound >= 0 else None) for b in bounds)
    elif array.WhichOneof("ShapeFlexibility") == "enumeratedShapes":
        choices = tuple(tuple(map(int, choice.shape)) for choice in array.enumeratedShapes.shapes)
    dtype = _FEATURE_TYPES.get(array.dataType, declared.dtype)
    return Feature(dtype, tuple(map(int, array.shape)) or declared.shape, ranges, choices)


def _block(block: Any, inputs: Any = None) -> Block:
    taken = tuple((item.name, _type(item.type)) for item in (block.inputs if inputs is None else inputs))
    return Block(taken, tuple(block.outputs), tuple(map(_op, block.operations)))


def _op(op: Any) -> Op:
    arguments = {key: _argument(key, argument.arguments) for key, argument in op.inputs.items()}
    attributes = {key: _value(value) for key, value in op.attributes.items()}
    outputs = tuple((item.name, _type(item.type)) for item in op.outputs)
    name = attributes.pop("name", outputs[0][0] if outputs else op.type)
    return Op(op.type, str(name), attributes | arguments, outputs, tuple(map(_block, op.blocks)))


def _argument(key: str, bindings: Any) -> Any:
    found = [Name(item.name) if item.WhichOneof("binding") == "name" else _value(item.value) for item in bindings]
    return found if key in _LISTS or len(found) != 1 else found[0]


def _type(message: Any) -> Type:
    kind = message.WhichOneof("type")
    if kind == "stateType":
        return _type(message.stateType.wrappedType)
    if kind != "tensorType":
        return Type((kind or "unknown").removesuffix("Type"))
    tensor = message.tensorType
    shape = (int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
    return Type(_messages("MIL_pb2").DataType.Name(tensor.dataType).lower(), tuple(shape))


def _value(message: Any) -> Any:
    """Blob, array, string or list of a Value."""
    if message.WhichOneof("value") == "blobFileValue":
        return Blob(message.blobFileValue.fileName, int(message.blobFileValue.offset), _type(message.type))
    immediate = message.immediateValue
    kind = immediate.WhichOneof("value")
    if kind == "list":
        return [_value(item) for item in immediate.list.values]
    if kind == "tuple":
        return [_value(item) for item in immediate.tuple.values]
    if kind == "dictionary":
        return {str(_value(item.key)): _value(item.value) for item in immediate.dictionary.values}
    return _tensor(immediate.tensor, _type(message.type))


def _tensor(tensor: Any, kind: Type) -> Any:
    field = tensor.WhichOneof("value")
    values: Any = getattr(tensor, field).values if field else ()
    if kind.dtype == "string":
        return values[0] if not kind.shape and values else list(values)
    if field == "bytes":
        return unpack(np.frombuffer(values, np.uint8), kind)
    array = np.array(values, np.float64 if field in ("floats", "doubles") else None).astype(storage(kind.dtype))
    return array.reshape(kind.known_shape) if array.size == kind.elements else np.broadcast_to(array, kind.known_shape)
