"""LongRoPE around its switch at 4,096: the session's greedy tokens are transformers', computed anew over the whole sequence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import random_model, random_tensors, tiny, transformers_model

from phi3mobile.engines.eager import EagerEngine
from phi3mobile.models.config import RopeScaling
from phi3mobile.session.session import Session

ORIGINAL, CONTEXT = 4096, 4352
FACTORS = Path(__file__).parents[3] / "shared" / "facts" / "longrope-factors.json"


def factors(count):
    """`count` pairs spread over the released Phi-3-mini-128k table; without it, a growing list of its kind."""
    if FACTORS.is_file():
        table = json.loads(FACTORS.read_text())["Phi-3-mini-128k-instruct (Jul-2024 revision, current main)"]
        short, long = table["short_factor"], table["long_factor"]
        picks = [i * (len(long) - 1) // (count - 1) for i in range(count)]
        return RopeScaling(tuple(short[i] for i in picks), tuple(long[i] for i in picks))
    return RopeScaling(tuple(1.05 + 0.25 * i for i in range(count)), tuple(64.8 ** (i / (count - 1)) for i in range(count)))


class Ids:
    """A tokenizer whose text is the ids: character n stands for token n."""

    def encode(self, text, special=True):
        return [ord(char) for char in text]

    def stream(self, skip=None, at_start=False):
        return SimpleNamespace(push=chr, finish=lambda: "")


class Reference:
    """transformers' greedy choice by a full forward without a cache, each sequence once."""

    def __init__(self, config):
        self.model = transformers_model(config, random_tensors(config))
        self.model.set_attn_implementation("sdpa")  # the eager one keeps all 4200 x 4200 weights
        self.known = {}

    @torch.no_grad()
    def next(self, tokens):
        key = bytes(tokens)
        if key not in self.known:
            logits = self.model(torch.tensor([tokens]), use_cache=False, logits_to_keep=1).logits[0, -1]
            best, second = logits.topk(2)[0].tolist()
            assert best - second > 1e-3  # else rounding would decide
            self.known[key] = int(logits.argmax())
        return self.known[key]


@pytest.fixture(scope="module")
def config():
    base = tiny("tiny-longrope")
    return replace(
        base,
        rope_scaling=factors(base.rotary_dim // 2),
        original_max_position_embeddings=ORIGINAL,
        max_position_embeddings=131072,
        vocab_size=256,
        sliding_window=None,
    )


@pytest.fixture(scope="module")
def reference(config):
    return Reference(config)


@pytest.fixture(scope="module")
def model(config):
    return random_model(config, CONTEXT)


@pytest.fixture(scope="module")
def text(reference):
    """Random, but around the switch the greedy continuation: prompts cut there lead to the same few sequences."""
    tokens = torch.randint(256, (CONTEXT,), generator=torch.Generator().manual_seed(7)).tolist()
    for end in range(4094, 4099):
        tokens[end] = reference.next(tokens[:end])
    return "".join(map(chr, tokens))


@pytest.fixture
def opened(model):
    """A session, and the list of its events."""
    model.reset()
    events = []
    parts = SimpleNamespace(tokenizer=Ids(), chat=None, eos_ids=frozenset())
    return Session(parts, EagerEngine(model, chunk=512), on_event=events.append), events


def greedy(session, prompt, count):
    return [ord(char) for char in "".join(session.complete(prompt, max_tokens=count))]


def same_as(reference, prompt, answer, steps):
    """Compare the answer's tokens number `steps` with the reference, given the tokens before."""
    tokens = [*map(ord, prompt), *answer]
    for step in steps:
        end = len(prompt) + step
        assert answer[step] == reference.next(tokens[:end]), f"token after {end}"
    return True


@pytest.mark.parametrize("length", [4094, 4095, 4096])
def test_growing_across_the_switch(opened, reference, text, length):
    session, events = opened
    answer = greedy(session, text[:length], 4098 - length + 1)
    assert same_as(reference, text[:length], answer, range(len(answer)))  # sequences up to 4098 tokens
    assert session.statistics.long_switch
    assert len(events) == 1 and "long factors" in events[0] and "4097" in events[0]
    assert session.statistics.prefilled_tokens == length + ORIGINAL + 1


def test_on_to_4200_after_one_switch(opened, reference, text):
    session, events = opened
    answer = greedy(session, text[:4094], 108)
    assert same_as(reference, text[:4094], answer, [0, 1, 2, 3, 4, 105, 106, 107])  # after 4094..4098, 4199..4201
    assert session.statistics.long_switch and len(events) == 1


@pytest.mark.parametrize("length", [4097, 4200])
def test_a_prompt_past_the_switch_is_long_from_its_first_chunk(opened, reference, text, length):
    session, events = opened
    answer = greedy(session, text[:length], 2)
    assert same_as(reference, text[:length], answer, range(2))
    assert not session.statistics.long_switch and not events  # nothing was computed twice
    assert session.statistics.prefilled_tokens == length


def test_the_last_token_of_a_short_answer_needs_no_switch(opened, reference, text):
    session, events = opened
    answer = greedy(session, text[:4095], 2)  # 4097 tokens in the end, of which the last was never run
    assert same_as(reference, text[:4095], answer, range(2))
    assert not session.statistics.long_switch and not events


def test_an_edit_goes_back_below_the_switch_and_up_again(opened, reference, text):
    session, events = opened
    greedy(session, text[:4200], 2)
    shorter = text[:4095]
    answer = greedy(session, shorter, 4)  # 4095, 4096 short; 4097, 4098 long again
    assert same_as(reference, shorter, answer, range(4))
    assert session.statistics.reused_tokens == 0 and session.statistics.long_switch
    assert len(events) == 2 and "short factors" in events[0] and "long factors" in events[1]
    assert session.statistics.prefilled_tokens == 4095 + 4097
    edited = text[:4000] + text[100:250]
    answer = greedy(session, edited, 2)  # still long: the common prefix stays
    assert same_as(reference, edited, answer, range(2))
    assert session.statistics.reused_tokens == 4000 and len(events) == 2


def test_rows_of_both_kinds_would_not_be_the_model(reference, model, text):
    """The check above can fail: without the second prefill the logits are others."""
    tokens = torch.tensor([[*map(ord, text[: ORIGINAL + 1])]])
    model.reset()
    model(tokens[:, :ORIGINAL])
    mixed = model(tokens[:, ORIGINAL:], ORIGINAL, long=True)[0, -1]
    exact = reference.model(tokens, use_cache=False, logits_to_keep=1).logits[0, -1]
    assert (mixed - exact).abs().max() > 1e-2
