"""Synthetic data: tasks -> teacher -> records -> gates -> one jsonl file a kind. Run again to go on where it stopped.

OUT/passage.jsonl, exercise.jsonl, instruction.jsonl, chat.jsonl    {"text"} for `data build`, {"messages"} for `train sft`
OUT/statistics.json                                                 what each gate kept out, with samples
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.files import new_folder, refuse_existing
from phi3mobile.training.data.gates import Gates, Sieve
from phi3mobile.training.data.generators import KINDS, Kind, Task, Unusable, education_prompt, prompt, read, read_score, text_of
from phi3mobile.training.data.jsonl import read_texts, write_json, write_jsonl
from phi3mobile.training.data.teacher import Desk, Teacher, open_teacher

Report = Callable[[str, int, int], None]
_SAMPLES = 3


@dataclass(frozen=True)
class Generate:
    """`count` records asked for of each kind, over the topics in turn (a file has one a line)."""

    out: Path
    teacher: Teacher
    topics: tuple[str, ...] = ()
    topics_file: Path | None = None
    kinds: tuple[Kind, ...] = KINDS
    count: int = 100
    seed: int = 0
    gates: Gates = field(default_factory=Gates)

    def __post_init__(self) -> None:
        if bool(self.topics) == bool(self.topics_file):
            raise InputError("give either topics or topics_file")
        if self.count < 1 or not self.kinds:
            raise InputError("count must be 1 or more, kinds not empty")


@dataclass(frozen=True)
class Label:
    """Scores of educational value, 0 to 5, for the first `count` texts of a jsonl file: labels for `train-classifier`."""

    out: Path
    teacher: Teacher
    texts: Path
    text_key: str = "text"
    count: int = 1000


CONFIG = Generate


def generate(config: Generate, report: Report = lambda stage, done, total: None) -> dict[str, Any]:
    """Write the folder; returns its statistics. Raises InputError where nothing passes, with what each gate kept out."""
    refuse_existing(config.out)
    desk = open_teacher(config.teacher, _memory(config.out))
    tasks = list(plan(topics_of(config), config.kinds, config.count, config.seed))
    records, statistics = produce(desk, tasks, config.gates, report)
    with new_folder(config.out) as folder:
        write_records(folder, records)
        write_json(folder / "statistics.json", statistics)
    return {"out": str(config.out), **{key: value for key, value in statistics.items() if key != "samples"}}


def label(config: Label, report: Report = lambda stage, done, total: None) -> dict[str, Any]:
    """Write jsonl {"text", "score"}; texts without a usable score are left out and counted."""
    refuse_existing(config.out)
    desk = open_teacher(config.teacher, _memory(config.out))
    texts = [entry[config.text_key] for entry in read_texts(config.texts, config.text_key)[: config.count]]
    lines, unusable = [], 0
    answers = desk.map(lambda text: desk(education_prompt(text), 0), texts)
    for done, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        report("label", done, len(texts))
        try:
            lines.append({"text": text, "score": read_score(answer, 0, 5)})
        except Unusable:
            unusable += 1
    if not lines:
        raise InputError(f"none of {len(texts)} answers had a score; is the teacher good enough?")
    write_jsonl(config.out, lines)
    return {"out": str(config.out), "labels": len(lines), "unusable": unusable, "asked": desk.asked}


def plan(topics: tuple[str, ...], kinds: tuple[Kind, ...], count: int, seed: int) -> Iterator[Task]:
    """`count` tasks of each kind, topics in turn, every task with a seed of its own."""
    for kind in kinds:
        for number in range(count):
            yield Task(kind, topics[number % len(topics)], seed * 1_000_003 + number)


def produce(
    desk: Desk, tasks: list[Task], gates: Gates, report: Report = lambda stage, done, total: None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Records that pass all gates, and {asked, kept, removed: {gate: count}, samples: {gate: [text]}}.

    The same tasks, teacher and gates give the same records in the same order, however often the run was cut.
    """
    sieve, removed, samples, passed = Sieve(gates, desk), Counter(), {}, []

    def remove(reason: str, text: str) -> None:
        removed[reason] += 1
        if len(samples.setdefault(reason, [])) < _SAMPLES:
            samples[reason].append(text[:800])

    answers = desk.map(lambda task: desk(prompt(task), task.seed), tasks)
    for done, (task, answer) in enumerate(zip(tasks, answers, strict=True)):
        report("generate", done, len(tasks))
        try:
            record = read(answer, task)
        except Unusable as error:
            remove(str(error), answer)
            continue
        reason = sieve.cheap(record)
        if reason:
            remove(reason, text_of(record))
        else:
            passed.append(record)
    records = []
    for done, (record, reason) in enumerate(zip(passed, desk.map(sieve.costly, passed), strict=True)):
        report("check", done, len(passed))
        if reason:
            remove(reason, text_of(record))
        else:
            records.append(record)
    if not records:
        counts = ", ".join(f"{reason} {count}" for reason, count in removed.most_common())
        raise InputError(f"none of {len(tasks)} answers passed the gates ({counts}); loosen the gates or take a better teacher")
    counts = {"tasks": len(tasks), "asked": desk.asked, "kept": len(records), "removed": dict(removed)}
    return records, counts | {"samples": samples}


def write_records(folder: Path, records: list[dict[str, Any]]) -> None:
    """One jsonl file a kind."""
    for kind in sorted({record["kind"] for record in records}):
        write_jsonl(folder / f"{kind}.jsonl", (record for record in records if record["kind"] == kind))


def topics_of(config: Generate) -> tuple[str, ...]:
    """The topics, from the config or its file."""
    if config.topics_file is None:
        return config.topics
    try:
        lines = config.topics_file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{config.topics_file} can't be read ({error}); give one topic a line") from None
    topics = tuple(line.strip() for line in lines if line.strip())
    if not topics:
        raise InputError(f"{config.topics_file} has no topics; give one a line")
    return topics


def _memory(out: Path) -> Path:
    return out.with_name(f"{out.name}.answers.jsonl")
