"""Functions of MIL -> .mlpackage. Weights stream through: the graph holds stand-ins, and one matrix at a time is written.

coremltools' own exporter walks the graph; only the moment when it asks for a constant's bytes is ours. A constant has the same
name in every function that uses it, and is stored once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import coremltools as ct
import numpy as np
from coremltools.converters.mil.backend.mil import helper
from coremltools.converters.mil.backend.mil.load import CoreMLProtoExporter, MILProtoExporter
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, Var, types
from coremltools.libmilstoragepython import _BlobStorageWriter as BlobWriter
from coremltools.models.utils import _create_mlpackage

TARGET = ct.target.iOS18  # states, multifunction and int4 blocks need it
WEIGHTS = "weight.bin"
_NUMPY = {types.int4: types.np_int4_dtype, types.int8: np.int8, types.fp16: np.float16, types.fp32: np.float32}


class Weights:
    """The program's constants by name: shape and type when the graph is built, values when they are written."""

    def __init__(self) -> None:
        self.values: dict[str, Callable[[], np.ndarray]] = {}

    def const(self, name: str, shape: tuple[int, ...], dtype: type, value: Callable[[], np.ndarray]) -> Var:
        """A constant of the function being built. `value` is called once, when the file is written."""
        self.values.setdefault(name, value)
        stand_in = np.broadcast_to(np.zeros((), dtype=_NUMPY[dtype]), shape)  # one value, whatever the shape
        constant = mb.const(val=stand_in, name=name)
        constant.op.weight_id = name
        return constant


class _Streaming(MILProtoExporter):
    """The exporter, with the values of `Weights` in place of their stand-ins."""

    def __init__(self, program: Program, folder: Path, weights: Weights, progress: Callable[[int, int], None]) -> None:
        super().__init__(program, str(folder), TARGET)
        self._weights, self._progress, self._written = weights, progress, 0

    def create_file_value(self, var: Var):
        name = var.op.weight_id
        if name not in self._weights.values or name in self.weight_id_to_file_value:
            return super().create_file_value(var)
        value = self._weights.values[name]()
        if value.shape != tuple(var.shape) or value.dtype != var.val.dtype:
            raise ValueError(f"{name} is {value.dtype} {list(value.shape)}, declared as {var.val.dtype} {list(var.shape)}")
        offset = _write(self.get_blob_writer(self.get_weight_path(var.op)), var.dtype, value)
        self.weight_id_to_file_value[name] = helper.create_file_value_tensor(
            file_name=f"@model_path/weights/{WEIGHTS}",
            offset=offset,
            dim=value.shape,
            data_type=helper.types_to_proto_primitive(var.dtype),
        )
        self._written += 1
        self._progress(self._written, len(self._weights.values))
        return self.weight_id_to_file_value[name]


def _write(writer: BlobWriter, dtype: type, value: np.ndarray) -> int:
    """Offset of the value in the file."""
    flat = np.ascontiguousarray(value).reshape(-1)
    if dtype == types.int4:
        return writer.write_int4_data(flat)
    if dtype == types.int8:
        return writer.write_int8_data(flat)
    return writer.write_fp16_data(flat.view(np.uint16)) if dtype == types.fp16 else writer.write_float_data(flat)


def write_package(
    path: Path,
    functions: dict[str, Function],
    default: str,
    weights: Weights,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Write a multifunction .mlpackage at `path`; returns the operator types in it."""
    program = Program()
    for name, function in functions.items():
        program.add_function(name, function)
    program.default_function_name = default
    program.export_as_multifunction = True
    program._check_early_error_out_for_invalid_program()
    with TemporaryDirectory(dir=path.parent, prefix=".weights-") as scratch:
        folder = Path(scratch) / "weights"
        folder.mkdir()
        proto = _Streaming(program, folder, weights, progress).export()
        model = CoreMLProtoExporter(program, proto, None, None, None, "mlprogram", "milinternal", TARGET).export(TARGET)
        _create_mlpackage(model, str(folder), str(path))
    return operators(program)


def operators(program: Program) -> list[str]:
    """Names of the operator types that the program has."""
    return sorted({operation.op_type for function in program.functions.values() for operation in function.operations})
