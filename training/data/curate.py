"""The curation loop: evaluate -> weak categories -> targeted examples -> retrain -> compare, round after round, in one folder.

    OUT/round-1/before.jsonl   answers of the model so far          OUT/round-1/sft/final   the retrained checkpoint
    OUT/round-1/data/*.jsonl   examples for the weak categories     OUT/round-1/after.jsonl its answers
    OUT/round-1/result.json    scores before and after, kept or not (written last: the round is over)

Every step that left its file is skipped when the command is run again; training resumes from its own checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.files import new_folder
from phi3mobile.training.data.evaluate import Report, category_of, evaluate, scores
from phi3mobile.training.data.gates import Gates
from phi3mobile.training.data.generators import Kind
from phi3mobile.training.data.jsonl import read_texts, write_json
from phi3mobile.training.data.synthetic import plan, produce, write_records
from phi3mobile.training.data.teacher import Desk, Teacher, open_session, open_teacher, session_ask
from phi3mobile.training.settings import read_settings

TRAINED: tuple[Kind, ...] = ("exercise", "instruction", "chat")  # those with messages
Train = Callable[[str, list[str], Path], str]  # checkpoint, jsonl files, folder -> trained checkpoint


@dataclass(frozen=True)
class Curate:
    """`questions` (jsonl question, answer, category) find the weak categories; `held_out` (default: the same) decides whether a
    retrained model is kept. No example may quote either. `sft`: a `train sft` config; its out is ours, and its files are
    mixed in. Each round trains `model` anew on those and all examples so far."""

    out: Path
    model: str
    teacher: Teacher
    questions: Path
    sft: Path
    held_out: Path | None = None
    topics: dict[str, Any] = field(default_factory=dict)  # category -> list of topics; default: the category's name
    rounds: int = 2
    weakest: int = 2  # categories a round
    target: float = 0.9  # a category with this share right is not weak
    kinds: tuple[Kind, ...] = ("exercise", "instruction")
    per_category: int = 50  # examples asked for, of each kind
    max_tokens: int = 128  # of an answer
    gates: Gates = field(default_factory=Gates)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.weakest < 1 or self.per_category < 1 or self.max_tokens < 1:
            raise InputError("rounds, weakest, per_category and max_tokens must be 1 or more")
        if not self.kinds or not set(self.kinds) <= set(TRAINED):
            raise InputError(f"kinds is {list(self.kinds)}; choose of {', '.join(TRAINED)}: passages have no one to answer")


CONFIG = Curate


def curate(config: Curate, report: Report = lambda stage, done, total: None, train: Train | None = None) -> dict[str, Any]:
    """Run, or go on with, all rounds. `train` replaces `phi3mobile train sft`. Returns {model, before, after, rounds}."""
    files_of = {"dev": config.questions, "held": config.held_out or config.questions}
    sets = {name: read_texts(file, "question", "answer") for name, file in files_of.items()}
    train = train or _sft(config)
    _begin(config)
    desk = open_teacher(config.teacher, config.out / "answers.jsonl")
    model, files, rounds = config.model, [], []
    for number in range(1, config.rounds + 1):
        folder = config.out / f"round-{number}"
        result = _round(config, folder, model, files, sets, desk, train, report)
        if result is None:
            break
        rounds.append(result)
        files += result["files"]
        model = result["model"]
    if not rounds:
        first = scores(config.out / "round-1" / "before.jsonl")
        return {"model": model, "before": first["all"], "after": first["all"], "rounds": []}
    return {
        "model": model,
        "before": rounds[0]["before"]["all"],
        "rounds": rounds,
        "after": rounds[-1]["after" if rounds[-1]["kept"] else "before"]["all"],
    }


def _round(
    config: Curate, folder: Path, model: str, files: list[str], sets: dict[str, list], desk: Desk, train: Train, report: Report
) -> dict[str, Any] | None:
    """One round's result; None if no category is weak any more."""
    if (folder / "result.json").is_file():
        return json.loads((folder / "result.json").read_text("utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    dev = _scores(model, sets["dev"], folder / "before.jsonl", config, report)
    before = dev if config.held_out is None else _scores(model, sets["held"], folder / "before-held.jsonl", config, report)
    weak = weakest(dev["categories"], config.weakest, config.target)
    if not weak:
        return None
    made = _examples(config, folder, weak, desk, report)
    trained = train(config.model, [*files, *made], folder / "sft")
    after = _scores(trained, sets["held"], folder / "after.jsonl", config, report)
    kept = after["all"] > before["all"]
    result = {"weak": weak, "before": before, "after": after, "kept": kept, "files": made, "model": trained if kept else model}
    write_json(folder / "result.json", result)
    return result


def weakest(categories: dict[str, float], count: int, target: float) -> list[str]:
    """The `count` categories with the lowest scores below `target`, the worst first."""
    below = [name for name, share in categories.items() if share < target]
    return sorted(below, key=lambda name: (categories[name], name))[:count]


def _scores(model: str, questions: list[dict[str, Any]], out: Path, config: Curate, report: Report) -> dict[str, Any]:
    if out.is_file():
        return scores(out)
    with open_session(model) as session:
        return evaluate(session_ask(session, 0.0, config.max_tokens), questions, out, report)


def _examples(config: Curate, folder: Path, weak: list[str], desk: Desk, report: Report) -> list[str]:
    """jsonl files of examples for the weak categories that passed the gates."""
    out = folder / "data"
    if not out.exists():
        number = int(folder.name.rpartition("-")[2])
        topics = tuple(topic for name in weak for topic in config.topics.get(name, [name]))
        tasks = list(plan(topics, config.kinds, config.per_category * len(weak), number))
        guarded = (*config.gates.decontaminate, config.questions, *([config.held_out] if config.held_out else []))
        records, statistics = produce(desk, tasks, dataclasses.replace(config.gates, decontaminate=guarded), report)
        with new_folder(out) as partial:
            write_records(partial, records)
            write_json(partial / "statistics.json", statistics)
    return [str(file) for file in sorted(out.glob("*.jsonl"))]


def _begin(config: Curate) -> None:
    """OUT, made or found; InputError if it was begun with another config."""
    names = {category_of(question) for question in read_texts(config.questions, "question", "answer")}
    if unknown := sorted(set(config.topics) - names):
        raise InputError(f"topics names {unknown[0]}; {config.questions} has the categories {', '.join(sorted(names))}")
    for name, topics in config.topics.items():
        if not isinstance(topics, list) or not topics or not all(isinstance(topic, str) for topic in topics):
            raise InputError(f"topics: {name} is {topics!r:.60}; give a list of texts")
    text = json.dumps(dataclasses.asdict(config), default=str, indent=1)
    begun = config.out / "config.json"
    if begun.is_file() and begun.read_text() != text:
        raise InputError(f"{config.out} was begun with another config; restore it or give another out")
    config.out.mkdir(parents=True, exist_ok=True)
    begun.write_text(text)


def _sft(config: Curate) -> Train:
    from phi3mobile.training.config import Sft
    from phi3mobile.training.model import check_trainable
    from phi3mobile.training.sft import sft

    base = read_settings(config.sft, Sft)
    check_trainable(dataclasses.replace(base.model, folder=config.model, shape={}))

    def train(model: str, files: list[str], out: Path) -> str:
        data = dataclasses.replace(base.data, files=(*base.data.files, *files))
        start = dataclasses.replace(base.model, folder=model, shape={})
        return sft(dataclasses.replace(base, out=str(out), model=start, data=data))["out"]

    return train
