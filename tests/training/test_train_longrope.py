"""LongRoPE: the search, its operators, the stage from a short model to a long one, needles."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import VOCAB, psnr
from hypothesis import given, settings
from hypothesis import strategies as st
from training_tiny import SHAPE, pretrain_table, tokenizer_folder

from phi3mobile.errors import InputError
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.loading import load_model
from phi3mobile.text.vocabularies import load_tokenizer
from phi3mobile.training.batches import IGNORED
from phi3mobile.training.config import LongRope, Pretrain, Search
from phi3mobile.training.data.shards import ShardWriter, Vocabulary, write_index
from phi3mobile.training.evolution import cross, evolve, interpolated, monotone, mutate, yarn
from phi3mobile.training.long_eval import long_rows, needle_losses, needle_rows, plot_lines, plot_needles, tail_rows
from phi3mobile.training.longrope import extended, longrope, search_factors, set_long_factors, with_factors
from phi3mobile.training.model import load_hf
from phi3mobile.training.pretrain import pretrain
from phi3mobile.training.settings import from_table

TARGET = (1.0, 1.2, 2.0, 3.5, 4.0, 4.0)


def distance(factors) -> float:
    return sum((a - b) ** 2 for a, b in zip(factors, TARGET, strict=True))


def small_search(**changes) -> Search:
    values = {
        "length": 128,
        "text": "",
        "population": 12,
        "iterations": 15,
        "mutations": 8,
        "crossovers": 8,
        "parents": 6,
        "step": 0.05,
    }
    return Search(**values | changes)


@given(st.lists(st.floats(-5, 20), min_size=1, max_size=48), st.floats(1, 40))
def test_monotone_is_what_it_says_and_changes_nothing_twice(values, top):
    fixed = monotone(tuple(values), top)
    assert all(1 <= a <= b <= round(top, 6) for a, b in pairwise(fixed)) and 1 <= fixed[0] <= fixed[-1] <= round(top, 6)
    assert monotone(fixed, top) == fixed


@given(st.integers(0, 10_000), st.floats(2, 33))
@settings(max_examples=60, deadline=None)
def test_children_stay_monotone_and_in_range(seed, scale):
    import random

    rng, options = random.Random(seed), small_search()
    one, other = yarn(24, 10000.0, 64, scale), interpolated(24, scale)
    for child in (mutate(one, options, 1 + scale, rng), cross(one, other, options, 1 + scale, rng)):
        assert list(child) == sorted(child) and child[0] >= 1 and child[-1] <= 1 + scale + 1e-6


def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones():
    """Against the formula for one dimension at a time: wavelengths over the original context."""
    factors = yarn(48, 10000.0, 4096, 32.0)
    turns = [4096 / (2 * math.pi * 10000 ** (i / 48)) for i in range(48)]
    assert list(factors) == sorted(factors)
    for factor, turn in zip(factors, turns, strict=True):
        if turn > 36:
            assert factor == pytest.approx(1, abs=0.2)
        if turn < 0.9:
            assert factor == pytest.approx(32, rel=1e-6)


def test_the_search_finds_what_is_fit(tmp_path):
    start = interpolated(6, 4.0)
    best, history = evolve([start], distance, small_search(iterations=60), 5.0, 0, tmp_path / "s.json")
    assert history == sorted(history, reverse=True) and distance(best) < 0.15 * distance(start)


def test_a_search_cut_off_goes_on_as_if_it_had_not_been(tmp_path):
    whole = evolve([interpolated(6, 4.0)], distance, small_search(), 5.0, 3, tmp_path / "whole.json")
    state, calls = tmp_path / "cut.json", []

    def failing(factors):
        calls.append(1)
        if len(calls) == 100:
            raise KeyboardInterrupt
        return distance(factors)

    with pytest.raises(KeyboardInterrupt):
        evolve([interpolated(6, 4.0)], failing, small_search(), 5.0, 3, state)
    assert evolve([interpolated(6, 4.0)], distance, small_search(), 5.0, 3, state) == whole
    with pytest.raises(InputError, match="another search"):
        evolve([interpolated(6, 4.0)], distance, small_search(population=9), 5.0, 3, state)


# on models


def long_shards(folder: Path, tokenizer: Path, documents: int = 24, length: int = 300) -> Path:
    from phi3mobile.files import sha256

    writer = ShardWriter(folder, Vocabulary(VOCAB, 0, sha256(tokenizer / "tokenizer.json")))
    for number in range(documents):
        writer.add((np.arange(number * 7, number * 7 + length) % (VOCAB - 3)) + 3, key=number)
    writer.close()
    write_index(folder)
    return folder


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A model trained a little at 32 positions, in BASE/short/final, with BASE/long shards."""
    base = tmp_path_factory.mktemp("longrope")
    tokenizer = tokenizer_folder(base / "tokenizer")
    long_shards(base / "shards", tokenizer)
    shape = {**SHAPE, "max_position_embeddings": 32, "original_max_position_embeddings": 32}
    model = {"shape": shape, "tokenizer": str(tokenizer)}
    pretrain(from_table(pretrain_table(base, "short", steps=60, model=model), Pretrain, "config"))
    return base


