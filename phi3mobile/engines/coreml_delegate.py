"""Engine over the Core ML package inside a .pte (recipe ios-executorch), in our interpreter: Core ML is on Apple only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from phi3mobile.engines import EngineInfo
from phi3mobile.errors import InputError

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle
    from phi3mobile.engines.mil import Program


def open_delegate(bundle: Bundle, half: bool = False) -> DelegateEngine:
    """The engine of such a bundle; `load_s` on it is the time this took. Raises InputError."""
    from phi3mobile.engines import mil

    start = time.perf_counter()
    programs = mil.blobs_of_pte(bundle.program)
    if len(programs) != 1:
        raise InputError(f"{bundle.program} holds {len(programs)} Core ML packages, one was expected; export it again")
    engine = DelegateEngine(programs[0], bundle.info, bundle.manifest["runtime"]["functions"], half)
    engine.load_s = time.perf_counter() - start
    return engine


class DelegateEngine:
    """Methods of fixed lengths T over one KV cache in states; see export/targets/coreml/delegate.py."""

    def __init__(self, program: Program, info: EngineInfo, functions: dict[str, int], half: bool = False) -> None:
        self.info, self.half, self.load_s, self.trace = info, half, 0.0, None
        self._program: Program | None = program
        self._lengths = sorted((length, name) for name, length in functions.items())
        self._state = program.new_state(self._lengths[0][1])

    def forward(self, tokens: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        """See Engine.forward. The shortest method that takes the tokens runs; what pads them is overwritten later."""
        if self._program is None:
            raise InputError("the engine is closed: open the model again")
        count, end, original = len(tokens), position + len(tokens), self.info.original_context
        if not 0 < count <= self.info.max_chunk or position < 0 or end > self.info.max_context:
            raise InputError(
                f"{count} tokens at position {position} were given: one forward takes 1..{self.info.max_chunk} tokens, "
                f"the context {self.info.max_context}"
            )
        length, function = next(item for item in self._lengths if item[0] >= count)
        padded = np.zeros((1, length), np.int32)
        padded[0, :count] = tokens
        in_long = original is not None and (long or end > original)
        given = {"tokens": padded, "input_pos": np.array([position], np.int32), "long": np.array([in_long], np.int32)}
        inputs = {name: given[name] for name in self._program.function(function).inputs}
        (logits,) = self._program.run(inputs, self._state, function, self.half, self.trace).values()
        return logits[0, :count]

    def reset(self) -> None:
        """Nothing to do: a new sequence overwrites the cache from position 0."""

    def close(self) -> None:
        self._program, self._state = None, {}
