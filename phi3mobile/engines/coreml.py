"""Engine and tower over Core ML packages in our interpreter: the phone's programs, run here operator by operator in numpy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from phi3mobile.engines.base import BaseEngine
from phi3mobile.engines.tower import BundleTower
from phi3mobile.errors import InputError
from phi3mobile.info import EngineInfo

EMBED = "embed"  # of models that see pictures: tokens -> embeddings

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


def open_mil_tower(bundle: Bundle, threads: int = 0, half: bool = False) -> BundleTower:
    """The tower of such a bundle. `half`: see MilEngine. Raises InputError."""
    return BundleTower(bundle, lambda: _TowerProgram(bundle, half), f"interpreted in float{16 if half else 32}")


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
        inputs = program.function(self._lengths[0][1]).inputs
        self._long, self._sees = "long" in inputs, "embeddings" in inputs
        if self._sees != (info.hidden is not None):
            given = "embeddings" if self._sees else "tokens"
            raise InputError(f"the program takes {given}, and its manifest says something else; export the bundle again")
        self._state = program.new_state(self._lengths[0][1])

    def _run(self, tokens: np.ndarray, position: int, long: bool) -> np.ndarray:
        if self._sees:
            return self._run_embeddings(self._embed(tokens), position, long)
        return self._forward("tokens", tokens, position, long)

    def _run_embeddings(self, rows: np.ndarray, position: int, long: bool) -> np.ndarray:
        return self._forward("embeddings", rows, position, long)

    def _embed(self, tokens: np.ndarray) -> np.ndarray:
        assert self._program is not None
        given = {"tokens": _padded(tokens, self._fitting(len(tokens))[0])}
        return self._program.run(given, function=EMBED, half=self.half)["embeddings"][0, : len(tokens)]

    def _forward(self, name: str, values: np.ndarray, position: int, long: bool) -> np.ndarray:
        """Logits of tokens [T] or rows [T, hidden], which the input `name` takes; what pads them is overwritten later."""
        assert self._program is not None
        length, function = self._fitting(len(values))
        keys = min(-(-(position + length) // self._step) * self._step, self._rows)
        inputs = {
            name: _padded(values, length),
            "position": np.array([position], np.int32),
            "keys": np.arange(keys, dtype=np.int32),
        }
        if self._long:
            inputs["long"] = np.array([long], np.int32)
        return self._program.run(inputs, self._state, function, self.half, self.trace)["logits"][0, : len(values)]

    def _fitting(self, count: int) -> tuple[int, str]:
        """The shortest function that takes so many: its length, and its name."""
        return next(item for item in self._lengths if item[0] >= count)

    def _release(self) -> None:
        self._program, self._state = None, {}


class _TowerProgram:
    """A bundle's vision.mlpackage: see engines.tower.TowerProgram."""

    def __init__(self, bundle: Bundle, half: bool) -> None:
        from phi3mobile.engines import mil

        assert bundle.vision is not None
        self._program, self._half, self._rows = mil.load(bundle.folder / bundle.vision["program"]), half, bundle.vision["rows"]

    def run(self, method: str, given: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """`project` takes a fixed number of rows, so fewer are padded."""
        inputs = {"view": given} if method == "encode" else {"rows": _padded(given, self._rows)}
        (found,) = self._program.run(inputs, function=method, half=self._half).values()
        return found[0, : shape[0]]

    def close(self) -> None:
        """Nothing is held but memory."""


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """[T, ...] -> [1, length, ...], zeros behind."""
    whole = np.zeros((1, length, *values.shape[1:]), values.dtype)
    whole[0, : len(values)] = values
    return whole
