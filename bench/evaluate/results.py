"""Result lines (jsonl) and their table beside the paper's numbers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phi3mobile.bench.predict import published
from phi3mobile.bench.report_tables import Cell, Table
from phi3mobile.errors import InputError
from phi3mobile.files import is_special, whole_file
from phi3mobile.unicode import valid_values

KIND, FORMAT = "quality", 1
NEEDED = {"task": str, "metric": str, "score": (int, float), "n": int, "model": dict, "metrics": dict}


def result_line(task: str, found: dict[str, Any], model: dict[str, Any], identity: str, **how: Any) -> dict[str, Any]:
    """One task's result. `how`: limit, chat, truncated, seconds, ... InputError for a score that is no finite number."""
    from importlib.metadata import version

    if not math.isfinite(found["score"]):
        raise InputError(f"{task}: the score is {found['score']}: what the model answered can't be counted")
    head = {"kind": KIND, "format": FORMAT, "t": round(time.time(), 1), "tool": version("phi3mobile"), "task": task}
    return head | found | how | {"model": model | {"hash": identity}}


def append_result(path: Path, line: dict[str, Any]) -> None:
    """Add a line to the results in `path`, which need not exist. Raises InputError if it can't be written or holds others."""
    lines = read_results(path) if path.exists() and not is_special(path) else []
    try:
        with whole_file(path) as partial:
            partial.write_text("".join(json.dumps(one) + "\n" for one in [*lines, line]), "utf-8")
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror}); give another --out") from None


def read_results(path: Path) -> list[dict[str, Any]]:
    """Lines of `phi3mobile eval --out`. Raises InputError for anything else."""
    try:
        rows = path.read_text("utf-8").split("\n")
        lines = [valid_values(json.loads(row)) for row in rows if row.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read ({error}); give a .jsonl that `phi3mobile eval` wrote") from None
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or line.get("kind") != KIND or line.get("format") != FORMAT:
            raise InputError(f"{path}, line {number} is no result of format {FORMAT}; give what `phi3mobile eval` wrote")
        if wrong := [key for key, kind in NEEDED.items() if not isinstance(line.get(key), kind)]:
            raise InputError(f"{path}, line {number} lacks {', '.join(wrong)}; run `phi3mobile eval` again")
        if not math.isfinite(line["score"]):
            raise InputError(f"{path}, line {number} has the score {line['score']}; run `phi3mobile eval` again")
    return lines


def holds_results(path: Path) -> bool:
    """Whether the file begins like results (and not like a benchmark's record)."""
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and first.get("kind") == KIND


def quality_table(lines: Sequence[dict[str, Any]]) -> Table:
    """A row per task, the paper's first, and a column per model; the latest result counts, an empty cell was not run."""
    models: dict[str, str] = {}
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        models[line["model"]["hash"]] = _label(line["model"])
        latest[line["task"], line["model"]["hash"]] = line
    paper = {one["name"]: one for one in published()["quality"]}
    tasks = [*paper, *sorted({line["task"] for line in lines} - paper.keys())]
    rows = []
    for task in tasks:
        one = paper.get(task, {})
        score = f"{one['score']:g}" if "score" in one else ""
        cells = [Cell(_value(latest[task, model])) if (task, model) in latest else Cell("") for model in models]
        rows.append([Cell(_title(task, one)), Cell(score), *cells])
    note = (
        "Paper: Phi-3-mini, arXiv 2404.14219, with prompts that were not published: close scores say that nothing broke, "
        "not that one is better. Empty: not run. ± is the standard error."
    )
    return Table("Quality", ["task", "Phi-3 paper", *models.values()], rows, note)


def _title(task: str, one: dict[str, Any]) -> str:
    shots = f", {one['shots']}-shot" if one.get("shots") else ""
    return one.get("title", task) + shots


def _label(model: dict[str, Any]) -> str:
    return f"{model.get('name', '?')} ({model.get('recipe', '?')})"


def _value(line: dict[str, Any]) -> str:
    scale = 1 if line["metric"] == "score" else 100
    error = f" ± {line['stderr'] * scale:.2g}" if isinstance(line.get("stderr"), int | float) else ""
    extra = [f"{line['metric'].partition(',')[0]}", f"n {line['n']}"]
    extra += [f"{line['shots']}-shot"] if line.get("shots") else []
    extra += ["chat"] if line.get("chat") else []
    extra += [f"{line['truncated']} truncated"] if line.get("truncated") else []
    extra += [f"{line['unrated']} unrated"] if line.get("unrated") else []
    return f"{line['score'] * scale:.{2 if scale == 1 else 1}f}{error} ({', '.join(extra)})"
