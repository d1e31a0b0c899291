"""What a record says: medians with bootstrap intervals, curves, and which figures became worse between two records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from phi3mobile.bench.measure import median, percentile

RESAMPLES, COVERAGE = 2000, 0.95
STRETCHES = 5  # of a sustained run: neighbouring blocks share their heat, so each is no round of its own
WORSE_BY = 0.03  # smaller changes are not called regressions
TOO_FEW = "too few"
FEWEST = 3  # rounds on each side: fewer know nothing of their spread, and have no verdict
# key prefix -> larger is better
BETTER_LARGER = {
    "decode": True,
    "prefill": True,
    "ttft": False,
    "load": False,
    "memory": False,
    "energy": False,
    "sustained": True,
}


@dataclass(frozen=True)
class Figure:
    """One number of a device: median, a 95 % interval of it, and the rounds it is from (so that two can be compared)."""

    value: float
    low: float
    high: float
    rounds: tuple[float, ...]


@dataclass
class Summary:
    """A record, digested. Curves are lists of points."""

    path: str
    head: dict[str, Any]
    status: str
    figures: dict[str, Figure] = field(default_factory=dict)
    between_ms: dict[int, tuple[float, float]] = field(default_factory=dict)  # depth -> p50, p95 of the time between tokens
    memory: list[tuple[int, int]] = field(default_factory=list)  # context, bytes
    sustained: list[tuple[float, float]] = field(default_factory=list)  # seconds since its start, tokens/s
    heat: list[tuple[float, float]] = field(default_factory=list)  # the same seconds, degrees
    energy: dict[str, float] = field(default_factory=dict)  # method -> joules per token
    energy_error: dict[str, float] = field(default_factory=dict)
    why_no_energy: str = ""
    throttled: str = ""
    text: dict[str, Any] | None = None
    failed: list[str] = field(default_factory=list)
    label: str = ""  # short, among the records of one report

    @property
    def title(self) -> str:
        return f"{self.head['device']['name']}: {self.head['bundle']['name']} ({self.head['bundle']['recipe']})"

    @property
    def burst_to_sustained(self) -> float | None:
        """Share of the first minute's speed that the last minute keeps."""
        if len(self.sustained) < 4:
            return None
        end = self.sustained[-1][0]
        window = min(60.0, end / 4)
        first = [rate for t, rate in self.sustained if t <= window] or [self.sustained[0][1]]
        last = [rate for t, rate in self.sustained if t >= end - window]
        return median(last) / median(first)

    @property
    def battery_percent_per_1000(self) -> float | None:
        """Of the full battery, per 1000 tokens, by the best method that measures the whole phone."""
        wh, joules = self.head.get("battery_wh"), next((self.energy[m] for m in ("ticks", "current") if m in self.energy), None)
        return 100 * 1000 * joules / (wh * 3600) if wh and joules else None

    def brief(self) -> dict[str, Any]:
        """The figures as plain numbers, for the last line of `bench`."""
        return {
            **{name: _rounded(figure.value) for name, figure in self.figures.items()},
            "p50_p95_ms": {str(depth): [round(value, 2) for value in pair] for depth, pair in self.between_ms.items()},
            "burst_to_sustained": _rounded(self.burst_to_sustained),
            "joules_per_token": self.energy,
            "why_no_energy": self.why_no_energy,
            "degenerate": self.text and self.text.get("degenerate"),
            "failed": self.failed,
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def figure(rounds: Sequence[float], seed: int = 0) -> Figure:
    """Median, with a percentile bootstrap over rounds (one round: no spread is known, the interval is the value)."""
    values = np.asarray(rounds, float)
    draws = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), [50 - 50 * COVERAGE, 50 + 50 * COVERAGE])
    return Figure(float(np.median(values)), float(low), float(high), tuple(map(float, rounds)))


def summarize(lines: Sequence[Mapping[str, Any]], path: str = "") -> Summary:
    """Lines of read_record."""
    by_kind: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        by_kind[line["kind"]].append(line)
    status = by_kind["end"][-1]["status"] if by_kind["end"] else "interrupted"
    found = Summary(path, dict(by_kind["head"][0]), status)
    for how in ("cold", "warm"):
        _add(found, f"load {how}", [line["seconds"] for line in by_kind["load"] if line["run"].startswith(how)])
    for size, times in _grouped(by_kind["prefill"], "tokens"):
        _add(found, f"ttft {size}", times)
        _add(found, f"prefill {size}", [size / took for took in times])
    for depth, rounds in _grouped(by_kind["decode"], "depth"):
        _add(found, f"decode {depth}", [len(times) / sum(times) for times in rounds])
        times = [1e3 * took for one in rounds for took in one]
        found.between_ms[depth] = (percentile(times, 50), percentile(times, 95))
    _memory(found, by_kind)
    _sustained(found, by_kind)
    for line in by_kind["energy"]:
        found.why_no_energy = line["why_not"]
        for one in line["methods"]:
            share = one["seconds"] / max(_span(by_kind["sustain"]), one["seconds"])
            tokens = line["tokens"] * share  # a method sees its own stretch of the run
            found.energy[one["method"]] = one["joules"] / tokens
            found.energy_error[one["method"]] = one["error"]
            _add(found, f"energy {one['method']}", [one["joules"] / tokens])
    found.text = dict(by_kind["text"][-1]) if by_kind["text"] else None
    found.failed = [f"{line['run']}: {line['reason']}" for line in by_kind["failed"]]
    return found


