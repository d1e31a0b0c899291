"""A .pte opened for reading: its plan, and the constants, named data and delegates behind it, mapped and never read whole."""

from __future__ import annotations

import json
import math
import mmap
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader, _get_schema_bytes
from executorch.exir._serialize._flatbuffer import _flatc_decompile
from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
from executorch.exir._serialize._program import _get_extended_header
from executorch.exir.scalar_type import ScalarType
from executorch.exir.schema import DelegateCall, Tensor

from phi3mobile.errors import InputError

_TYPES = {
    ScalarType.BYTE: torch.uint8,
    ScalarType.CHAR: torch.int8,
    ScalarType.LONG: torch.int64,
    ScalarType.FLOAT: torch.float32,
}


class Pte:
    """One method of a .pte whose weights are in segments. InputError: another file, or it has no such method."""

    def __init__(self, path: Path, method: str = "forward") -> None:
        self.path, self.method = path, method
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = _get_extended_header(self._data[:64])
        if header is None or not header.is_valid() or not header.segment_base_offset:
            raise InputError(f"{path} is not an ExecuTorch program with segments; export it again")
        self.base = header.segment_base_offset
        self.program = _flatbuffer_to_program(self._data[: header.program_size])
        plans = {plan.name: plan for plan in self.program.execution_plan}
        if method not in plans:
            raise InputError(f"{path} has no method {method}; export it again")
        self.plan = plans[method]
        self._named = {entry.key: entry.segment_index for entry in self.program.named_data or []}

    @property
    def instructions(self) -> list[Any]:
        """Kernel and delegate calls in order."""
        return [instruction.instr_args for instruction in self.plan.chains[0].instructions]

    def calls(self) -> list[DelegateCall]:
        """Of delegates, in order."""
        return [call for call in self.instructions if isinstance(call, DelegateCall)]

    def kernels(self, name: str) -> list[Any]:
        """The calls of an operator, whatever its overload."""
        numbers = {index for index, operator in enumerate(self.plan.operators) if operator.name == name}
        return [call for call in self.instructions if getattr(call, "op_index", None) in numbers]

    def tensor(self, index: int) -> Tensor | None:
        """What the program says of a value that is a tensor."""
        value = self.plan.values[index].val
        return value if isinstance(value, Tensor) else None

    def constant(self, index: int) -> torch.Tensor | None:
        """A value of the plan, copied; None if it is no constant."""
        value = self.tensor(index)
        if value is None or not value.data_buffer_idx or value.allocation_info is not None:
            return None
        segment, dtype = self.program.constant_segment, _TYPES[value.scalar_type]
        start = self._start(segment.segment_index) + segment.offsets[value.data_buffer_idx]
        return self._read(start, math.prod(value.sizes) * dtype.itemsize).view(dtype).view(value.sizes)

    def named(self, key: str) -> torch.Tensor:
        """Named data as bytes, copied. InputError if there is none of that name."""
        if key not in self._named:
            raise InputError(f"{self.path} lacks the named data {key!r}; export it again")
        index = self._named[key]
        return self._read(self._start(index), self.program.segments[index].size)

    def backend(self, call: DelegateCall) -> str:
        """The name of who computes a delegate."""
        return self.plan.delegates[call.delegate_index].id

    def told(self, call: DelegateCall) -> bytes:
        """What a delegate is told to compute, in its own words."""
        reference = self.plan.delegates[call.delegate_index].processed
        segment = self.program.segments[reference.index]
        return bytes(self._data[self.base + segment.offset : self.base + segment.offset + segment.size])

    def graph(self, call: DelegateCall) -> dict[str, Any]:
        """XNNPACK's graph, as its schema has it."""
        data = self.told(call)
        header = XNNHeader.from_bytes(data[: XNNHeader.EXPECTED_LENGTH])
        with TemporaryDirectory() as scratch:
            schema, binary = Path(scratch) / "schema.fbs", Path(scratch) / "graph.bin"
            schema.write_bytes(_get_schema_bytes())
            binary.write_bytes(data[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size])
            _flatc_decompile(scratch, str(schema), str(binary), ["--raw-binary"])
            text = (Path(scratch) / "graph.json").read_text()
        return json.loads(re.sub(r": (-?)inf\b", r": \1Infinity", text))  # limits that there are none of

    def _start(self, segment: int) -> int:
        return self.base + self.program.segments[segment].offset

    def _read(self, start: int, size: int) -> torch.Tensor:
        return torch.from_numpy(np.frombuffer(self._data, np.uint8, size, start).copy())
