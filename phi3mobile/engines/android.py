"""Engine over ExecuTorch's Android package (org.pytorch.executorch) through pyjnius: the token loop stays ours.

Only what pyjnius resolves without doubt and passes as bytes is called: inputs by `LongBuffer` (Tensor.fromByteArray makes
buffers that ExecuTorch's JNI refuses), outputs by `EValue.toByteArray`, one copy instead of a Python float per logit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from phi3mobile.engines.base import BaseEngine, marked, refuse_pictures
from phi3mobile.errors import InputError
from phi3mobile.info import EngineInfo

_TENSOR, _FLOAT = 1, 6  # EValue's type code, DType.FLOAT's code


class AndroidEngine(BaseEngine):
    """Runs `forward(tokens, input_pos)` of a .pte. InputError: ExecuTorch can't load it, or it sees pictures.

    `find_class`: name -> Java class (default: jnius.autoclass). `threads`: 0 leaves the number to ExecuTorch.
    """

    def __init__(self, pte: Path, info: EngineInfo, threads: int = 0, find_class: Callable[[str], Any] | None = None) -> None:
        if not pte.is_file():
            raise InputError(f"{pte} is not a file: give the .pte of a bundle")
        refuse_pictures(pte, info)
        if find_class is None:
            try:
                from jnius import autoclass
            except ImportError:
                raise InputError("this engine runs in an Android app: it needs the package pyjnius") from None
            find_class = autoclass
        class_of: Callable[[str], Any] = find_class
        module, self._tensor, self._value = (class_of(f"org.pytorch.executorch.{n}") for n in ("Module", "Tensor", "EValue"))
        super().__init__(info)
        try:
            self._module = module.load(str(pte.absolute()), module.LOAD_MODE_MMAP, threads)
            self._module.loadMethod("forward")
        except Exception as error:  # jnius.JavaException
            raise InputError(f"{pte} can't be loaded by this app's ExecuTorch ({error}); export it for android-cpu") from error

    def _run(self, tokens: np.ndarray, position: int, long: bool) -> np.ndarray:
        inputs = [self._input(tokens.tolist(), [1, len(tokens)]), self._input([marked(position, long)], [1])]
        (output,) = self._module.forward(*inputs)
        return _floats(bytes(output.toByteArray().tostring()))[0]

    def _release(self) -> None:
        self._module.destroy()
        self._module = None

    def _input(self, values: list[int], shape: list[int]) -> Any:
        buffer = self._tensor.allocateLongBuffer(len(values))
        for index, value in enumerate(values):
            buffer.put(index, value)
        return getattr(self._value, "from")(self._tensor.fromBlob(buffer, shape))  # `from` is a word of Python's


def _floats(data: bytes) -> np.ndarray:
    """The float32 tensor in EValue.toByteArray's format: type, dtype, rank, int32 sizes, values; Java's byte order."""
    kind, dtype, rank = data[0], data[1], data[2]
    if kind != _TENSOR or dtype != _FLOAT:
        raise RuntimeError(f"forward gave a value of type {kind}, dtype {dtype}; a float32 tensor was expected")
    shape = np.frombuffer(data, ">i4", rank, 3)
    return np.frombuffer(data, ">f4", offset=3 + 4 * rank).reshape(shape).astype(np.float32)
