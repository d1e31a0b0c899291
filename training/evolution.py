"""Evolution of LongRoPE's factor lists (arXiv 2402.13753): mutation, crossover, monotone lists, resumable populations.

Pure functions over tuples of floats, and a search that writes its whole state after every iteration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random

from phi3mobile.errors import InputError
from phi3mobile.files import whole_file
from phi3mobile.training.config import Search

Factors = tuple[float, ...]
RETRIES = 20  # of a crossover whose child is known already; then a mutation


def yarn(pairs: int, theta: float, original: int, scale: float, fast: float = 32.0, slow: float = 1.0) -> Factors:
    """YaRN's factors (arXiv 2309.00071): pairs that turn more than `fast` times over the original context stay, those that
    turn less than `slow` times are divided by `scale`, with a ramp of frequencies between; non-decreasing."""

    def pair_of(turns: float) -> float:
        return pairs * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    low, high = max(0.0, math.floor(pair_of(fast))), min(pairs - 1.0, math.ceil(pair_of(slow)))
    kept = [1 - min(max((i - low) / max(high - low, 1e-3), 0.0), 1.0) for i in range(pairs)]
    return tuple(round(1 / (keep + (1 - keep) / scale), 6) for keep in kept)


def interpolated(pairs: int, scale: float) -> Factors:
    """Position interpolation: every frequency divided by `scale`."""
    return (scale,) * pairs


def monotone(factors: Factors, top: float) -> Factors:
    """The least change to a non-decreasing list within [1, top]."""
    out, least, top = [], 1.0, round(top, 6)
    for factor in factors:
        least = min(max(round(factor, 6), least), top)
        out.append(least)
    return tuple(out)


def mutate(factors: Factors, settings: Search, top: float, rng: Random) -> Factors:
    """Each gene, with the settings' probability, moves by a few steps: `step` is relative to the range."""
    moved = [
        f + rng.gauss(0, 8 * settings.step) * (f if f > 1 else top - 1) if rng.random() < settings.gene_probability else f
        for f in factors
    ]
    return monotone(tuple(moved), top)


def cross(one: Factors, other: Factors, settings: Search, top: float, rng: Random) -> Factors:
    """Genes of `one`, with the settings' probability of `other`."""
    chosen = [b if rng.random() < settings.gene_probability else a for a, b in zip(one, other, strict=True)]
    return monotone(tuple(chosen), top)


def evolve(
    start: list[Factors],
    fitness: Callable[[Factors], float],
    settings: Search,
    top: float,
    seed: int,
    state: Path,
    report: Callable[[int, float], None] = lambda iteration, best: None,
) -> tuple[Factors, list[float]]:
    """The fittest list (least `fitness`) after the settings' iterations, and the best value after each.

    `start` lists are candidates of the first population. `state` (a JSON file) is written after each iteration and read first:
    run again to resume; the result is that of an unbroken run. InputError if it belongs to another search.
    """
    key = {
        "start": [list(s) for s in start],
        "top": top,
        "seed": seed,
        **{name: value for name, value in vars(settings).items() if name not in ("iterations", "text")},
    }
    rng, scored, history = Random(seed), {}, []
    if state.is_file():
        saved = json.loads(state.read_text())
        if saved["of"] != json.loads(json.dumps(key)):
            raise InputError(f"{state} is of another search; restore the config, or give another out")
        version, internal, gauss = saved["random"]
        rng.setstate((version, tuple(internal), gauss))
        scored, history = {tuple(f): score for f, score in saved["scored"]}, saved["history"]
    else:
        population = {monotone(factors, top): None for factors in start}
        while len(population) < settings.population:
            population[mutate(rng.choice(start), settings, top, rng)] = None
        scored = {factors: fitness(factors) for factors in population}
        _save(state, key, rng, scored, history)
    while len(history) < settings.iterations:
        parents = sorted(scored, key=scored.get)[: settings.parents]
        fresh: dict[Factors, None] = {}
        for turn in range(settings.mutations + settings.crossovers):
            child = _child(parents, turn >= settings.mutations, {*scored, *fresh}, settings, top, rng)
            fresh[child] = None
        scored |= {factors: fitness(factors) for factors in fresh if factors not in scored}
        history.append(min(scored.values()))
        _save(state, key, rng, scored, history)
        report(len(history), history[-1])
    best = min(scored, key=scored.get)
    return best, history


def _child(parents: list[Factors], crossing: bool, known: set[Factors], settings: Search, top: float, rng: Random) -> Factors:
    """One that is not known, if some tries find it: by crossover first, where that is asked for."""
    for attempt in range(2 * RETRIES):
        if crossing and attempt < RETRIES and len(parents) > 1:
            made = cross(*rng.sample(parents, 2), settings, top, rng)
        else:
            made = mutate(rng.choice(parents), settings, top, rng)
        if made not in known:
            break
    return made


def _save(state: Path, key: dict, rng: Random, scored: dict[Factors, float], history: list[float]) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    found = [[list(factors), score] for factors, score in scored.items()]
    with whole_file(state) as partial:
        partial.write_text(json.dumps({"of": key, "random": rng.getstate(), "history": history, "scored": found}))
