"""Pure helpers of every benchmark: percentiles, rates, memory of a process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
        field = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)
                 if name in ("VmRSS", "RssAnon", "VmHWM")}  # fmt: skip
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
