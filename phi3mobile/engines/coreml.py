"""Engine over a Core ML package in our interpreter: the program of the phone, run here operator by operator in numpy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from phi3mobile.engines.base import BaseEngine
from phi3mobile.errors import InputError
from phi3mobile.info import EngineInfo

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle
    from phi3mobile.engines.mil import Program


def open_mil(bundle: Bundle, threads: int = 0, half: bool = False) -> MilEngine:
    """The engine of a Core ML bundle; numpy has its own threads. `half`: see MilEngine. Raises InputError."""
    from phi3mobile.engines import mil

    start = time.perf_counter()
    engine = MilEngine(mil.load(bundle.program), bundle.info, bundle.manifest["runtime"], half)
    engine.forward(np.zeros(1, np.int64), 0)  # decodes the weights
    engine.load_s = time.perf_counter() - start
    return engine


class MilEngine(BaseEngine):
    """Functions of fixed lengths T over one KV cache in states (export/targets/coreml/decoder.py says what they take).

    half: round every float16 result to it, as the device stores them; else compute in float32.
    """

    def __init__(self, program: Program, info: EngineInfo, runtime: dict[str, Any], half: bool = False) -> None:
        """runtime: the manifest's, with `functions` (name -> T), `rows` of the cache and `key_step`."""
        if lacking := [key for key in ("functions", "rows", "key_step") if key not in runtime]:
            raise InputError(f"the manifest's runtime lacks {', '.join(lacking)}; export with the recipe ios-gpu")
        super().__init__(info)
        self.half = half
        self._program: Program | None = program
        self._lengths = sorted((length, name) for name, length in runtime["functions"].items())
        self._rows, self._step = runtime["rows"], runtime["key_step"]
        self._long = "long" in program.function(self._lengths[0][1]).inputs
        self._state = program.new_state(self._lengths[0][1])

    def _run(self, tokens: np.ndarray, position: int, long: bool) -> np.ndarray:
        """The shortest function that takes the tokens runs; what pads them is overwritten later."""
        assert self._program is not None
        count = len(tokens)
        length, function = next(item for item in self._lengths if item[0] >= count)
        padded = np.zeros((1, length), np.int32)
        padded[0, :count] = tokens
        keys = min(-(-(position + length) // self._step) * self._step, self._rows)
        inputs = {"tokens": padded, "position": np.array([position], np.int32), "keys": np.arange(keys, dtype=np.int32)}
        if self._long:
            inputs["long"] = np.array([long], np.int32)
        return self._program.run(inputs, self._state, function, self.half, self.trace)["logits"][0, :count]

    def _release(self) -> None:
        self._program, self._state = None, {}
