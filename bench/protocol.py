"""One protocol on every device, and its record: JSON lines, first of what and on what, then every raw time, failed runs too.

A plan is a list of runs; each run is a fresh process on the device that loads the bundle and does steps (bench/steps.py).
Statistics are made later, by the report, from the raw times.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TextIO

from phi3mobile.bench.battery import Sample, energies
from phi3mobile.bundle import Bundle
from phi3mobile.errors import InputError
from phi3mobile.progress import Progress
from phi3mobile.unicode import valid_values

FORMAT = 1


class RunFailed(Exception):
    """A run on the device ended early; the reason in one line. It stays in the record, and the next run begins."""


@dataclass(frozen=True)
class Plan:
    """What is measured. Prompts and depths that do not fit the bundle's context are left out, and named in the record."""

    name: str = "standard"
    prompts: tuple[int, ...] = (16, 128, 1024, 4096)
    depths: tuple[int, ...] = (128, 1024, 4096)
    count: int = 64  # tokens decoded a round
    rounds: int = 3
    cold: int = 1
    warm: int = 2
    sustain_s: float = 0.0
    text: int = 128  # tokens of the answer that is checked
    threads: int = 0  # 0: the runner's choice
    sample_s: float = 10.0  # between battery and thermal readings
    cooldown_s: float = 600.0  # longest wait for a cool phone
    warmest: int = 0  # thermal status (battery.STATUS) at which a run may begin
    load_only: bool = False


PLANS = {
    "standard": Plan(),
    "quick": Plan("quick", prompts=(16, 128), depths=(128,), count=16, rounds=2, warm=1, text=48, sample_s=5, cooldown_s=120),
    # The report's claim: phi-3-mini at 4 bit, > 12 tokens/s sustained by one phone in the hand.
    "phi3-report": Plan(
        "phi3-report", prompts=(16, 128, 1024), depths=(128, 1024, 2048), rounds=5, cold=3, warm=3, sustain_s=1800
    ),
}


@dataclass(frozen=True)
class Run:
    """One process."""

    name: str  # cold 1, warm 1, speed, text, sustained
    steps: tuple[str, ...] = ()
    cold: bool = False


class Device(Protocol):
    """A place to run: this machine (local.py), a phone through adb (android.py) or devicectl (ios.py)."""

    def describe(self) -> dict[str, Any]:
        """kind, name, os, soc, cores, memory_bytes, governor, build, runner: what is known; never secrets."""
        ...

    def install(self, bundle: Bundle, progress: Progress) -> None: ...

    def launch(self, run: Run, plan: Plan) -> Iterator[dict[str, Any]]:
        """Lines of the runner, as they come. Raises RunFailed."""
        ...

    def sample(self) -> Sample | None:
        """Battery and temperature now; None where there is nothing to read."""
        ...

    def collected(self) -> list[Sample]:
        """Samples that the device took by itself since it was last asked."""
        ...

    def clean(self) -> None: ...


def bundle_hash(bundle: Bundle) -> str:
    """SHA-256 over the files' hashes in the manifest: the bundle's bytes, whatever it is called."""
    files = bundle.manifest["files"]
    return hashlib.sha256("".join(f"{files[name]['sha256']} {name}\n" for name in sorted(files)).encode()).hexdigest()


