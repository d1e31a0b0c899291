"""A function compiled once into steps: constants folded, dead values dropped, state updates in place where that is safe."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from phi3mobile.engines.mil import ops
from phi3mobile.engines.mil.dtypes import Type, storage
from phi3mobile.engines.mil.lifetimes import Lifetimes
from phi3mobile.engines.mil.ops.weights import blockwise_shift_scale
from phi3mobile.engines.mil.spec import Blob, Block, Function, Name, Op
from phi3mobile.engines.mil.weights import Constants, WeightFiles
from phi3mobile.errors import InputError

Trace = Callable[[str, str, dict[str, np.ndarray]], None]
_SMALL = 1 << 16  # constants of so many elements are decoded at once and stay
_UPDATES = {"slice_update": "x", "scatter": "data", "scatter_along_axis": "data", "scatter_nd": "data"}


@dataclass(frozen=True)
class Constant:
    """A constant decoded when it is used: `key` says what makes it, alike in every function of a program."""

    key: Hashable
    type: Type
    make: Callable[[], np.ndarray]
    rows: Callable[[np.ndarray], np.ndarray] | None = None  # some rows of axis 0, without decoding the rest


@dataclass
class Frame:
    """One run."""

    values: dict[str, Any]
    state: dict[str, np.ndarray]
    trace: Trace | None = None


@dataclass(frozen=True)
class Step:
    op: Op
    run: Callable[[Frame], None]
    drop: tuple[str, ...] = ()  # values not needed any more


@dataclass
class CompiledFunction:
    """Steps of a function, and its outputs that are constants."""

    steps: list[Step]
    outputs: dict[str, Any]

    def run(self, frame: Frame) -> None:
        _run(self.steps, frame)


def _run(steps: list[Step], frame: Frame) -> None:
    for step in steps:
        try:
            step.run(frame)
        except Exception as error:
            error.add_note(f"in the operator {step.op.type} {step.op.name!r}")
            raise
        if frame.trace is not None:
            frame.trace(step.op.name, step.op.type, {name: frame.values[name] for name, _ in step.op.outputs})
        for name in step.drop:
            frame.values.pop(name, None)


def store(value: Any, kind: Type, half: bool) -> Any:
    """A result as its declared type: floats as float32, rounded to float16 if `half` and declared so."""
    if kind.dtype == "float16":
        value = np.asarray(value)
        if half:
            value = value.astype(np.float16)
        return value.astype(np.float32, copy=False)
    if kind.dtype in ("string", "list", "dictionary", "tuple"):
        return value
    return np.asarray(value).astype(storage(kind.dtype), copy=False)


def compile_function(function: Function, files: WeightFiles, constants: Constants, half: bool) -> CompiledFunction:
    """InputError for an operator that is not known."""
    compiler = _Compiler(files, constants, half)
    lifetimes = Lifetimes(function)
    steps = compiler.block(function.block, lifetimes)
    outputs = {name: compiler.known[name] for name in function.block.outputs if name in compiler.known}
    return CompiledFunction(steps, {name: compiler.value(item) for name, item in outputs.items()})


@dataclass
class _Compiler:
    files: WeightFiles
    constants: Constants
    half: bool
    known: dict[str, Any] = field(default_factory=dict)  # name -> array, string or Constant

    def block(self, block: Block, lifetimes: Lifetimes | None = None) -> list[Step]:
        steps = []
        for index, op in enumerate(block.ops):
            if not self._fold(op):
                in_place = lifetimes is not None and lifetimes.may_overwrite(index, _UPDATES.get(op.type, ""))
                drop = lifetimes.ending(index) if lifetimes is not None else ()
                steps.append(Step(op, self._step(op, in_place), drop))
        return steps

    def value(self, item: Any) -> Any:
        """What an argument is now; Constants are decoded, or taken from those that were."""
        if isinstance(item, Constant):
            return self.constants.get(item.key, item.make)
        return [self.value(part) for part in item] if isinstance(item, list) else item

    def _resolve(self, argument: Any) -> Any:
        if isinstance(argument, Name):
            return self.known.get(argument.name, argument)
        if isinstance(argument, Blob):
            return self._blob(argument)
        if isinstance(argument, list):
            return [self._resolve(item) for item in argument]
        if isinstance(argument, np.ndarray) and argument.dtype == np.float16:
            return argument.astype(np.float32)
        return argument

    def _fold(self, op: Op) -> bool:
        """Whether the operator's results are constants, which are then known."""
        arguments = {key: self._resolve(argument) for key, argument in op.arguments.items()}
        if op.type == "const":
            self._keep(op.outputs[0][0], arguments["val"])
            return True
        if op.blocks or op.type in ("read_state", "write_state") or op.type.startswith(("random_", "make_list", "list_")):
            return False
        if any(map(_runs, arguments.values())):
            return False
        function = self._find(op)
        key = (op.type, self.half, *((name, _key(value)) for name, value in sorted(arguments.items())))

        def make(position: int, kind: Type) -> np.ndarray:
            result = function(**{name: _made(value) for name, value in arguments.items()})
            return store(result[position] if len(op.outputs) > 1 else result, kind, self.half)

        for position, (name, kind) in enumerate(op.outputs):
            made = partial(make, position, kind)
            self._keep(name, Constant((*key, position), kind, made, self._dequantized_rows(op, arguments, kind)))
        return True

    def _keep(self, name: str, item: Any) -> None:
        small = isinstance(item, Constant) and item.type.elements is not None and item.type.elements <= _SMALL
        self.known[name] = item.make() if small else item

    def _blob(self, blob: Blob) -> Constant:
        def widen(values: np.ndarray) -> np.ndarray:
            return values.astype(np.float32) if values.dtype == np.float16 else values

        return Constant(
            blob, blob.type, lambda: widen(self.files.read(blob)), lambda index: widen(self.files.read(blob)[index])
        )

    def _dequantized_rows(self, op: Op, arguments: dict[str, Any], kind: Type) -> Callable | None:
        """For an 8-bit table that is only looked up: decoding it all would take four times its size."""
        data, scale = arguments.get("data"), arguments.get("scale")
        if op.type != "constexpr_blockwise_shift_scale" or not isinstance(data, Constant) or "8" not in data.type.dtype:
            return None

        of_data = data.rows
        if of_data is None:
            return None

        def rows(index: np.ndarray) -> np.ndarray:
            index = np.asarray(index)
            scales, offsets = _made(scale), _made(arguments.get("offset"))
            of_block = index.ravel() // (data.type.shape[0] // scales.shape[0])
            taken = of_data(index.ravel())
            found = blockwise_shift_scale(taken, scales[of_block], None if offsets is None else offsets[of_block])
            return store(found, kind, self.half).reshape(*index.shape, *taken.shape[1:])

        return rows

    def _find(self, op: Op) -> Callable:
        function = ops.find(op.type)
        if function is None:
            raise InputError(
                f"the operator {op.type!r} (at {op.name!r}) is not known to this interpreter: convert the model without it, "
                "or add it to phi3mobile/export/mil/ops"
            )
        return function

    def _step(self, op: Op, in_place: bool) -> Callable[[Frame], None]:
        if op.type in _CONTROL:
            return _CONTROL[op.type](self, op)
        arguments = {key: self._resolve(argument) for key, argument in op.arguments.items()}
        table, index = arguments.get("x"), arguments.get("indices")
        plain_rows = not any(np.any(arguments.get(key, 0)) for key in ("axis", "batch_dims"))
        if op.type == "gather" and isinstance(table, Constant) and table.rows and isinstance(index, Name) and plain_rows:
            (name, kind), rows = op.outputs[0], table.rows

            def look_up(frame: Frame) -> None:
                frame.values[name] = store(rows(frame.values[index.name]), kind, False)

            return look_up
        return self._call(op, self._find(op), arguments, None if in_place else _UPDATES.get(op.type))

    def _call(self, op: Op, function: Callable, arguments: dict[str, Any], copied: str | None) -> Callable[[Frame], None]:
        fixed = {key: item for key, item in arguments.items() if not _varies(item)}
        varying = [(key, item) for key, item in arguments.items() if _varies(item)]
        half = self.half and (op.type not in ops.MOVING or op.type == "cast")
        outputs = op.outputs

        def run(frame: Frame) -> None:
            values = fixed | {key: self.fetch(item, frame) for key, item in varying}
            if copied:
                values[copied] = values[copied].copy()
            result = function(**values)
            for (name, kind), value in zip(outputs, result if len(outputs) > 1 else (result,), strict=True):
                frame.values[name] = store(value, kind, half)

        if len(outputs) == 1 and op.type in ("split", "topk"):
            plain, function = function, lambda **values: plain(**values)[0]
        return run

    def fetch(self, item: Any, frame: Frame) -> Any:
        """An argument's value in this run."""
        if isinstance(item, Name):
            return frame.values[item.name]
        if isinstance(item, list):
            return [self.fetch(part, frame) for part in item]
        return self.value(item)


