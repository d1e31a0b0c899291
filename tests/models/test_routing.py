"""Routing against transformers' own functions, where near-ties, ties and odd signs are the rule."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.models.routing import SPARSEMIXER, Routing, softmax_topk, sparsemixer

JITTER = 0.01


def reference(logits: torch.Tensor, jitter: float = JITTER) -> tuple[torch.Tensor, torch.Tensor]:
    from transformers.models.phimoe.modeling_phimoe import sparsemixer as theirs

    weights, experts = theirs(logits.clone(), jitter, training=False)
    return experts, weights


def row(values: dict[int, float], rest: float = -1.0) -> torch.Tensor:
    logits = torch.full((1, 16), rest) - torch.arange(16) * 1e-3
    for expert, value in values.items():
        logits[0, expert] = value
    return logits


CASES = {
    "tie of two": row({3: 2.0, 7: 2.0}),
    "tie of three": row({3: 2.0, 7: 2.0, 12: 2.0}),
    "tie of all": torch.ones(1, 16),
    "zeros": torch.zeros(1, 16),
    "just inside": row({4: 10.0, 8: 9.8001}),
    "just outside": row({4: 10.0, 8: 9.7999}),
    "negative, inside": row({4: -1.0, 8: -1.0199}, rest=-5.0),
    "negative, outside": row({4: -1.0, 8: -1.0206}, rest=-5.0),
    "zero is the best": row({4: 0.0}),
    "two zeros": row({4: 0.0, 9: 0.0}),
    "sign changes between the rounds": row({4: 0.5, 8: -1e-6, 9: -1.01e-6}),
    "huge": row({4: 1e4, 8: 9.9e3, 9: 9.81e3}),
    "huge and negative": row({4: -1e4, 8: -1.01e4}, rest=-3e4),
    "second best near the third": row({1: 5.0, 2: 3.0, 3: 2.95, 4: 2.9}),
}


@pytest.mark.parametrize("name", CASES)
def test_sparsemixer_is_transformers_own(name: str):
    experts, weights = sparsemixer(CASES[name], JITTER)
    want_experts, want_weights = reference(CASES[name])
    assert torch.equal(experts, want_experts) and torch.equal(weights, want_weights)


def test_the_weights_are_the_papers_and_not_a_softmax_of_two():
    experts, weights = sparsemixer(CASES["just inside"], JITTER)
    assert experts.tolist() == [[4, 8]]
    torch.testing.assert_close(weights, torch.tensor([[0.549809, 1.0]]), atol=1e-5, rtol=0)
    assert sparsemixer(CASES["just outside"], JITTER)[1].tolist() == [[1.0, 1.0]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2, 3, 8, 16]), st.sampled_from([1e-3, 0.05, 1.0, 30.0, 1e4]), st.booleans())
def test_sparsemixer_on_crowded_rows(seed: int, experts: int, spread: float, shifted: bool):
    """Half of the rows lie within the band: multiples of 0.4 % around a centre of either sign."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(40, experts, generator=generator) * spread
    steps = torch.randint(-8, 9, (40, experts), generator=generator)
    near = (1 + 0.004 * steps) * spread * (-1.0 if shifted else 1.0)
    logits = torch.cat([wide, near])
    found, weights = sparsemixer(logits, JITTER)
    want, want_weights = reference(logits)
    assert torch.equal(found, want) and torch.equal(weights, want_weights)
    assert (found[:, 0] != found[:, 1]).all() and (weights > 0).all() and (weights <= 1).all()


def test_an_empty_batch_and_damaged_logits():
    assert sparsemixer(torch.zeros(0, 16), JITTER)[0].shape == (0, 2)
    for value in (torch.nan, torch.inf):
        for route in (lambda x: sparsemixer(x, JITTER), lambda x: softmax_topk(x, 2)):
            with pytest.raises(ValueError, match="router logits are not finite"):
                route(row({2: value}))


def test_softmax_is_mixtrals():
    logits = torch.randn(200, 8, generator=torch.Generator().manual_seed(3)) * 2
    logits[:20] = logits[:20].round()  # ties
    experts, weights = softmax_topk(logits, 2)
    shares = logits.softmax(-1)
    top, _ = shares.topk(2)
    assert torch.equal(logits.gather(1, experts), logits.topk(2)[0])
    torch.testing.assert_close(weights, top / top.sum(-1, keepdim=True))
    assert (experts[:20, 0] == logits[:20].argmax(-1)).all()


def test_a_routing_is_what_its_kind_says():
    logits = CASES["just inside"]
    assert torch.equal(Routing(SPARSEMIXER, 16, 2, JITTER)(logits)[1], sparsemixer(logits, JITTER)[1])
    assert torch.equal(Routing("softmax_topk", 16, 3)(logits)[0], softmax_topk(logits, 3)[0])