def longrope_table(base: Path, out: Path, **search) -> dict:
    table = pretrain_table(base, steps=6, batch={"rows": 8, "length": 32, "micro": 0}, optimizer={"lr": 1e-3})
    return {
        **table,
        "out": str(out),
        "model": {"folder": str(base / "short" / "final")},
        "search": {
            "length": 128,
            "text": str(base / "shards"),
            "samples": 2,
            "population": 6,
            "iterations": 2,
            "mutations": 3,
            "crossovers": 3,
            "parents": 4,
            "tail": 32,
            **search,
        },
    }


@pytest.mark.parametrize("fitness", ["perplexity", "needle"])
def test_a_short_model_becomes_a_long_one_that_the_phone_computes_alike(fitness, short, tmp_path):
    result = longrope(from_table(longrope_table(short, tmp_path / fitness, fitness=fitness), LongRope, "config"))
    config = open_checkpoint(result["out"]).config
    assert config.max_position_embeddings == 128 and config.original_context == 32
    assert list(config.rope_scaling.long_factor) == sorted(config.rope_scaling.long_factor)
    assert config.rope_scaling.short_factor == (1.0,) * 8
    hf, ours = load_hf(result["out"])[0].eval(), load_model(result["out"])
    tokens = torch.randint(3, VOCAB, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for length in (20, 32, 33, 100):
            ours.reset()
            assert psnr(hf(tokens[:, :length]).logits.numpy(), ours(tokens[:, :length]).numpy()) > 80
    assert (tmp_path / fitness / "lengths.svg").read_text().count("<svg") == 1
    lengths = json.loads((tmp_path / fitness / "long.json").read_text())
    assert set(lengths["perplexity"]) == {"16", "32", "64", "128"} and (tmp_path / fitness / "needles.svg").is_file()


def test_searched_factors_are_at_least_as_fit_as_the_start(short, tmp_path):
    model, config = load_hf(short / "short" / "final")
    search = Search(
        length=128,
        text=str(short / "shards"),
        samples=2,
        population=8,
        iterations=3,
        mutations=4,
        crossovers=4,
        parents=4,
        tail=64,
    )
    _, history = search_factors(model, config, search, "", 0, tmp_path / "s.json")
    start = json.loads((tmp_path / "s.json").read_text())["scored"][0][1]
    assert history[-1] <= start


def test_setting_factors_in_place_is_making_the_model_with_them(short):
    model, config = load_hf(short / "short" / "final")
    factors = tuple(1 + 0.3 * i for i in range(8))
    probe = with_factors(model, extended(config, 128, (1.0,) * 8, "derived")).eval()
    set_long_factors(probe, config, factors)
    made = with_factors(model, extended(config, 128, factors, "derived")).eval()
    tokens = torch.arange(3, 80)[None]
    with torch.no_grad():
        assert torch.allclose(probe(tokens).logits, made(tokens).logits, atol=1e-5)


def test_needles_are_where_they_are_said_to_be(short):
    tokenizer, texts = load_tokenizer(short / "tokenizer"), long_rows(short / "shards", 256, 2)
    rows = needle_rows(tokenizer, texts, 256, (0.0, 0.5, 1.0), seed=4)
    assert rows.tokens.shape == (3, 256)
    for row in range(3):
        learned = rows.labels[row] != IGNORED
        answer = rows.labels[row][learned].tolist()
        text = tokenizer.decode(rows.tokens[row].tolist())
        assert tokenizer.decode(answer).strip().rstrip(".").isdigit()
        assert text.count("The secret number of") == 2 and tokenizer.decode(answer) in text
        index = learned.nonzero()[:, 0]
        assert torch.equal(rows.labels[row][index[:-1]], rows.tokens[row][index[:-1] + 1])
    assert tokenizer.decode(rows.tokens[0].tolist()).strip().startswith("The secret number")
    model = load_hf(short / "short" / "final")[0]
    assert needle_losses(model, rows).shape == (3,)
    with pytest.raises(InputError, match="test at a longer length"):
        needle_rows(tokenizer, texts, 20, (0.5,))


def test_only_the_tail_counts(short):
    rows = long_rows(short / "shards", 128, 3)
    assert tail_rows(rows, 32).targets == 3 * 32
    with pytest.raises(InputError, match="are needed"):
        long_rows(short / "shards", 128, 1000)


def test_bad_searches_are_refused(short, tmp_path):
    with pytest.raises(InputError, match="not above the original 32"):
        longrope(from_table(longrope_table(short, tmp_path / "a", length=32), LongRope, "config"))
    with pytest.raises(InputError, match="9 parents of a population of 6"):
        from_table(longrope_table(short, tmp_path / "a", parents=9), LongRope, "config")
    longrope(from_table(longrope_table(short, tmp_path / "b", iterations=0, start="interpolate"), LongRope, "config"))
    assert json.loads((tmp_path / "b" / "factors.json").read_text())["long_factor"] == [4.0] * 8
    with pytest.raises(InputError, match="rope factors already"):
        table = longrope_table(short, tmp_path / "c")
        longrope(from_table({**table, "model": {"folder": str(tmp_path / "b" / "final")}}, LongRope, "config"))


def test_plots_are_svg(tmp_path):
    plot_lines(tmp_path / "a.svg", {"x": {1: 2.0, 2: 3.0}}, "t", "x", "y", [1])
    plot_needles(tmp_path / "b.svg", {64: {0.0: 1.0, 1.0: 0.5}}, "t")
    assert all("<svg" in (tmp_path / name).read_text() for name in ("a.svg", "b.svg"))
