"""Pure helpers of every benchmark: percentiles, ratios, memory of a process, bandwidth of the machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Memory:
    """Bytes of one process: resident, resident and anonymous (what a phone's killer counts), and the peak of resident."""

    resident: int
    anonymous: int
    peak: int


def memory_now() -> Memory:
    """This process's memory: /proc on Linux; elsewhere anonymous is the whole resident set."""
    try:
        lines = open("/proc/self/status").read().splitlines()  # noqa: PTH123, SIM115  procfs
        field = {
            name: int(rest.split()[0]) * 1024
            for name, _, rest in (line.partition(":") for line in lines)
            if name in ("VmRSS", "RssAnon", "VmHWM")
        }
        return Memory(field["VmRSS"], field["RssAnon"], field["VmHWM"])
    except OSError:
        import resource
        import sys

        import psutil

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        resident = psutil.Process().memory_info().rss
        return Memory(resident, resident, peak)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def percentile(values: Sequence[float], share: float) -> float:
    """`share` in percent, linear interpolation."""
    return float(np.percentile(values, share))


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over rounds of ours / theirs: what slows a whole round (a neighbour on this machine) cancels out."""
    return median([mine / other for mine, other in zip(ours, theirs, strict=True)])


def usable_cores() -> int:
    """Threads that every runtime is given: the cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ReadBandwidth:
    """Bytes/s at which `threads` threads together read memory: the maximum of a byte array much larger than any cache.

    numpy's loop for it is SIMD without the GIL; it reads as fast as a C loop of plain 64-byte loads.
    """

    def __init__(self, threads: int, size: int = 256 << 20) -> None:
        """size: bytes of the array."""
        self._parts = np.array_split(np.ones(size, np.uint8), threads)
        self._pool = ThreadPoolExecutor(threads)
        self.measure()  # the threads start

    def measure(self, times: int = 3) -> float:
        """The best of `times` passes: a limit is what the machine can do, not what it did on average."""
        size = sum(map(len, self._parts))
        return max(size / seconds(lambda: list(self._pool.map(np.max, self._parts))) for _ in range(times))

    def close(self) -> None:
        self._pool.shutdown()
