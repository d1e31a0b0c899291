"""Speed and memory of a bundle on this machine, alone or beside other runtimes, each in a process of its own.

Prefill is bound by arithmetic, decode by reading the weights (and the KV cache) once per token: bytes read x tokens/s is
given as a share of the bandwidth that this machine showed in the same round.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import psutil

from phi3mobile.bench.measure import ReadBandwidth, median, paired_ratio, percentile, usable_cores
from phi3mobile.bench.peers import Entry, decode_bytes
from phi3mobile.bench.worker import SETTLE_S, Worker, WorkerDied
from phi3mobile.errors import InputError
from phi3mobile.files import cache_folder, scratch_folder
from phi3mobile.progress import Progress, silent

__all__ = ["compare", "decode_bytes", "depths_for"]
DEPTHS, PROMPTS = (128, 1024, 4096), (128, 1024)
COUNT = 32  # tokens decoded per round and depth
OURS = "phi3mobile"


def depths_for(context: int, asked: list[int] | None, count: int = COUNT) -> list[int]:
    """Depths to decode at, ascending: those asked for (InputError if one does not fit), or DEPTHS as far as they fit."""
    most = context - count
    if asked is None:
        return sorted({max(1, min(depth, most)) for depth in DEPTHS})
    if wrong := [depth for depth in asked if not 1 <= depth <= most]:
        raise InputError(f"--depths {wrong[0]}: 1..{most} leave room for {count} tokens in this context of {context}")
    return sorted(set(asked))


def compare(
    entries: Mapping[str, Entry], context: int, rounds: int = 3, depths: list[int] | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Figures of every runtime, medians over rounds in which they take turns; `failed`: who died, and of what.

    The first entry must be OURS; the others' ratios are against it, round by round. Only one worker computes at a time.
    """
    count = min(COUNT, context // 2)
    depths, threads = depths_for(context, depths, count), usable_cores()
    with ExitStack() as stack:
        # A cache of packed weights of its own: the first load has to pack, the second finds them.
        packed = str(stack.enter_context(scratch_folder(cache_folder(), "bench")))
        run = _Run(entries, {"XDG_CACHE_HOME": packed}, progress)
        stack.callback(run.close)
        arguments = {"context": context, "threads": threads}
        run.load("cold", arguments)
        run.load("warm", arguments)
        bandwidth = ReadBandwidth(threads)
        stack.callback(bandwidth.close)
        for prompt in _prompts(context):
            for turn in range(rounds):
                progress(f"prefill {prompt}", turn, rounds)
                run.each("prefill", "prefill", prompt, count=prompt)
        # The rows of the longest prompt are there already, and going back keeps the rows before: fill once, decode downwards.
        progress(f"fill {depths[-1]}", 0, 1)
        run.each("fill", "filled", start=_prompts(context)[-1], end=depths[-1])
        for depth in reversed(depths):
            for turn in range(rounds):
                progress(f"decode {depth}", turn, rounds)
                run.decode(depth, count, bandwidth)
        run.each("logits", "logits", count=_prompts(context)[0])
        run.each("memory", "memory")
        return {"threads": threads, "rounds": rounds, **summary(run.samples, entries), "failed": run.failed}


def others_cpu_percent() -> float:
    """CPU that is busy while all our workers wait: other programs, which make the figures worse than they are."""
    time.sleep(SETTLE_S)
    return psutil.cpu_percent(0.2)


def _prompts(context: int) -> list[int]:
    return sorted({min(prompt, context) for prompt in PROMPTS})


class _Run:
    """The workers of one comparison and what they answered: samples[column][what, size] is a list, one a round."""

    def __init__(self, entries: Mapping[str, Entry], environment: Mapping[str, str], progress: Progress) -> None:
        self._entries, self._environment, self._progress = entries, environment, progress
        self.workers: dict[str, Worker] = {}
        self.failed: dict[str, str] = {}
        self.samples: dict[str, dict[tuple[str, int], list]] = {name: {} for name in ("machine", *entries)}

    def load(self, how: str, arguments: Mapping[str, int]) -> None:
        """Every runtime in a new process; a cold one reads its files from the disk."""
        for name, entry in self._entries.items():
            if name in self.failed:
                continue
            self._progress(f"{how} load", 0, 1)
            if name in self.workers:
                self.workers.pop(name).close()
            if how == "cold":
                _forget(entry)
            self.workers[name] = Worker(self._environment)
            self._ask(name, "load", how, 0, runtime=entry.runtime, path=str(entry.path), **arguments)

    def each(self, do: str, what: str, size: int = 0, **arguments: Any) -> None:
        """Ask all workers, one after the other."""
        for name in list(self.workers):
            self._ask(name, do, what, size, **arguments)

    def decode(self, depth: int, count: int, bandwidth: ReadBandwidth) -> None:
        """All workers decode; the bandwidth of each turn is the better of what is read just before and just after it.

        Machines with neighbours change theirs within seconds, and a reading that is too low would flatter the share.
        """
        for name in list(self.workers):
            self.note("busy", others_cpu_percent(), depth)  # takes a while: threads that spin after work sleep by then
            before = bandwidth.measure()
            self._ask(name, "decode", "decode", depth, depth=depth, count=count)
            time.sleep(SETTLE_S)
            if name in self.workers:
                read = max(before, bandwidth.measure())
                self.samples[name].setdefault(("read", depth), []).append(read)
                self.note("read", read, depth)

    def note(self, what: str, value: float, size: int) -> None:
        self.samples["machine"].setdefault((what, size), []).append(value)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()

    def _ask(self, name: str, do: str, what: str, size: int, **arguments: Any) -> None:
        """A peer that fails leaves the run with its reason; without ours there is nothing to compare."""
        try:
            self.samples[name].setdefault((what, size), []).append(self.workers[name].ask(do, **arguments))
        except (WorkerDied, InputError) as error:
            if name == OURS and isinstance(error, InputError):
                raise
            if name == OURS:
                raise RuntimeError(f"{do} {arguments}: {error}") from None
            self.failed[name] = f"{do}: {error}"
            self.workers.pop(name).close()


def _forget(entry: Entry) -> None:
    """Ask the system to drop these files from its cache, where it can be asked."""
    if hasattr(os, "posix_fadvise"):
        for path in entry.files:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def summary(samples: Mapping[str, Mapping[tuple[str, int], list]], entries: Mapping[str, Entry]) -> dict[str, Any]:
    """The document: read bandwidth, and per runtime that answered everything its figures (and ratios to ours)."""
    machine, ours = samples["machine"], samples[OURS]
    whole = [name for name in entries if ("memory", 0) in samples[name]]
    return {
        "read_GB_per_s": round(median(_all(machine, "read")) / 1e9, 2),
        "others_cpu_percent": round(float(np.mean(_all(machine, "busy"))), 1),
        "runtimes": {name: _figures(samples[name], entries[name], ours) for name in whole},
    }


def _all(samples: Mapping[tuple[str, int], list], what: str) -> list[float]:
    return [value for (kind, _), values in samples.items() if kind == what for value in values]


def _figures(own: Mapping[tuple[str, int], list], entry: Entry, ours: Mapping) -> dict[str, Any]:
    prompts = sorted(size for what, size in own if what == "prefill")
    prefill = {str(size): round(size / median(own["prefill", size]), 1) for size in prompts}
    decode, ratios = {}, {}
    for depth in sorted(size for what, size in own if what == "decode"):
        rounds = [median(times) for times in own["decode", depth]]
        times = [took for times in own["decode", depth] for took in times]
        rates = [entry.bytes_read(depth) / took for took in rounds]
        decode[str(depth)] = {
            "tokens_per_s": round(1 / median(rounds), 1),
            "p50_ms": round(percentile(times, 50) * 1e3, 3),
            "p95_ms": round(percentile(times, 95) * 1e3, 3),
            "GB_per_s": round(median(rates) / 1e9, 2),
            "share_of_read_bandwidth": round(paired_ratio(rates, own["read", depth]), 3),
        }
        ratios[f"decode_{depth}"] = round(paired_ratio(rounds, [median(times) for times in ours["decode", depth]]), 2)
    for size in prompts:
        ratios[f"prefill_{size}"] = round(paired_ratio(own["prefill", size], ours["prefill", size]), 2)
    (cold,), (warm,), (memory,) = own["cold", 0], own["warm", 0], own["memory", 0]
    figures = {
        "prefill_tokens_per_s": prefill,
        f"ttft_{prompts[0]}_s": round(median(own["prefill", prompts[0]]), 4),
        "decode": decode,
        "load_cold_s": round(cold["load_s"], 3),
        "load_warm_s": round(warm["load_s"], 3),
        "anonymous_bytes": memory["anonymous_bytes"],
        "peak_bytes": memory["peak_bytes"],
        "peak_cold_load_bytes": cold["peak_bytes"],
        "file_bytes": sum(path.stat().st_size for path in entry.files),
    }
    if own is ours:
        return figures
    return figures | {"ours_is_faster_by": ratios, "logits_cosine": round(cosine(own["logits", 0][0], ours["logits", 0][0]), 4)}


def cosine(one: list[float], other: list[float]) -> float:
    """Whether two runtimes compute the same model: 1 for the same logits up to a factor."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
