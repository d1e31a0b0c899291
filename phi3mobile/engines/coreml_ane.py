"""Engine over the packages of recipe ios-ane in our interpreter; what it does around them is what an app must do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from phi3mobile.engines.base import BaseEngine
from phi3mobile.info import EngineInfo

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle
    from phi3mobile.engines.mil import Program

HIDDEN = -4e4  # of the mask


def open_ane(bundle: Bundle, threads: int = 0, half: bool = False) -> AneEngine:
    """The engine of such a bundle; numpy has its own threads. Raises InputError."""
    from phi3mobile.engines import mil

    start = time.perf_counter()
    runtime, model = bundle.manifest["runtime"], bundle.manifest["model"]
    programs = [mil.load(bundle.program / name) for name in runtime["packages"]]
    tables = np.fromfile(bundle.program / runtime["rope"]["file"], np.float16).reshape(2, runtime["rope"]["rows"], -1)
    engine = AneEngine(programs, tables, bundle.info, runtime, model["sliding_window"], half)
    engine.load_s = time.perf_counter() - start
    return engine


class AneEngine(BaseEngine):
    """The cache is the host's: rows go into every forward, new ones come out and are put in place here."""

    def __init__(
        self, programs: list[Program], tables: np.ndarray, info: EngineInfo, runtime: dict, window: int | None, half: bool
    ) -> None:
        """tables: cos and sin, float16 [2, rows, R]; see export/targets/coreml/ane.py for what the programs take."""
        super().__init__(info)
        self.half = half
        self._programs, self._tables, self._window = programs, tables, window
        self._lengths = sorted((length, name) for name, length in runtime["functions"].items())
        self._rows, self._short = runtime["rows"], runtime["rope"]["short_rows"]
        function = self._lengths[0][1]
        inputs = {name: feature for program in programs for name, feature in program.function(function).inputs.items()}
        caches = {name: tuple(size or 1 for size in feature.shape) for name, feature in inputs.items() if "_cache_" in name}
        self._caches = {name: np.zeros(shape, np.float32) for name, shape in caches.items()}

    def _run(self, tokens: np.ndarray, position: int, long: bool) -> np.ndarray:
        count, end = len(tokens), position + len(tokens)
        length, function = next(item for item in self._lengths if item[0] >= count)
        positions = np.minimum(position + np.arange(length), self.info.max_context - 1)
        cos, sin = self._tables[:, positions + (self._short if long else 0)].transpose(0, 2, 1)[:, None, None]
        padded = np.zeros((1, length), np.int32)
        padded[0, :count] = tokens
        given = {"tokens": padded, "mask": self._mask(position, length), "cos": cos, "sin": sin, **self._caches}
        found: dict[str, np.ndarray] = {}
        for program in self._programs:
            wanted = program.function(function).inputs
            found |= program.run({name: given[name] for name in wanted}, {}, function, self.half, self.trace)
            given["x"] = found.get("x_out")
        for name, rows in found.items():
            if "_new_" in name:
                self._caches[name.replace("_new_", "_cache_")][..., position:end] = rows[..., :count]
        logits = [found[name] for name in sorted(found, key=lambda name: (len(name), name)) if name.startswith("logits_")]
        return np.concatenate(logits, axis=1)[0, :, 0, :count].T

    def _mask(self, position: int, length: int) -> np.ndarray:
        """[1, 1, S + T, T]: cached rows before `position`, then the new ones, causally, within the window."""
        keys = np.concatenate([np.arange(self._rows), position + np.arange(length)])[:, None]
        queries = position + np.arange(length)[None, :]
        seen = keys <= queries
        seen[: self._rows] &= keys[: self._rows] < position
        if self._window is not None:
            seen &= keys > queries - self._window
        return np.where(seen, 0, HIDDEN).astype(np.float32)[None, None]

    def _release(self) -> None:
        self._programs, self._caches = [], {}
