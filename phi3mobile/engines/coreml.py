"""Engine over a Core ML package in our interpreter: the program of the phone, run here operator by operator in numpy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from phi3mobile.engines import EngineInfo, check_forward
from phi3mobile.errors import InputError

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle
    from phi3mobile.engines.mil import Program, Trace


def open_mil(bundle: Bundle, half: bool = False) -> MilEngine:
    """The engine of a Core ML bundle; `load_s` on it is the time this took. Raises InputError."""
    from phi3mobile.engines import mil

    start = time.perf_counter()
    engine = MilEngine(mil.load(bundle.program), bundle.info, bundle.manifest["runtime"], half)
    engine.forward(np.zeros(1, np.int64), 0)  # decodes the weights
    engine.load_s = time.perf_counter() - start
    return engine


class MilEngine:
    """Functions of fixed lengths T over one KV cache in states (export/targets/coreml/decoder.py says what they take).

    half: round every float16 result to it, as the device stores them; else compute in float32.
    """

    def __init__(self, program: Program, info: EngineInfo, runtime: dict[str, Any], half: bool = False) -> None:
        """runtime: the manifest's, with `functions` (name -> T), `rows` of the cache and `key_step`."""
        if lacking := [key for key in ("functions", "rows", "key_step") if key not in runtime]:
            raise InputError(f"the manifest's runtime lacks {', '.join(lacking)}; export with the recipe ios-gpu")
        self.info, self.half, self.load_s = info, half, 0.0
        self.trace: Trace | None = None  # called after every operator of a forward (Program.run)
        self._program: Program | None = program
        self._lengths = sorted((length, name) for name, length in runtime["functions"].items())
        self._rows, self._step = runtime["rows"], runtime["key_step"]
        self._long = "long" in program.function(self._lengths[0][1]).inputs
        self._state = program.new_state(self._lengths[0][1])

    def forward(self, tokens: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        """See Engine.forward. The shortest function that takes the tokens runs; what pads them is overwritten later."""
        if self._program is None:
            raise InputError("the engine is closed: open the model again")
        check_forward(self.info, tokens, position)
        count, end = len(tokens), position + len(tokens)
        length, function = next(item for item in self._lengths if item[0] >= count)
        padded = np.zeros((1, length), np.int32)
        padded[0, :count] = tokens
        keys = min(-(-(position + length) // self._step) * self._step, self._rows)
        inputs = {"tokens": padded, "position": np.array([position], np.int32), "keys": np.arange(keys, dtype=np.int32)}
        if self._long:
            original = self.info.original_context
            inputs["long"] = np.array([long or (original is not None and end > original)], np.int32)
        return self._program.run(inputs, self._state, function, self.half, self.trace)["logits"][0, :count]

    def reset(self) -> None:
        """Nothing to do: a new sequence overwrites the cache from position 0."""

    def close(self) -> None:
        self._program, self._state = None, {}
