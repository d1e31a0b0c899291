"""Drafts: what is proposed, how the length adapts, and what a prompt with nothing to quote loses."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.session.drafts.lookup import HASHED, LONGEST, SHORTEST, Draft


def brute_force(tokens, length):
    """The continuation of the longest n-gram that ends the sequence and occurred before; of equals the most recent."""
    for n in range(HASHED, SHORTEST - 1, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if len(tokens) > n and tokens[end - n : end] == tokens[-n:]:
                longer = list(tokens)
                while len(longer) < len(tokens) + length:
                    longer.append(longer[end + len(longer) - len(tokens)])
                return longer[len(tokens) :]
    return []


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 3))
def test_it_proposes_what_followed_the_longest_recent_match(tokens, length):
    assert Draft(tokens).propose(length) == (brute_force(tokens, length) if length else [])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40))
def test_pushing_one_by_one_is_the_same_as_giving_all(tokens):
    draft = Draft()
    for token in tokens:
        draft.push(token)
    assert draft.propose(4) == Draft(tokens).propose(4)


def test_a_period_goes_on_past_the_end():
    assert Draft([1, 2, 1, 2]).propose(4) == [1, 2, 1]  # a match of two: three tokens
    assert Draft([5, 5, 5]).propose(4) == [5, 5, 5]


def test_the_length_follows_the_match():
    """A match of 2 or 3 tokens: 3, up to 7: 7, longer: 15; each fills a number of rows that CPUs take at once."""
    text = list(range(100, 140))
    for matched, length in ((1, 0), (2, 3), (3, 3), (4, 7), (7, 7), (8, 15), (20, 15)):
        assert len(Draft([*text, 7, *text[:matched]]).propose(100)) == length, matched
    assert len(Draft([*text, 7, *text[:20]], longest_draft=5).propose(100)) == 5


def test_drafts_of_one_length_rest_after_a_rejection_and_longer_each_time():
    draft, rests = Draft([1, 2] * LONGEST), []
    for _ in range(6):
        assert len(draft.propose(15)) == 15
        draft.feedback(15, 0)
        rested = 0
        while not draft.propose(15):
            draft.push([1, 2][rested % 2])
            rested += 1
        rests.append(rested)
    assert rests == [4, 8, 16, 32, 64, 64]
    draft.feedback(15, 0)
    for token in (7, 1, 2):
        draft.push(token)
    assert len(draft.propose(15)) == 3  # a short match: its drafts did not fail


def test_the_limit_and_an_unseen_ending_give_nothing():
    assert Draft([1, 2, 1, 2]).propose(0) == []
    assert Draft([1, 2, 1, 2]).propose(-3) == []
    assert Draft([1, 2, 3, 4]).propose(8) == []
    assert Draft().propose(8) == []


def cost(tokens, prompt):
    """Forwards spent on decoding `tokens` after `prompt`; the price of a draft is measured (SmolLM2, 2 cores x86-64)."""
    draft, spent, at = Draft(prompt), 0.0, 0
    while at < len(tokens):
        proposed = draft.propose(min(31, len(tokens) - at - 1))
        right = 0
        while right < len(proposed) and proposed[right] == tokens[at + right]:
            right += 1
        for token in tokens[at : at + right + 1]:
            draft.push(token)
        draft.feedback(len(proposed), right)
        at += right + 1
        spent += 1 + (0.25 + 0.11 * len(proposed) if proposed else 0)
    return spent


def test_with_nothing_to_quote_decoding_keeps_nine_tenths_of_its_speed():
    for seed, (vocab, length) in enumerate([(3, 100), (5, 60), (10, 200), (30, 100), (1000, 300)] * 4):
        tokens = np.random.default_rng(seed).integers(0, vocab, length + 200).tolist()
        assert 0.9 * cost(tokens[200:], tokens[:200]) <= length, (vocab, length)


def test_quoting_is_more_than_twice_as_cheap():
    prompt = np.random.default_rng(0).integers(0, 1000, 400).tolist()
    assert cost(prompt[100:300], prompt) < 200 / 2
