"""Live numbers: tokens per second, context used, memory, frame times. Pure but for reading memory."""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from phi3mobile.engines import Engine

WINDOW_S = 1.0  # a rate is the mean over this time
HISTORY = 120  # points of the plot


class Metered:
    """An engine that also tells how far it is; read from the UI thread, written by the worker's."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.info = engine, engine.info
        self.used = 0  # positions of the KV cache that hold the sequence
        self.forwards = 0

    def forward(self, tokens: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        logits = self.engine.forward(tokens, position, long=long)
        self.used, self.forwards = position + len(tokens), self.forwards + 1
        return logits

    def forward_embeddings(self, rows: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        logits = self.engine.forward_embeddings(rows, position, long=long)
        self.used, self.forwards = position + len(rows), self.forwards + 1
        return logits

    def __getattr__(self, name: str) -> Any:
        """What else the engine can, such as keeping its KV cache in a file."""
        if name == "engine":  # not there yet
            raise AttributeError(name)
        return getattr(self.engine, name)

    def reset(self) -> None:
        self.used = 0
        self.engine.reset()

    def close(self) -> None:
        self.engine.close()


@dataclass
class Speed:
    """Tokens per second over the last second, and its history for the plot."""

    history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def start(self) -> None:
        """A new answer."""
        self._seen.clear()

    def push(self, now: float, used: int) -> float:
        """`used` positions at time `now` (seconds); the rate."""
        self._seen.append((now, used))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        if last <= first:
            return 0.0
        rate = max(0.0, (after - before) / (last - first))
        self.history.append(rate)
        return rate


@dataclass
class Frames:
    """Times between frames while something moves, and the part of them that is the app's own work, before drawing."""

    times: deque[float] = field(default_factory=lambda: deque(maxlen=6000))
    work: deque[float] = field(default_factory=lambda: deque(maxlen=6000))
    _last: float | None = None

    def tick(self, now: float) -> None:
        """A frame's work starts."""
        if self._last is not None:
            self.times.append(now - self._last)
        self._last = now

    def drawn(self, now: float) -> None:
        """It ends: what is left of the frame is the graphics system's."""
        if self._last is not None:
            self.work.append(now - self._last)

    def pause(self) -> None:
        self._last = None

    def summary(self) -> dict[str, float]:
        """Frames; p50, p95, p99 of the time between them and of the app's work in it, in ms. Empty without frames."""
        found: dict[str, float] = {"frames": len(self.times)} if self.times else {}
        for name, values in (("", self.times), ("work_", self.work)):
            if values:
                parts = np.percentile(np.asarray(values) * 1e3, (50, 95, 99)).tolist()
                found |= {f"{name}p{share}_ms": part for share, part in zip((50, 95, 99), parts, strict=True)}
        return found


def memory_used() -> int:
    """Bytes of this process's memory that nothing can drop: anonymous pages on Linux and Android, footprint on Apple."""
    if sys.platform in ("ios", "darwin"):
        from phi3mobile.bench.memory import apple_memory

        return apple_memory()["footprint_bytes"]
    status = Path("/proc/self/status").read_text()  # not all of bench.memory's figures: the kernel takes long over some
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


def memory_free() -> int | None:
    """Bytes that this process can still take; None if the system does not tell."""
    if sys.platform == "ios":
        available = ctypes.CDLL(None).os_proc_available_memory  # until the system ends the app
        available.restype = ctypes.c_size_t
        return available() or None
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        import psutil
    except ImportError:
        return None
    return psutil.virtual_memory().available
