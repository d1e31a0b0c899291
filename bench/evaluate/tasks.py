"""Which tasks there are and how one is run: those that ship, a folder of the user's, and the harness's own (needs the hub)."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3mobile import extras
from phi3mobile.bench.predict import published
from phi3mobile.errors import InputError

if TYPE_CHECKING:
    from phi3mobile.bench.evaluate.harness import EngineLM

SHIPPED = Path(__file__).parents[1] / "tasks"
LOCAL = "local"  # all that ship
REPORT = "report"  # those of the paper that need no judge
SEED = 1234  # of few-shot samples: the harness's own
HUMAN_EVAL, MT_BENCH, PICTURES = "humaneval", "mt_bench", "pictures"
OWN = (HUMAN_EVAL, MT_BENCH, PICTURES)  # not the harness's


@dataclass(frozen=True)
class Wanted:
    """A task as it is to be run: `name` is what the result is called, `task` the harness's name for it."""

    name: str
    task: str
    shots: int | None  # None: what the task says
    metric: str | None  # None: the task's first


def wanted(names: Sequence[str], shots: int | None = None) -> list[Wanted]:
    """`report` and `local` spelled out, and the paper's tasks with its numbers of shots. InputError for an empty list."""
    paper = {one["name"]: one for one in published()["quality"]}
    spelled: dict[str, None] = {}
    for name in names:
        if name == REPORT:
            spelled |= dict.fromkeys(one for one in paper if one != MT_BENCH)
        elif name == LOCAL:
            spelled |= dict.fromkeys(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
        elif name.strip():
            spelled[name.strip()] = None
    if not spelled:
        raise InputError(f"--tasks is empty; give names with commas between, {REPORT}, or {LOCAL}")
    found = []
    for name in spelled:
        one = paper.get(name, {})
        found.append(Wanted(name, one.get("task", name), one.get("shots") if shots is None else shots, one.get("metric")))
    return found


def require_harness() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(f"lm-eval is not installed; run: {extras.command('eval')}")


class Library:
    """The tasks at hand. A folder's task goes before the harness's of the same name."""

    def __init__(self, folder: Path | None, names: Sequence[str]) -> None:
        """`names` are those that will be asked for: the harness's thousands are read only if a folder lacks one.

        Raises InputError: no such folder, an unreadable task file, an unknown name.
        """
        from lm_eval.tasks import TaskManager

        if folder is not None and not folder.is_dir():
            raise InputError(f"--tasks-folder {folder} is not a folder; give one with task files (.yaml) and their data")
        folders = [SHIPPED, *([folder.resolve()] if folder else [])]
        self._manager = _read(lambda: TaskManager(include_path=folders, include_defaults=False), f"{folder or SHIPPED}")
        if any(name not in self._manager.task_index for name in names):
            self._manager = _read(lambda: TaskManager(include_path=folders), f"{folder or SHIPPED}")
        for name in names:
            if name not in self._manager.task_index:
                near = ", ".join(difflib.get_close_matches(name, self._manager.all_tasks, 3))
                hint = f"near are {near}" if near else "check its name"
                raise InputError(f"there is no task {name!r}; {hint}, or give --tasks-folder with its file")

    def run(self, lm: EngineLM, one: Wanted, limit: int | None = None, chat: bool = False) -> dict[str, Any]:
        """Run it; metric, score, stderr, number of documents and all metrics. Raises InputError if its data is missing."""
        import jinja2
        from lm_eval.evaluator import evaluate

        entry = self._manager.task_index[one.task]
        # Data files of a local task are named relative to the task's own file.
        near = contextlib.chdir(entry.yaml_path.parent) if entry.yaml_path else contextlib.nullcontext()
        with near:
            loaded = _read(lambda: self._manager.load([one.task]), one.task)
        for task in loaded["tasks"].values():
            if one.shots is not None or task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=one.shots or 0)
            task.set_fewshot_seed(seed=SEED)
        shots = next(iter(loaded["tasks"].values())).get_config("num_fewshot")
        try:
            found = evaluate(
                lm,
                loaded,
                limit=limit,
                log_samples=False,
                bootstrap_iters=1000,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
        except jinja2.TemplateError as error:  # the task's own: a field that its data lacks
            raise InputError(f"{one.task} can't be filled with its data ({_line(error)}); correct the task file") from None
        scores = (found["results"] | found.get("groups", {})).get(one.task)
        if scores is None:
            raise InputError(f"{one.task} has no score of its own; name its parts: {', '.join(loaded['tasks'])}")
        metrics = {name: value for name, value in scores.items() if isinstance(value, int | float) and "," in name}
        counts = found["n-samples"].values()
        return _result(one, metrics) | {"shots": shots, "n": sum(count["effective"] for count in counts)}


def _result(one: Wanted, metrics: dict[str, float]) -> dict[str, Any]:
    named = {name: value for name, value in metrics.items() if "_stderr," not in name}
    if not named:
        raise InputError(f"{one.task} names no metric that lm-eval knows; see docs/evaluation.md for a task file")
    if one.metric is not None and one.metric not in named:
        raise InputError(f"{one.task} has no metric {one.metric}, it has {', '.join(named)}; use the lm-eval that is pinned")
    metric = one.metric or next((name for name in named if name.startswith("acc_norm,")), next(iter(named)))
    kind, _, kept = metric.partition(",")
    return {"metric": metric, "score": named[metric], "stderr": metrics.get(f"{kind}_stderr,{kept}"), "metrics": named}


def _read(load, what: str) -> Any:
    """load(), its many ways to fail as one line."""
    import jinja2
    import yaml

    wrong = (KeyError, TypeError, ValueError, AttributeError, SyntaxError, ImportError, yaml.YAMLError, jinja2.TemplateError)
    try:
        return load()
    except wrong as error:
        raise InputError(f"{what} can't be read as a task ({_line(error)}); see docs/evaluation.md for the format") from None
    except OSError as error:  # no network, no such data set, no access: the hub's errors are all of this kind
        raise InputError(
            f"the data of {what} can't be reached ({_line(error)}); check the network and HF_HUB_OFFLINE, or give local task "
            "files with --tasks-folder (--tasks local needs no network)"
        ) from None


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
