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
SHARE = 0.8  # of the memory that is available, for runtimes that are loaded together


def depths_for(context: int, asked: list[int] | None, count: int = COUNT) -> list[int]:
    """Depths to decode at, ascending: those asked for (InputError if one does not fit), or DEPTHS as far as they fit."""
    most = context - count
    if asked is None:
        return sorted({max(1, min(depth, most)) for depth in DEPTHS})
    if wrong := [depth for depth in asked if not 1 <= depth <= most]:
        raise InputError(f"--depths {wrong[0]}: 1..{most} leave room for {count} tokens in this context of {context}")
    return sorted(set(asked))


def compare(
    entries: Mapping[str, Entry],
    context: int,
    rounds: int = 3,
    depths: list[int] | None = None,
    progress: Progress = silent,
    prompts: tuple[int, ...] = PROMPTS,
    picture: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Figures of every runtime, medians over rounds in which they take turns; `failed`: who died, and of what. picture: tokens
    and views of one that ours is shown, too.

    The first entry must be OURS; the others' ratios are against it, round by round. Only one worker computes at a time. Those
    that do not fit into memory together are closed between their turns, and loaded again.
    """
    count = min(COUNT, context // 2)
    depths, threads = depths_for(context, depths, count), usable_cores()
    prompts = tuple(sorted({min(prompt, context) for prompt in prompts}))
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
        groups = together(run.needs(), psutil.virtual_memory().available)
        for turn in range(1 if len(groups) == 1 else rounds):
            for group in groups:
                run.open(group, arguments, prompts[0])
                if picture is not None and OURS in group:
                    run.look(*picture, rounds if len(groups) == 1 else 1)
                _measure(run, prompts, depths, count, rounds if len(groups) == 1 else 1, bandwidth)
                if turn == 0:
                    run.each("logits", "logits", count=prompts[0])
                    run.each("memory", "memory")
                run.close()
        document = {"threads": threads, "rounds": rounds, "loaded_together": groups}
        whole = {name: entry for name, entry in entries.items() if name not in run.failed}
        return document | summary(run.samples, whole) | {"failed": run.failed}


def _measure(run: _Run, prompts: tuple[int, ...], depths: list[int], count: int, rounds: int, bandwidth: ReadBandwidth) -> None:
    """All prompts and depths with the runtimes that are loaded, which take turns."""
    for prompt in prompts:
        for turn in range(rounds):
            run.progress(f"prefill {prompt}", turn, rounds)
            run.each("prefill", "prefill", prompt, count=prompt)
    # The rows of the longest prompt are there already, and going back keeps the rows before: fill once, decode downwards.
    run.progress(f"fill {depths[-1]}", 0, 1)
    run.each("fill", "filled", start=prompts[-1], end=depths[-1])
    for depth in reversed(depths):
        for turn in range(rounds):
            run.progress(f"decode {depth}", turn, rounds)
            run.decode(depth, count, bandwidth)


def together(needs: Mapping[str, int], available: int) -> list[list[str]]:
    """Which runtimes are loaded at the same time, in their order: as many as fit SHARE of the memory.

    What does not fit makes the system drop the pages of weights that are mapped from files, and read them again while the clock
    runs.
    """
    groups: list[list[str]] = []
    room = 0.0
    for name, need in needs.items():
        if not groups or need > room:
            groups.append([])
            room = SHARE * available
        groups[-1].append(name)
        room -= need
    return groups


def others_cpu_percent() -> float:
    """CPU that is busy while all our workers wait: other programs, which make the figures worse than they are."""
    time.sleep(SETTLE_S)
    return psutil.cpu_percent(0.2)


class _Run:
    """The workers of one comparison and what they answered: samples[column][what, size] is a list, one a round."""

    def __init__(self, entries: Mapping[str, Entry], environment: Mapping[str, str], progress: Progress) -> None:
        self._entries, self._environment, self.progress = entries, environment, progress
        self.workers: dict[str, Worker] = {}
        self.failed: dict[str, str] = {}
        self.samples: dict[str, dict[tuple[str, int], list]] = {name: {} for name in ("machine", *entries)}

    def load(self, how: str, arguments: Mapping[str, int]) -> None:
        """Every runtime alone, in a new process; a cold one reads its files from the disk."""
        for name, entry in self._entries.items():
            if name in self.failed:
                continue
            self.progress(f"{how} load", 0, 1)
            if how == "cold":
                _forget(entry)
            self._start(name, how, arguments)
            self.close()

    def needs(self) -> dict[str, int]:
        """Bytes that each runtime takes once it computes: those that it owns, and its files as far as it maps them."""
        loads = {name: self.samples[name]["warm", 0][0] for name in self._entries if name not in self.failed}
        return {
            name: max(load["peak_bytes"], load["anonymous_bytes"] + _size(self._entries[name])) for name, load in loads.items()
        }

    def open(self, names: list[str], arguments: Mapping[str, int], first: int) -> None:
        """Load these, each in a new process, and let each read `first` tokens: what it maps is in memory then."""
        for name in names:
            if name not in self.failed:
                self.progress("load", 0, 1)
                self._start(name, "again", arguments)
        self.each("prefill", "first", count=first)
        left = psutil.virtual_memory().available
        for name in self.workers:
            self.samples[name].setdefault(("left", 0), []).append(left)

    def _start(self, name: str, how: str, arguments: Mapping[str, int]) -> None:
        entry = self._entries[name]
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

    def look(self, tokens: int, views: int, rounds: int) -> None:
        """Ours sees a picture; before the prompts, which fill the cache anew."""
        for turn in range(rounds):
            self.progress(f"picture of {tokens} tokens", turn, rounds)
            self._ask(OURS, "picture", "picture", tokens, tokens=tokens, views=views)

    def note(self, what: str, value: float, size: int) -> None:
        self.samples["machine"].setdefault((what, size), []).append(value)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()

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


def _size(entry: Entry) -> int:
    return sum(path.stat().st_size for path in entry.files)


def _forget(entry: Entry) -> None:
    """Ask the system to drop these files from its cache, where it can be asked."""
    if hasattr(os, "posix_fadvise"):
        for path in entry.files:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def summary(samples: Mapping[str, Mapping[tuple[str, int], list]], entries: Mapping[str, Entry]) -> dict[str, Any]:
    """The document: read bandwidth, and per runtime, which all answered everything, its figures (and ratios to ours)."""
    machine, ours = samples["machine"], samples[OURS]
    return {
        "read_GB_per_s": round(median(_all(machine, "read")) / 1e9, 2),
        "others_cpu_percent": round(float(np.mean(_all(machine, "busy"))), 1),
        "runtimes": {name: _figures(samples[name], entries[name], ours) for name in entries},
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
        "memory_left_bytes": min(own["left", 0]),
        "peak_cold_load_bytes": cold["peak_bytes"],
        "file_bytes": _size(entry),
    }
    for tokens, rounds in ((size, values) for (what, size), values in own.items() if what == "picture"):
        taken = {key: round(median([one[key] for one in rounds]), 4) for key in rounds[0]}
        figures["picture"] = {"tokens": tokens, **taken}
    if own is ours:
        return figures
    return figures | {"ours_is_faster_by": ratios, "logits_cosine": round(cosine(own["logits", 0][0], ours["logits", 0][0]), 4)}


def cosine(one: list[float], other: list[float]) -> float:
    """Whether two runtimes compute the same model: 1 for the same logits up to a factor."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
