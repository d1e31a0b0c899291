"""Engine over ExecuTorch's Objective-C classes (ExecuTorchModule, ...Value, ...Tensor) on iOS and macOS.

ctypes, not pyobjus: a tensor gives its bytes to a block only, and pyobjus passes nil for a block.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from phi3mobile.engines.base import BaseEngine, marked, refuse_pictures
from phi3mobile.errors import InputError
from phi3mobile.info import EngineInfo

_MMAP = 1  # ExecuTorchModuleLoadModeMmap
_LONG, _FLOAT = 4, 6  # ExecuTorchDataTypeLong, ExecuTorchDataTypeFloat


class ObjectiveC(Protocol):
    """The calls an engine makes; objects are addresses."""

    def send(self, target: int | str, selector: str, *arguments: Any) -> int:
        """[target selector], `target` being an object or a class's name; an int, or 0 for nil, NO and void."""
        ...

    def text(self, value: str) -> int: ...

    def array(self, objects: list[int]) -> int: ...

    def number(self, value: int) -> int: ...

    def read_text(self, string: int) -> str: ...

    def pool(self) -> Any:
        """A context manager: what is autoreleased inside is given back at its end."""
        ...

    def byte_handler(self, sink: list[tuple[bytes, int]]) -> Any:
        """A block for bytesWithHandler: it appends (bytes, data type) to `sink`."""
        ...


class AppleEngine(BaseEngine):
    """Runs `forward(tokens, input_pos)` of a .pte. InputError: ExecuTorch can't load it, or it sees pictures.

    `objc`: the Objective-C runtime (default: this process's).
    """

    def __init__(self, pte: Path, info: EngineInfo, objc: ObjectiveC | None = None) -> None:
        if not pte.is_file():
            raise InputError(f"{pte} is not a file: give the .pte of a bundle")
        refuse_pictures(pte, info)
        if objc is None:
            from phi3mobile.engines.objc import Runtime

            objc = Runtime()
        super().__init__(info)
        self._objc = objc
        with objc.pool():
            empty = objc.send("ExecuTorchModule", "alloc")
            self._module = objc.send(empty, "initWithFilePath:loadMode:", objc.text(str(pte.absolute())), _MMAP)
            problem = ctypes.c_void_p()
            loaded = objc.send(self._module, "loadMethod:error:", objc.text("forward"), ctypes.byref(problem))
            if not loaded & 0xFF:  # a BOOL: x86-64 leaves the rest of the register as it was
                reason = self._reason(problem)
                self.close()
                raise InputError(f"{pte} can't be loaded by this app's ExecuTorch ({reason}); export it again for iOS")

    def _run(self, tokens: np.ndarray, position: int, long: bool) -> np.ndarray:
        objc, inputs = self._objc, []
        with objc.pool():
            try:
                inputs.append(self._tensor(tokens, [1, len(tokens)]))
                inputs.append(self._tensor(np.array([marked(position, long)]), [1]))
                problem = ctypes.c_void_p()
                values = objc.send(self._module, "forwardWithTensors:error:", objc.array(inputs), ctypes.byref(problem))
            finally:
                for tensor in inputs:
                    objc.send(tensor, "release")
            if not values:
                raise RuntimeError(f"forward failed: {self._reason(problem)}")
            try:
                tensor = objc.send(objc.send(values, "objectAtIndex:", 0), "tensorValue")
                return self._floats(tensor).reshape(len(tokens), -1)
            finally:
                objc.send(values, "release")  # forwardWithTensors:error: returns it retained

    def _release(self) -> None:
        self._objc.send(self._module, "release")
        self._module = 0

    def _tensor(self, values: np.ndarray, shape: list[int]) -> int:
        """A new ExecuTorchTensor of int64 with a copy of the values; the caller releases it."""
        objc, values = self._objc, np.ascontiguousarray(values, np.int64)
        sizes = objc.array([objc.number(size) for size in shape])
        empty = objc.send("ExecuTorchTensor", "alloc")
        return objc.send(empty, "initWithBytes:shape:dataType:", ctypes.c_void_p(values.ctypes.data), sizes, _LONG)

    def _floats(self, tensor: int) -> np.ndarray:
        got: list[tuple[bytes, int]] = []
        self._objc.send(tensor, "bytesWithHandler:", self._objc.byte_handler(got))
        data, kind = got[0]
        if kind != _FLOAT:
            raise RuntimeError(f"forward gave a tensor of data type {kind}; float32 was expected")
        return np.frombuffer(data, np.float32)

    def _reason(self, problem: ctypes.c_void_p) -> str:
        if not problem.value:
            return "no reason given"
        return self._objc.read_text(self._objc.send(problem.value, "localizedDescription"))