def _add(found: Summary, name: str, rounds: Sequence[float]) -> None:
    if rounds:
        found.figures[name] = figure(rounds)


def _grouped(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, list[Any]]]:
    groups: dict[int, list[Any]] = defaultdict(list)
    for line in lines:
        groups[line[key]].append(line["seconds"])
    return sorted(groups.items())


def _span(lines: Sequence[Mapping[str, Any]]) -> float:
    return max((line["elapsed"] for line in lines), default=0.0)


def _memory(found: Summary, by_kind: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Peak over all runs; and what is not file pages, by context: dirty pages count against a phone's limits."""
    lines = [*by_kind["load"], *by_kind["memory"]]
    for name in ("peak", "footprint", "anonymous", "pss", "dirty"):
        values = [value for line in lines for key in (f"{name}_bytes", f"{name}_peak_bytes") if (value := line.get(key))]
        if values:
            _add(found, f"memory {name}", [max(values)])
    grown: dict[int, int] = {}
    for line in by_kind["memory"]:
        size = line.get("footprint_bytes", line.get("dirty_bytes", line.get("anonymous_bytes")))
        if size is not None:
            grown[line["tokens"]] = max(size, grown.get(line["tokens"], 0))
    found.memory = sorted(grown.items())


def _sustained(found: Summary, by_kind: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    blocks = by_kind["sustain"]
    if not blocks:
        return
    found.sustained = [(line["elapsed"], line["tokens"] / line["seconds"]) for line in blocks if line["seconds"] > 0]
    last = [rate for t, rate in found.sustained if t >= _span(blocks) / 2]
    _add(found, "sustained", [median(part) for part in np.array_split(last, min(STRETCHES, len(last)))])
    start = blocks[0]["t"] - blocks[0]["elapsed"]
    samples = [line for line in by_kind["sample"] if line["run"] == blocks[0]["run"]]
    for line in samples:
        thermal = line["thermal"]
        heat = next(
            (
                value
                for value in (
                    thermal["skin_c"],
                    line["battery"]["temperature_c"],
                    max(thermal["temperatures"].values(), default=None),
                )
                if value is not None
            ),
            None,
        )
        if heat is not None and line["t"] >= start:
            found.heat.append((line["t"] - start, heat))
    worst = max((line["thermal"]["status"] or 0 for line in samples), default=0)
    if worst:
        from phi3mobile.bench.battery import STATUS

        found.throttled = f"thermal status {STATUS[worst]}"


@dataclass(frozen=True)
class Change:
    """One figure in two records: new / old with its interval; `verdict`: worse, better, same, or none of too few rounds."""

    name: str
    old: float
    new: float
    ratio: float
    low: float
    high: float
    verdict: str
    rounds: tuple[int, int]  # of the old and the new record


def changes(old: Summary, new: Summary, seed: int = 0) -> list[Change]:
    """Every figure both have. Worse (better): the whole 95 % bootstrap interval of the ratio lies beyond WORSE_BY.

    Figures of fewer than FEWEST rounds have the verdict "too few".
    """
    generator = np.random.default_rng(seed)
    found = []
    for name in (key for key in old.figures if key in new.figures):
        one, other = old.figures[name], new.figures[name]
        if one.value <= 0:
            continue
        ratios = _resampled(other.rounds, generator) / _resampled(one.rounds, generator)
        low, high = (float(value) for value in np.percentile(ratios, [50 - 50 * COVERAGE, 50 + 50 * COVERAGE]))
        larger = BETTER_LARGER[name.split()[0]]
        down, up = high < 1 - WORSE_BY, low > 1 + WORSE_BY
        verdict = "same" if not (down or up) else "better" if up == larger else "worse"
        rounds = len(one.rounds), len(other.rounds)
        if min(rounds) < FEWEST:
            verdict = TOO_FEW
        found.append(Change(name, one.value, other.value, other.value / one.value, low, high, verdict, rounds))
    return found


def _resampled(rounds: Sequence[float], generator: np.random.Generator) -> np.ndarray:
    values = np.asarray(rounds, float)
    return np.median(values[generator.integers(0, len(values), (RESAMPLES, len(values)))], axis=1)


def comparable(one: Summary, other: Summary) -> bool:
    """Two records of one device, runner, model, recipe, context and threads: the later is checked against the earlier."""

    def key(record: Summary) -> tuple:
        bundle = record.head["bundle"]
        threads = record.head["plan"].get("threads")
        device = record.head["device"]
        return device["name"], device.get("runner"), bundle["name"], bundle["recipe"], bundle["model"]["context"], threads

    return key(one) == key(other)
