"""What an answer is like where nobody says: sampling of the checkpoint, a limit, and an end to repetition."""

import pytest
from fake_engine import EOS, FakeEngine, FakeParts
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.errors import InputError
from phi3mobile.session.defaults import GUARD, MAX_TOKENS, SMALL, chosen_sampling, default_sampling, generation_section
from phi3mobile.session.repetition import LEAST, LONGEST, TIMES, Repetition
from phi3mobile.session.sampling import GREEDY, Sampling
from phi3mobile.session.session import Session

USER = [{"role": "user", "content": "abc"}]


def repeats(tokens: list[int]) -> bool:
    """By the definition: the last TIMES blocks are equal, and LEAST tokens or more equal those a block before."""
    for period in range(1, LONGEST + 1):
        needed = max(LEAST, (TIMES - 1) * period)
        if len(tokens) >= needed + period and tokens[-needed:] == tokens[-needed - period : -period]:
            return True
    return False


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 80))
def test_repetition_is_found_at_once_and_only_then(before, block, times):
    watch, tokens = Repetition(), []
    for token in [*before, *block * times]:
        tokens.append(token)
        assert watch.push(token) == repeats(tokens)
        if repeats(tokens):
            break


class Loops(FakeEngine):
    """An engine that says the same `block` for ever."""

    def __init__(self, block, **options):
        super().__init__(**options)
        self.block, self.count = block, 0

    def forward(self, tokens, position, long=False):
        logits = super().forward(tokens, position, long)
        logits[:, EOS] = -1e9
        logits[-1, self.block[self.count % len(self.block)]] = 1e9
        self.count += 1
        return logits


@pytest.mark.parametrize("length", [1, 7, 40])
def test_an_answer_that_repeats_itself_is_ended_unless_it_may(length):
    block = [4 + (i * i) % 17 for i in range(length)]
    engine = Loops(block, max_context=2048, max_chunk=64)
    events = []
    with Session(FakeParts(), engine=engine, on_event=events.append) as session:
        "".join(session.generate(USER))
        found = session.statistics
        needed = max(LEAST, (TIMES - 1) * length) + length
        assert found.finish_reason == "repetition" and found.generated_tokens == needed
        assert any(f"repeats itself and is ended after {needed} tokens" in event for event in events)
        engine.count = 0
        "".join(session.generate(USER, repetition=True))
        assert session.statistics.finish_reason == "length" and session.statistics.generated_tokens == MAX_TOKENS
        "".join(session.generate(USER, repetition=True, max_tokens=None))
        assert session.statistics.finish_reason == "context_full"


def test_a_checkpoints_generation_config_is_the_default():
    drawn = generation_section({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": -1, "eos_token_id": 2})
    assert drawn == {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 0}
    assert default_sampling(drawn, 10**9) == Sampling(temperature=0.6, top_p=0.9)
    assert default_sampling({"do_sample": True}, 10**9) == Sampling(temperature=1.0)
    assert default_sampling({"do_sample": True, "temperature": 0, "top_p": 0.5}, SMALL) == GREEDY
    # Without do_sample, transformers does not look at temperature and the like.
    assert default_sampling(generation_section({"temperature": 0.6, "repetition_penalty": 1.05}), 1) == Sampling(
        repetition_penalty=1.05
    )
    assert default_sampling({}, SMALL) == GREEDY and default_sampling({}, SMALL - 1) == Sampling(
        repetition_penalty=GUARD, penalize_prompt=False
    )
    with pytest.raises(InputError, match=r"generation_config.json: sampling: top_p is 7; it must be above 0"):
        generation_section({"do_sample": True, "top_p": 7})


def test_options_by_name_change_the_default_and_idle_ones_are_refused():
    default = Sampling(temperature=0.6, top_p=0.9, repetition_penalty=1.1)
    assert chosen_sampling(default, None, {"top_k": 3, "seed": None}) == Sampling(0.6, 3, 0.9, 0.0, 1.1)
    assert chosen_sampling(default, None, {"temperature": 0}) == Sampling(repetition_penalty=1.1)
    guard = default_sampling({}, SMALL - 1)
    assert chosen_sampling(guard, None, {"temperature": 0}) == guard
    assert chosen_sampling(guard, None, {"repetition_penalty": 1.2}) == Sampling(repetition_penalty=1.2)
    assert chosen_sampling(default, GREEDY, {}) == GREEDY
    with pytest.raises(InputError, match="temperature and sampling say the same thing twice"):
        chosen_sampling(default, GREEDY, {"temperature": 1})
    for given_, names in (({"top_p": 0.5, "seed": 1}, "top_p, seed"), ({"min_p": 0.1, "temperature": 0}, "min_p")):
        with pytest.raises(InputError, match=f"{names} has no effect at temperature 0"):
            chosen_sampling(GREEDY if "temperature" not in given_ else default, None, given_)


def test_a_session_samples_as_its_bundle_says():
    class Parts(FakeParts):
        sampling = Sampling(temperature=2.0, seed=3)

    def said(parts, **options):
        with Session(parts, engine=FakeEngine(seed=1, max_context=64, max_chunk=16)) as session:
            return "".join(session.generate(USER, max_tokens=20, **options))

    assert said(Parts()) == said(FakeParts(), sampling=Parts.sampling) == said(FakeParts(), temperature=2.0, seed=3)
    assert said(Parts(), temperature=0) == said(FakeParts()) != said(Parts())
