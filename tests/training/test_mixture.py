"""The sampler against its promises: exact shares, no repeats within the epochs, disjoint phases, ranks, exact resume."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.errors import InputError
from phi3mobile.training.data.mixture import Mixture, Phase, Sampler, Source, apportion, permuted, plan
from phi3mobile.training.data.shards import ShardWriter, Vocabulary, write_index
from phi3mobile.training.settings import from_table

LENGTH = 8
WEB, BOOKS, STRICT = Path("web"), Path("books"), Path("strict")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three sources whose every token is distinct, so a block shows where it is from."""
    base, token = tmp_path_factory.mktemp("mixture"), 0
    for name, documents in (("web", 100), ("books", 30), ("strict", 20)):
        writer = ShardWriter(base / name, Vocabulary(60_000, 59_999, "x"), shard_tokens=100)
        for i in range(documents):
            writer.add(range(token, token + 5 + i % 9), key=token)
            token += 5 + i % 9
        writer.close()
        write_index(base / name)
    return base


def two_phases(**changes) -> Mixture:
    return Mixture(
        (
            Phase((Source(WEB, 0.75), Source(BOOKS, 0.25)), 40 * LENGTH, "first"),
            Phase((Source(WEB, 1.0), Source(STRICT, 1.0, epochs=2.0)), 60 * LENGTH, "second"),
        ),
        **changes,
    )


def test_shares_are_exact_and_blocks_distinct(folder):
    sampler = Sampler(two_phases(), LENGTH, folder=folder)
    rows = list(sampler)
    assert len(rows) == 100 == sampler.blocks and sampler.tokens == 800
    assert Counter((row["phase"], row["source"]) for row in rows) == {(0, 0): 30, (0, 1): 10, (1, 0): 30, (1, 1): 30}
    for n in range(1, 41):  # every prefix has the mixture
        assert abs(sum(row["source"] for row in rows[:n]) - n / 4) <= 1
    starts = Counter(int(row["tokens"][row["tokens"] < 59_999][0]) for row in rows)
    first_ids = [row["tokens"][0] for row in rows if row["phase"] == 0 or row["source"] == 0]
    assert max(starts.values()) <= 2  # twice: the strict source's two epochs
    assert len({bytes(row["tokens"]) for row in rows[:40]}) == 40 and len(first_ids) == 70
    web = [row for row in rows if row["source"] == 0]
    assert len({bytes(row["tokens"]) for row in web}) == 60  # over both phases: disjoint


def test_blocks_are_the_sources_and_segments_their_documents(folder):
    for row in Sampler(two_phases(), LENGTH, folder=folder):
        tokens, segments = row["tokens"], row["segments"]
        assert tokens.dtype == segments.dtype == np.int32 and tokens.shape == segments.shape == (LENGTH,)
        ends = tokens[:-1] == 59_999
        assert segments[0] == 0 and (np.diff(segments) == ends).all()  # a new segment exactly after each end of text
        assert (np.diff(tokens)[~ends & (tokens[1:] != 59_999)] == 1).all()


def test_all_ranks_together_read_the_one_sequence(folder):
    whole = [bytes(row["tokens"]) for row in Sampler(two_phases(), LENGTH, folder=folder)]
    for world in (2, 3, 4):
        ranks = [list(Sampler(two_phases(), LENGTH, rank, world, folder=folder)) for rank in range(world)]
        for step, rows in enumerate(zip(*ranks, strict=True)):
            assert {bytes(row["tokens"]) for row in rows} == set(whole[step * world : (step + 1) * world])
    both = [{row["source"] for row in rank} for rank in ranks]
    assert all(sources == {0, 1} for sources in both)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 50), st.sampled_from([1, 2, 5]))
def test_resume_is_exact_with_any_world(folder, steps, world):
    two = [Sampler(two_phases(), LENGTH, rank, 2, folder=folder) for rank in range(2)]
    for _ in range(steps):
        for sampler in two:
            next(sampler)
    state = two[0].state_dict()
    assert state == two[1].state_dict()
    rest = [bytes(row["tokens"]) for row in Sampler(two_phases(), LENGTH, folder=folder)][2 * steps :]
    if 2 * steps % world:
        with pytest.raises(InputError, match="ranks"):
            Sampler(two_phases(), LENGTH, 0, world, folder=folder).load_state_dict(state)
        return
    resumed = []
    for rank in range(world):
        sampler = Sampler(two_phases(), LENGTH, rank, world, folder=folder)
        sampler.load_state_dict(state)
        resumed += [bytes(row["tokens"]) for row in sampler]
    assert Counter(resumed) == Counter(rest)