def runs_of(plan: Plan, context: int, prompt_ids: Sequence[int]) -> tuple[list[Run], list[str]]:
    """The runs that fit, in order, and what was left out. prompt_ids: tokens of the question whose answer is checked."""
    prompts = [size for size in plan.prompts if size <= context]
    depths = [depth for depth in plan.depths if depth + plan.count <= context]
    left = [f"prefill {size}" for size in plan.prompts if size not in prompts]
    left += [f"decode at {depth}" for depth in plan.depths if depth not in depths]
    runs = [Run(f"cold {i + 1}", cold=True) for i in range(plan.cold)] + [Run(f"warm {i + 1}") for i in range(plan.warm)]
    if plan.load_only:
        return runs, left
    speed = [f"prefill:{size}:{plan.rounds}" for size in prompts]
    runs.append(Run("speed", (*speed, *(f"decode:{depth}:{plan.count}:{plan.rounds}" for depth in depths))))
    count = min(plan.text, context - len(prompt_ids))
    if count >= 8:
        runs.append(Run("text", (f"text:{count}:{','.join(map(str, prompt_ids))}",)))
    if plan.sustain_s:
        depth = min(depths, default=max(1, context // 2))
        block = min(plan.count, context - depth)
        runs.append(Run("sustained", (f"sustain:{plan.sustain_s:g}:{depth}:{block}",)))
    return runs, left


class Record:
    """Appends lines to a file; each is on disk before the next."""

    def __init__(self, file: TextIO) -> None:
        self._file, self.lines = file, []

    def add(self, kind: str, **fields: Any) -> dict[str, Any]:
        line = {"kind": kind, **fields}
        line.setdefault("t", round(time.time(), 3))
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._file.flush()
        self.lines.append(line)
        return line


def measure(
    device: Device,
    bundle: Bundle,
    plan: Plan,
    record: Record,
    progress: Progress,
    battery_wh: float | None = None,
    about: dict[str, Any] | None = None,
) -> str:
    """Do the plan; "done", or "failed" if any run failed. A phone that can't be prepared raises InputError (nothing measured).

    battery_wh: energy of the full battery, for the method of ticks. about: what device.describe() gave, if it was asked.
    """
    manifest = bundle.manifest
    device.install(bundle, progress)
    ids = _question(bundle)
    runs, left = runs_of(plan, manifest["model"]["context"], ids)
    record.add(
        "head",
        format=FORMAT,
        tool=_version(),
        device=about or device.describe(),
        plan=asdict(plan),
        left_out=left,
        bundle={
            "name": manifest["name"],
            "hash": bundle_hash(bundle),
            "recipe": manifest["recipe"]["name"],
            "options": manifest["recipe"],
            "weights_mapped": manifest["weights_mapped"],
            "model": manifest["model"],
            "memory": manifest["memory"],
            "runtime": manifest["runtime"]["version"],
            "experts": manifest["runtime"].get("experts"),
            "file_bytes": bundle.program_bytes,
        },
        battery_wh=battery_wh,
    )
    failed = 0
    try:
        for number, run in enumerate(runs):
            progress(run.name, number, len(runs))
            failed += not _one(device, bundle, plan, run, record, battery_wh)
        status = "failed" if failed else "done"
        record.add("end", status=status, failed=failed)
    except BaseException as error:
        record.add("end", status="interrupted", failed=failed, reason=f"{type(error).__name__}: {error}"[:300])
        raise
    finally:
        device.clean()
    return status


def _one(device: Device, bundle: Bundle, plan: Plan, run: Run, record: Record, battery_wh: float | None) -> bool:
    """One run with its samples; False if it failed."""
    reason, tokens, start, samples = "", 0, time.time(), []
    record.add("start", run=run.name, steps=list(run.steps))
    try:
        samples += cool_down(device, plan, record, run.name)
        start = time.time()
        for line in device.launch(run, plan):
            if line["kind"] == "text":
                line = line | check_text(line["tokens"], bundle)
            tokens += line["tokens"] if line["kind"] == "sustain" else 0
            record.add(line.pop("kind"), run=run.name, **line)
            if line.get("reason") and "step" in line:
                reason = f"{line['step']}: {line['reason']}"
    except RunFailed as error:
        reason = str(error)
    for sample in (found := device.collected()):
        record.add(run=run.name, **sample.line())
    if tokens:
        within = [one for one in found if start - plan.sample_s <= one.t]
        methods, why = energies(within, battery_wh)
        record.add("energy", run=run.name, tokens=tokens, methods=[asdict(one) for one in methods], why_not=why)
    if reason:
        record.add("failed", run=run.name, reason=reason)
    return not reason


def cool_down(
    device: Device, plan: Plan, record: Record, run: str, sleep: Callable[[float], None] = time.sleep
) -> list[Sample]:
    """Wait until the device reports `plan.warmest` or cooler. Raises RunFailed after plan.cooldown_s."""
    waited, samples = 0.0, []
    while (sample := device.sample()) is not None:
        samples.append(sample)
        record.add(run=run, **sample.line())
        if sample.thermal.status is None or sample.thermal.status <= plan.warmest:
            break
        if waited >= plan.cooldown_s:
            raise RunFailed(f"still at thermal status {sample.thermal.status} after {waited:g} s of cooling")
        sleep(plan.sample_s)
        waited += plan.sample_s
    if waited:
        record.add("cooldown", run=run, seconds=waited)
    return samples


QUESTION = "Explain in a few sentences why the sky is blue during the day and red in the evening."


def _question(bundle: Bundle) -> list[int]:
    """Token ids of the question as this bundle's chat puts it."""
    if bundle.manifest["chat"]["template"] is None:
        return bundle.tokenizer.encode(QUESTION, special=False)
    return bundle.chat.encode(bundle.tokenizer, [{"role": "user", "content": QUESTION}])


def check_text(tokens: Sequence[int], bundle: Bundle) -> dict[str, Any]:
    """The answer up to its end, and why it is no text (else ""): a broken kernel computes fast nonsense."""
    ends = [at for at, token in enumerate(tokens) if token in bundle.eos_ids]
    said = list(tokens[: ends[0]] if ends else tokens)
    return {"text": bundle.tokenizer.decode(said)[:2000], "ended": bool(ends), "degenerate": degenerate(said)}


def degenerate(tokens: Sequence[int]) -> str:
    """Why this is no text, or "": nothing said, one token again and again, or half of all 4-grams seen before."""
    if not tokens:
        return "it says nothing"
    longest, run = 1, 1
    for one, other in pairwise(tokens):
        run = run + 1 if one == other else 1
        longest = max(longest, run)
    if longest >= 12:
        return f"one token {longest} times in a row"
    grams = Counter(zip(*(tokens[i:] for i in range(4)), strict=False))
    total = sum(grams.values())
    if total >= 16 and (repeated := 1 - len(grams) / total) > 0.5:
        return f"{repeated:.0%} of its 4-grams repeat earlier ones"
    return ""


def read_record(path: Path) -> list[dict[str, Any]]:
    """The lines of a record. A last line that was cut off is dropped; anything else unreadable raises InputError."""
    try:
        rows = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read ({error}); give a .jsonl that `phi3mobile bench --device` wrote") from None
    lines = []
    for number, row in enumerate(rows):
        if not row.strip():
            continue
        try:
            line = valid_values(json.loads(row))
            if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
                raise ValueError("no object with a kind")
        except (ValueError, RecursionError):
            if number == len(rows) - 1:
                break
            raise InputError(f"{path}, line {number + 1} is no line of a benchmark record; measure again") from None
        lines.append(line)
    if not lines or lines[0]["kind"] != "head" or lines[0].get("format") != FORMAT:
        raise InputError(f"{path} is no benchmark record of format {FORMAT}; give what `phi3mobile bench --device` wrote")
    return lines


def plan_of(preset: str, **changes: Any) -> Plan:
    """A preset with changes; None leaves a value."""
    if preset not in PLANS:
        raise InputError(f"--preset {preset}: give {', '.join(PLANS)}")
    return replace(PLANS[preset], **{name: value for name, value in changes.items() if value is not None})


def _version() -> str:
    from importlib.metadata import version

    return version("phi3mobile")