def _varies(item: Any) -> bool:
    """Whether an argument must be fetched in every run."""
    return any(map(_varies, item)) if isinstance(item, list) else isinstance(item, Name | Constant)


def _runs(item: Any) -> bool:
    """Whether an argument is known only in a run."""
    return any(map(_runs, item)) if isinstance(item, list) else isinstance(item, Name)


def _made(item: Any) -> Any:
    """A constant's value, decoded now and not kept: what it is decoded for is."""
    return item.make() if isinstance(item, Constant) else [_made(part) for part in item] if isinstance(item, list) else item


def _key(item: Any) -> Hashable:
    if isinstance(item, Constant):
        return item.key
    if isinstance(item, list):
        return tuple(map(_key, item))
    return (str(item.dtype), item.shape, item.tobytes()) if isinstance(item, np.ndarray) else item


def _read_state(compiler: _Compiler, op: Op) -> Callable[[Frame], None]:
    source, target = op.arguments["input"].name, op.outputs[0][0]

    def run(frame: Frame) -> None:
        frame.values[target] = frame.state[source]

    return run


def _write_state(compiler: _Compiler, op: Op) -> Callable[[Frame], None]:
    target, item = op.arguments["input"].name, compiler._resolve(op.arguments["data"])

    def run(frame: Frame) -> None:
        value = compiler.fetch(item, frame)
        if value is not frame.state[target]:  # else the update was in place
            np.copyto(fresh := np.empty_like(frame.state[target]), value)
            frame.state[target] = fresh  # a new array: values read before keep the old one

    return run


