"""Engine over the Core ML package inside a .pte (recipe ios-executorch), in our interpreter: Core ML is on Apple only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from phi3mobile.engines.base import BaseEngine
from phi3mobile.errors import InputError
from phi3mobile.info import EngineInfo

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle
    from phi3mobile.engines.mil import Program


def open_delegate(bundle: Bundle, threads: int = 0, half: bool = False) -> DelegateEngine:
    """The engine of such a bundle; numpy has its own threads. Raises InputError."""
    from phi3mobile.engines import mil

    start = time.perf_counter()
    programs = mil.blobs_of_pte(bundle.program)
    if len(programs) != 1:
        raise InputError(f"{bundle.program} holds {len(programs)} Core ML packages, one was expected; export it again")
    engine = DelegateEngine(programs[0], bundle.info, bundle.manifest["runtime"]["functions"], half)
    engine.load_s = time.perf_counter() - start
    return engine


class DelegateEngine(BaseEngine):
    """Methods of fixed lengths T over one KV cache in states; see export/targets/coreml/delegate.py."""

    def __init__(self, program: Program, info: EngineInfo, functions: dict[str, int], half: bool = False) -> None:
        super().__init__(info)
        self.half = half
        self._program: Program | None = program
        self._lengths = sorted((length, name) for name, length in functions.items())
        self._state = program.new_state(self._lengths[0][1])

    def _run(self, tokens: np.ndarray, position: int, long: bool) -> np.ndarray:
        """The shortest method that takes the tokens runs; what pads them is overwritten later."""
        assert self._program is not None
        count = len(tokens)
        length, function = next(item for item in self._lengths if item[0] >= count)
        padded = np.zeros((1, length), np.int32)
        padded[0, :count] = tokens
        given = {"tokens": padded, "input_pos": np.array([position], np.int32), "long": np.array([long], np.int32)}
        inputs = {name: given[name] for name in self._program.function(function).inputs}
        (logits,) = self._program.run(inputs, self._state, function, self.half, self.trace).values()
        return logits[0, :count]

    def _release(self) -> None:
        self._program, self._state = None, {}