def test_seed_and_epoch_change_the_order(folder):
    mixture = Mixture((Phase((Source(STRICT, epochs=2.0),)),))
    rows = [bytes(row["tokens"]) for row in Sampler(mixture, LENGTH, folder=folder)]
    half = len(rows) // 2
    assert rows[:half] != rows[half:]
    again = [bytes(row["tokens"]) for row in Sampler(mixture, LENGTH, folder=folder)]
    other = [bytes(row["tokens"]) for row in Sampler(replace(mixture, seed=1), LENGTH, folder=folder)]
    assert rows == again != other


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.text(max_size=5))
def test_permuted_is_a_permutation(count, key):
    assert sorted(permuted(i, count, key) for i in range(count)) == list(range(count))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 500))
def test_apportion(weights, total):
    shares = [weight / sum(weights) for weight in weights]
    counts = apportion(shares, total)
    assert sum(counts) == total and all(abs(c - s * total) < 1 for c, s in zip(counts, shares, strict=True))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 200), st.floats(0.01, 5), st.floats(0.1, 4)), min_size=1, max_size=5))
def test_all_there_is_stays_within_the_epochs(sources):
    blocks = {Path(str(i)): count for i, (count, _, _) in enumerate(sources)}
    phase = Phase(tuple(Source(Path(str(i)), weight, epochs) for i, (_, weight, epochs) in enumerate(sources)))
    try:
        (quota,) = plan(Mixture((phase,)), blocks, LENGTH)
    except InputError:
        return
    assert all(taken <= int(count * epochs) for taken, (count, _, epochs) in zip(quota, sources, strict=True))


def test_bad_input(folder, tmp_path):
    def refuse(mixture: Mixture, match: str, **options):
        with pytest.raises(InputError, match=match):
            Sampler(mixture, options.pop("length", LENGTH), folder=folder, **options)

    web = Source(WEB)
    refuse(Mixture((Phase((web,), 10_000),)), "asks for 10,000 tokens.*raise its epochs")
    refuse(Mixture((Phase((web,)),)), "lower tokens, length", length=10**6)
    refuse(Mixture((Phase((web, web)),)), "twice")
    refuse(Mixture((Phase((Source(WEB, -1.0),)),)), "weights")
    refuse(Mixture((Phase((Source(WEB, epochs=0.0),)),)), "epochs above 0")
    refuse(Mixture((Phase(()),)), "without sources")
    refuse(Mixture((Phase((web,), -1),)), "tokens is -1")
    refuse(Mixture((Phase((Source(Path("none")),)),)), "finished shard folder")
    refuse(Mixture((Phase((web,)),)), "rank", rank=2, world=2)
    refuse(Mixture((Phase((web,), LENGTH),)), "more data", world=2)
    with pytest.raises(InputError, match="another mixture"):
        state = Sampler(Mixture((Phase((web,)),)), LENGTH, folder=folder).state_dict()
        Sampler(Mixture((Phase((web,)),), seed=3), LENGTH, folder=folder).load_state_dict(state)


def test_a_document_of_both_phases_is_refused(folder):
    writer = ShardWriter(folder / "copy", Vocabulary(60_000, 59_999, "x"))
    writer.add([1, 2, 3] * 10, key=5)  # web has a document with this key
    writer.close()
    write_index(folder / "copy")
    mixture = Mixture((Phase((Source(WEB),)), Phase((Source(Path("copy")),))))
    with pytest.raises(InputError, match="1 documents of web are in copy too"):
        Sampler(mixture, LENGTH, folder=folder)
    assert Sampler(replace(mixture, disjoint=False), LENGTH, folder=folder).blocks
    writer = ShardWriter(folder / "other", Vocabulary(60_000, 59_999, "y"))
    writer.add([1] * 20)
    writer.close()
    write_index(folder / "other")
    with pytest.raises(InputError, match="different tokenizers"):
        Sampler(Mixture((Phase((Source(WEB), Source(Path("other")))),)), LENGTH, folder=folder)


def test_settings_read_a_mixture():
    table = {"seed": 3, "phases": [{"tokens": 10, "sources": [{"path": "web", "weight": 2}]}]}
    assert from_table(table, Mixture, "t") == Mixture((Phase((Source(WEB, 2.0),), 10),), seed=3)
    for bad, match in (
        ({"sed": 3, "phases": []}, "did you mean seed"),
        ({}, "phases missing"),
        ({"phases": [{"sources": [{"path": 3}]}]}, r"phases\[0\]: sources\[0\]: path is 3"),
        ({"phases": [], "seed": True}, "must be int"),
        ({"phases": {}}, r"phases is {}; it must be array"),
        ([], "must be a table"),
    ):
        with pytest.raises(InputError, match=match):
            from_table(bad, Mixture, "t")