def _cond(compiler: _Compiler, op: Op) -> Callable[[Frame], None]:
    pred = compiler._resolve(op.arguments["pred"])
    branches = [(compiler.block(block), [compiler._resolve(Name(name)) for name in block.outputs]) for block in op.blocks]

    def run(frame: Frame) -> None:
        steps, results = branches[0 if np.all(compiler.fetch(pred, frame)) else 1]
        _run(steps, frame)
        frame.values |= {name: compiler.fetch(item, frame) for (name, _), item in zip(op.outputs, results, strict=True)}

    return run


def _while_loop(compiler: _Compiler, op: Op) -> Callable[[Frame], None]:
    start = compiler._resolve(op.arguments["loop_vars"])
    test, body = (
        (compiler.block(b), [name for name, _ in b.inputs], [compiler._resolve(Name(n)) for n in b.outputs]) for b in op.blocks
    )

    def turn(part: tuple, values: list, frame: Frame) -> list:
        steps, names, results = part
        frame.values |= dict(zip(names, values, strict=True))
        _run(steps, frame)
        return [compiler.fetch(item, frame) for item in results]

    def run(frame: Frame) -> None:
        values = compiler.fetch(start, frame)
        while np.all(turn(test, values, frame)[0]):
            values = turn(body, values, frame)
        frame.values |= {name: value for (name, _), value in zip(op.outputs, values, strict=True)}

    return run


_CONTROL: dict[str, Callable[[_Compiler, Op], Callable[[Frame], None]]] = {
    "read_state": _read_state,
    "write_state": _write_state,
    "cond": _cond,
    "while_loop": _while_loop,
}
