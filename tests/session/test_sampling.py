"""Sampling against transformers' logits processors, ranges, ties, and one random number per token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.errors import InputError
from phi3mobile.session.sampling import Sampling, distribution, sample


def transformers_distribution(logits, sampling, previous):
    import torch
    from transformers.generation import logits_process as hf

    scores, ids = torch.tensor(logits, dtype=torch.float64)[None], torch.tensor([previous], dtype=torch.int64)
    processors = hf.LogitsProcessorList()
    if sampling.repetition_penalty != 1 and previous:
        processors.append(hf.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    processors.append(hf.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        processors.append(hf.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(hf.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        processors.append(hf.MinPLogitsWarper(sampling.min_p))
    return processors(ids, scores).softmax(-1)[0].numpy()


samplings = st.builds(
    Sampling,
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 60),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.2, 5),
)


@settings(max_examples=200, deadline=None)
@given(samplings, st.integers(0, 2**32), st.integers(1, 50), st.lists(st.integers(0, 49), max_size=20))
def test_the_distribution_is_transformers(sampling, seed, vocab, previous):
    pytest.importorskip("transformers")
    logits = (np.random.default_rng(seed).standard_normal(vocab) * 4).astype(np.float32)
    previous = [token % vocab for token in previous]
    expected = transformers_distribution(logits, sampling, previous)
    np.testing.assert_allclose(distribution(logits, sampling, previous), expected, rtol=1e-9, atol=1e-12)


def test_parity_on_a_full_vocabulary():
    pytest.importorskip("transformers")
    logits = (np.random.default_rng(1).standard_normal(32064) * 3).astype(np.float32)
    for sampling in (Sampling(0.7, top_p=0.9), Sampling(1.5, top_k=50, top_p=0.95, min_p=0.02), Sampling(1, top_p=0.3)):
        expected = transformers_distribution(logits, sampling, [])
        np.testing.assert_allclose(distribution(logits, sampling, []), expected, rtol=1e-9, atol=1e-12)


def test_greedy_takes_the_lowest_of_equals_and_sees_the_penalty():
    rng = np.random.default_rng(0)
    logits = np.array([0, 5, 1, 5], np.float32)
    assert sample(logits, Sampling(), [], rng) == 1
    assert distribution(logits, Sampling(), []).tolist() == [0, 1, 0, 0]
    assert sample(logits, Sampling(repetition_penalty=1.1), [1], rng) == 3
    assert sample(np.array([-1, -2], np.float32), Sampling(repetition_penalty=3.0), [0, 0], rng) == 1


def test_equals_at_the_edge_of_the_nucleus_keep_the_lower_ids():
    assert distribution(np.zeros(4, np.float32), Sampling(1.0, top_p=0.5), []).tolist() == [0.5, 0.5, 0, 0]
    assert distribution(np.zeros(4, np.float32), Sampling(1.0, top_p=1e-20), []).tolist() == [1, 0, 0, 0]


def test_drawn_frequencies_match_the_distribution():
    logits = np.array([2, 1, 0, -1, -np.inf], np.float32)
    sampling, rng = Sampling(1.3), np.random.default_rng(7)
    counts = np.bincount([sample(logits, sampling, [], rng) for _ in range(20000)], minlength=5) / 20000
    np.testing.assert_allclose(counts, distribution(logits, sampling, []), atol=0.015)
    assert counts[4] == 0


@settings(max_examples=100, deadline=None)
@given(samplings, st.integers(0, 2**32))
def test_a_draw_uses_one_number_and_never_a_removed_token(sampling, seed):
    logits = np.random.default_rng(seed).standard_normal(30).astype(np.float32)
    rng, twin = np.random.default_rng(seed), np.random.default_rng(seed)
    token = sample(logits, sampling, [3, 4], rng)
    twin.random()
    assert rng.random() == twin.random()
    assert distribution(logits, sampling, [3, 4])[token] > 0


@pytest.mark.parametrize("draw", [0.0, np.nextafter(1.0, 0.0)])
def test_the_extreme_draws_stay_on_possible_tokens(draw):
    class Fixed:
        def random(self):
            return draw

    logits = np.array([-np.inf, 1, 2, 3, -np.inf], np.float32)
    assert sample(logits, Sampling(1.0), [], Fixed()) == (1 if draw == 0 else 3)


def test_extreme_temperatures_are_the_limits():
    logits = np.array([1, 3, 2], np.float32)
    assert distribution(logits, Sampling(1e-310), []).tolist() == [0, 1, 0]
    np.testing.assert_allclose(distribution(logits, Sampling(1e300), []), 1 / 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_unusable_logits_are_a_bug_and_named(bad, temperature):
    with pytest.raises(RuntimeError, match="logits"):
        sample(np.array([0, bad, 1], np.float32), Sampling(temperature), [], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "1"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1),
        ("repetition_penalty", 1e9),
        ("seed", -1),
        ("seed", 1.0),
        ("seed", True),
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(name, value):
    with pytest.raises(InputError) as error:
        Sampling(**{name: value})
    assert name in str(error.value) and repr(value) in str(error.value) and "must be" in str(error.value)
