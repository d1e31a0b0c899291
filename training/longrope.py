"""Context extension: search the long factors, then train on mixed windows, so that short texts stay what they were.

A batch whose longest document is within the original context is rotated by the short factors (all 1), a longer one by the
searched factors: transformers' own rule, which is the phone's too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from phi3mobile.errors import InputError
from phi3mobile.models.config import DecoderConfig, RopeScaling
from phi3mobile.text.vocabularies import load_tokenizer
from phi3mobile.training.config import LongRope, Search
from phi3mobile.training.evolution import Factors, evolve, interpolated, yarn
from phi3mobile.training.long_eval import (
    long_rows,
    needle_losses,
    needle_rows,
    perplexity_by_length,
    plot_lines,
    plot_needles,
    tail_rows,
)
from phi3mobile.training.loop import Job, NextToken, mean_loss, train
from phi3mobile.training.model import check_tokenizer, empty_hf, load_hf
from phi3mobile.training.pretrain import finish, tokenizer_of
from phi3mobile.training.replica import find_place
from phi3mobile.training.sources import TakingTurns, TextSource

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHORTEST_HAYSTACK = 96  # the needle and its question alone take up to 70 tokens


def extended(config: DecoderConfig, length: int, factors: Factors, mscale: str) -> DecoderConfig:
    """The shape for contexts up to `length`: short factors 1, long factors `factors`."""
    short, value = (1.0,) * len(factors), 1.0 if mscale == "one" else None
    scaling = RopeScaling(short, tuple(factors), value, value)
    window = None if config.sliding_window is None or config.sliding_window >= length else config.sliding_window
    return replace(config, rope_scaling=scaling, max_position_embeddings=length, sliding_window=window)


def with_factors(model: torch.nn.Module, config: DecoderConfig, attention: str = "sdpa") -> torch.nn.Module:
    """The same weights under another rope."""
    other = empty_hf(config, attention)
    other.load_state_dict(model.state_dict())
    return other


def set_long_factors(model: torch.nn.Module, config: DecoderConfig, factors: Factors) -> None:
    """Replace the long factors of a model that `extended` describes, in place."""
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float64) / config.rotary_dim
    frequencies = 1 / (torch.tensor(factors, dtype=torch.float64) * config.rope_theta**exponents)
    model.model.rotary_emb.long_inv_freq = frequencies.float()


def start_factors(config: DecoderConfig, search: Search) -> Factors:
    """What the search begins with, and what a run with 0 iterations takes."""
    pairs, scale = config.rotary_dim // 2, search.length / config.original_max_position_embeddings
    if search.start == "yarn":
        return yarn(pairs, config.rope_theta, config.original_max_position_embeddings, scale)
    return interpolated(pairs, scale) if search.start == "interpolate" else (1.0,) * pairs


def search_factors(
    model: torch.nn.Module, config: DecoderConfig, search: Search, tokenizer: str, seed: int, state: Path
) -> tuple[Factors, list[float]]:
    """The long factors of least fitness for this model, and the best fitness of each iteration."""
    scale = search.length / config.original_max_position_embeddings
    if scale <= 1:
        raise InputError(f"search: length {search.length} is not above the original {config.original_max_position_embeddings}")
    start = start_factors(config, search)
    if not search.iterations:
        return start, []
    shape = extended(config, search.length, start, search.mscale)
    probe = with_factors(model, shape).eval()
    texts = long_rows(search.text, search.length, search.samples)
    rows = tail_rows(texts, search.tail)
    if search.fitness == "needle":
        rows = needle_rows(load_tokenizer(Path(tokenizer)), texts, search.length, DEPTHS, seed, search.samples)

    def fitness(factors: Factors) -> float:
        set_long_factors(probe, shape, factors)
        return mean_loss(probe, rows, micro=1)

    def report(iteration: int, best: float) -> None:
        import sys

        print(f"longrope: iteration {iteration}/{search.iterations}, best loss {best:.4f}", file=sys.stderr, flush=True)

    others = [] if search.start != "yarn" else [interpolated(len(start), scale)]
    return evolve([start, *others], fitness, search, 1 + scale, seed, state, report)


def longrope(config: LongRope) -> dict[str, Any]:
    """Search (or resume it), train, write OUT/final, OUT/factors.json, OUT/lengths.svg and OUT/needles.svg."""
    import json

    place, out, search = find_place(config.run), Path(config.out), config.search
    if not config.model.folder:
        raise InputError("model: give folder, the checkpoint to extend")
    tokenizer = tokenizer_of(config.model)
    model, base = load_hf(config.model.folder, config.model.attention)
    check_tokenizer(tokenizer, base)
    if base.rope_scaling is not None:
        raise InputError(f"{config.model.folder} has rope factors already; extend the model that it came from")
    factors = None
    if place.rank == 0:
        factors, history = search_factors(model, base, search, tokenizer, config.run.seed, out / "search.json")
        (out / "factors.json").parent.mkdir(parents=True, exist_ok=True)
        (out / "factors.json").write_text(json.dumps({"long_factor": factors, "history": history}))
    place.barrier()
    factors = tuple(json.loads((out / "factors.json").read_text())["long_factor"])
    shape = extended(base, search.length, factors, search.mscale)
    longer = with_factors(model, shape, config.model.attention)
    job = Job(config, longer, shape, _windows(config, place, shape.vocab_size, tokenizer), NextToken(), "longrope")
    replica, loss = train(job, place)
    finish(out, shape, replica, place, config.run.save_dtype, tokenizer)
    result = {"out": str(out / "final"), "loss": loss, "long_factor_first": factors[0], "long_factor_last": factors[-1]}
    if place.rank == 0:
        result |= measure(out, base, search, tokenizer)
    place.barrier()
    return result


def measure(out: Path, base: DecoderConfig, search: Search, tokenizer: str) -> dict[str, Any]:
    """Perplexity by length and the needle grid of OUT/final, plotted beside it and written to OUT/long.json."""
    import json

    model, original = load_hf(out / "final")[0], base.original_max_position_embeddings
    texts = long_rows(search.text, search.length, search.samples)
    lengths = [
        length
        for length in (original // 2, original, 2 * original, 4 * original, 8 * original, 16 * original)
        if length < search.length
    ] + [search.length]
    curve = perplexity_by_length(model, texts, lengths, min(search.tail, original // 2))
    words, grid = load_tokenizer(Path(tokenizer)), {}
    for length in (length for length in lengths[1:] if length >= SHORTEST_HAYSTACK):
        rows = needle_rows(words, texts, length, DEPTHS, 1)
        grid[length] = dict(zip(DEPTHS, needle_losses(model, rows).tolist(), strict=True))
    (out / "long.json").write_text(json.dumps({"perplexity": curve, "needle_loss": grid}))
    plot_lines(out / "lengths.svg", {"after": curve}, "Perplexity by context", "context, tokens", "perplexity", [original])
    if grid:
        plot_needles(out / "needles.svg", grid, "Needle in a haystack")
    return {f"perplexity_{length}": value for length, value in curve.items()}


def _windows(config: LongRope, place: Any, vocab: int, tokenizer: str) -> TakingTurns:
    """Rows of the short and of the long window by turns, with as many tokens a step."""
    batch, every = config.batch, config.finetune.long_every
    long = max(place.world, batch.rows * batch.length // config.search.length // place.world * place.world)
    sources = []
    for index, (rows, length, turns) in enumerate(((batch.rows, batch.length, every - 1), (long, config.search.length, 1))):
        data = replace(config.data, seed=config.data.seed + index)
        sources.append(TextSource(data, rows, length, place.rank, place.world))
        steps = -(-config.schedule.steps // every) * turns
        sources[-1].check(steps, vocab, tokenizer)
    return TakingTurns(sources, [0] * (every - 1) + [1])
