"""Which data is best: the same small model trained on each arm's mixture at equal tokens; loss on held-out sets, plotted.

OUT/<arm>-seed<N>/     a `train pretrain` run, resumed if the command is run again
OUT/ablation.json, OUT/ablation.svg
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.training.data.jsonl import read_jsonl, write_json
from phi3mobile.training.data.mixture import Mixture
from phi3mobile.training.data.shards import open_shards
from phi3mobile.training.settings import read_settings

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Arm:
    """A way to choose data. `data`: the mixture; `build`: configs of `data build` to run first, if not yet there."""

    name: str
    data: Mixture
    build: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Ablate:
    """`base`: a `train pretrain` config; every arm takes its model, steps and batch (so equal tokens) and its own data.
    `held_out`: name -> folder of shards."""

    out: Path
    base: Path
    arms: tuple[Arm, ...]
    held_out: dict[str, str]
    seeds: tuple[int, ...] = (0,)
    rows: int = 64  # held-out rows measured; 0: all

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(names) < 2 or len(set(names)) < len(names) or not all(name and "/" not in name for name in names):
            raise InputError("arms: give two or more [[arms]], each with a name of its own")
        if not self.held_out or not self.seeds:
            raise InputError("held_out and seeds must not be empty")


CONFIG = Ablate


def ablate(config: Ablate, report: Report = lambda stage, done, total: None) -> dict[str, Any]:
    """Train every arm with every seed, measure, plot; returns {losses: {arm: {set: [per seed]}}, best: {set: arm}}."""
    from phi3mobile.training.config import Pretrain

    base = read_settings(config.base, Pretrain)
    _build_missing(config, report)
    for path in config.held_out.values():
        open_shards(path)  # before hours of training
    runs = [(arm, seed) for arm in config.arms for seed in config.seeds]
    losses: dict[str, dict[str, list[float]]] = {arm.name: {name: [] for name in config.held_out} for arm in config.arms}
    curves: dict[str, list[tuple[float, float]]] = {}
    for done, (arm, seed) in enumerate(runs):
        report(arm.name, done, len(runs))
        folder = config.out / f"{arm.name}-seed{seed}"
        measured = _measured(base, arm, seed, folder, config)
        for name, loss in measured.items():
            losses[arm.name][name].append(loss)
        curves.setdefault(arm.name, _curve(folder))
    best = {name: min(losses, key=lambda arm: mean(losses[arm][name])) for name in config.held_out}
    tokens = base.schedule.steps * base.batch.rows * base.batch.length
    result = {"out": str(config.out), "tokens": tokens, "losses": losses, "best": best}
    write_json(config.out / "ablation.json", result)
    plot(config.out / "ablation.svg", losses, curves, tokens)
    return result


def _build_missing(config: Ablate, report: Report) -> None:
    from phi3mobile.training.data.build import build
    from phi3mobile.training.data.config import Build

    for path in dict.fromkeys(path for arm in config.arms for path in arm.build):
        chosen = read_settings(path, Build)
        if not (chosen.out / "index.json").is_file():
            build(chosen, report)


def _measured(base: Any, arm: Arm, seed: int, folder: Path, config: Ablate) -> dict[str, float]:
    """Held-out losses of one run, trained if need be."""
    from phi3mobile.training.loop import mean_loss
    from phi3mobile.training.model import load_hf
    from phi3mobile.training.pretrain import pretrain
    from phi3mobile.training.sources import held_out

    cache = folder / "held_out.json"
    if cache.is_file():
        return json.loads(cache.read_text())
    chosen = dataclasses.replace(
        base, out=str(folder), data=dataclasses.replace(arm.data, seed=seed), run=dataclasses.replace(base.run, seed=seed)
    )
    trained = pretrain(chosen)["out"]
    model, _ = load_hf(trained)
    sets = {name: held_out(path, base.batch.length, config.rows) for name, path in config.held_out.items()}
    measured = {name: mean_loss(model, rows) for name, rows in sets.items()}
    write_json(cache, measured)
    return measured


def _curve(folder: Path) -> list[tuple[float, float]]:
    """(step, training loss) of a run's log."""
    return [(line["step"], line["loss"]) for line in read_jsonl(folder / "metrics.jsonl")]


def plot(path: Path, losses: dict[str, dict[str, list[float]]], curves: dict[str, list], tokens: int) -> None:
    """Held-out loss by arm (mean over seeds, one standard deviation), and the training losses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    names = list(next(iter(losses.values())))
    width = 0.8 / len(losses)
    for index, (arm, by_set) in enumerate(losses.items()):
        places = [place + (index - (len(losses) - 1) / 2) * width for place in range(len(names))]
        means = [mean(by_set[name]) for name in names]
        spread = [stdev(by_set[name]) if len(by_set[name]) > 1 else 0.0 for name in names]
        bars.bar(places, means, width, yerr=spread, label=arm)
        if curves.get(arm):
            lines.plot(*zip(*curves[arm], strict=True), label=arm, linewidth=1)
    every = [value for by_set in losses.values() for values in by_set.values() for value in values]
    bars.set_ylim(max(0.0, min(every) - (max(every) - min(every)) - 0.05), max(every) + 0.05)
    bars.set_xticks(range(len(names)), names)
    bars.set_ylabel("held-out loss, nats per token")
    bars.legend()
    lines.set(xlabel="step", ylabel="training loss", title=f"{tokens:,} tokens each")
    figure.savefig(path)
