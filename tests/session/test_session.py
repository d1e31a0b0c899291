"""Session and Decoder against an oracle: every step on a fresh engine, in one forward over the whole sequence."""

import subprocess
import sys
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from fake_engine import EOS, FakeEngine, FakeParts, FakeTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.errors import InputError
from phi3mobile.session.decoding import Decoder, Rows
from phi3mobile.session.sampling import Sampling, sample
from phi3mobile.session.session import Session
from phi3mobile.session.stops import StopGate

encode, decode = FakeTokenizer().encode, FakeTokenizer().decode
USER = [{"role": "user", "content": "abc def."}]


def fresh_logits(engine, tokens):
    """Logits after `tokens` by one forward on a new engine; all rows in the regime of the whole length."""
    fresh = FakeEngine(
        engine.seed, engine.max_context, engine.max_context, engine.original_context, engine.habit, engine.eos_bias
    )
    return fresh.forward(np.array(tokens, dtype=np.int64), 0)[-1]


def oracle(engine, prompt, limit, sampling=None):
    """The ids that follow `prompt`, at most `limit`, up to eos or a full context."""
    sampling = sampling or Sampling()
    tokens, rng = list(prompt), np.random.default_rng(sampling.seed)
    while len(tokens) < min(len(prompt) + limit, engine.max_context):
        token = sample(fresh_logits(engine, tokens), sampling, tokens, rng)
        if token == EOS:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


def run(engine, prompt, rows=None, **options):
    decoder = Decoder(rows or Rows(engine), list(prompt), {EOS}, options.pop("sampling", Sampling()), **options)
    return list(decoder.run()), decoder


def text(session, prompt, **options):
    return "".join(session.complete(prompt, **options))


engines = st.builds(
    FakeEngine,
    seed=st.integers(0, 1000),
    max_context=st.integers(24, 48),
    max_chunk=st.integers(1, 24),
    original_context=st.none() | st.integers(4, 40),
    habit=st.sampled_from([0.0, 2.0, 5.0]),
    eos_bias=st.sampled_from([-100.0, 0.0]),
    back=st.none() | st.integers(0, 24),
)
samplings = st.sampled_from(
    [Sampling(), Sampling(repetition_penalty=1.3), Sampling(0.5, seed=1), Sampling(1.2, 9, 0.9, 0.02, 1.1, seed=2)]
)
prompts = st.text("abcdef .,\n", min_size=1, max_size=22)


@settings(max_examples=80, deadline=None)
@given(engines, prompts, st.integers(1, 20), samplings, st.booleans())
def test_chunks_drafts_and_the_longrope_switch_change_nothing(engine, prompt, limit, sampling, lookup):
    ids, decoder = run(engine, encode(prompt), max_tokens=limit, sampling=sampling, lookup=lookup)
    assert ids == oracle(engine, encode(prompt), limit, sampling)
    assert decoder.generated_tokens == len(ids)
    assert decoder.generated_tokens <= 1 + decoder.forwards + decoder.accepted + decoder.long_switch
    assert decoder.accepted <= decoder.drafted and (lookup or decoder.drafted == 0)


turns = st.tuples(prompts, st.integers(1, 8), samplings, st.booleans(), st.sampled_from(["full", "close", "cancel"]))


@settings(max_examples=60, deadline=None)
@given(engines, st.lists(turns, min_size=2, max_size=5), st.data())
def test_a_session_over_turns_answers_like_fresh_ones(engine, plan, data):
    session, history = Session(FakeParts(), engine), [""]
    for addition, limit, sampling, lookup, way in plan:
        said = data.draw(st.sampled_from(history))  # the next turn, or back to an earlier one, or an edit of it
        said = said[: data.draw(st.just(len(said)) | st.integers(0, len(said)))] + addition
        said = decode(encode(said)[: engine.max_context - 1])
        while len(encode(said)) >= engine.max_context:  # a cut character became a token more
            said = said[:-1]
        expected = decode(oracle(engine, encode(said), limit, sampling))
        engine.calls.clear()
        pieces = session.complete(said, max_tokens=limit, sampling=sampling, lookup=lookup)
        if way == "full":
            answer = "".join(pieces)
            assert answer == expected
            assert session.statistics.finish_reason in ("stop", "length", "context_full")
        else:
            answer = next(pieces, "")
            if way == "close":
                pieces.close()
            else:
                session.cancel()
                answer += "".join(pieces)
            assert expected.startswith(answer.rstrip("\ufffd"))  # a last half character is flushed as U+FFFD
        assert engine.calls[0][0] == session.statistics.reused_tokens < session.statistics.prompt_tokens
        assert engine.holds(session._rows.tokens, session._rows.long)
        history += [said, said + answer]


@pytest.mark.parametrize("length", [17, 18, 19, 20, 21, 22, 35])
@pytest.mark.parametrize("lookup", [False, True])
def test_longrope_at_every_length_around_the_switch(length, lookup):
    engine = FakeEngine(seed=3, original_context=20, habit=5.0)
    prompt, events = encode(("abcdef.," * 9)[:60])[:length], []
    ids, decoder = run(engine, prompt, max_tokens=30, lookup=lookup, on_event=events.append)
    assert ids == oracle(engine, prompt, 30)
    crossed = length <= 20
    assert decoder.long_switch == crossed and len(events) == crossed
    assert sum(position == 0 for position, _, _ in engine.calls) == 1 + crossed
    # From the (last) start at 0 on, every forward is in the long regime.
    last_start = max(i for i, (position, _, _) in enumerate(engine.calls) if position == 0)
    assert all(long for _, _, long in engine.calls[last_start:])
    assert decoder.prefilled_tokens == length + (21 if crossed else 0)


def test_a_full_short_context_is_not_past_the_switch():
    engine = FakeEngine(original_context=20)
    ids, decoder = run(engine, encode("abcdef" * 3), max_tokens=3)  # 18 + 3: the last token is never run
    assert len(ids) == 3 and not decoder.long_switch
    assert not any(long for _, _, long in engine.calls)


def test_going_back_below_the_switch_reuses_nothing_long():
    engine = FakeEngine(original_context=20)
    events = []
    session = Session(FakeParts(), engine, on_event=events.append)
    text(session, "abcdef" * 5, max_tokens=2)
    assert not session.statistics.long_switch and not events
    engine.calls.clear()
    assert text(session, "abcdef" * 2, max_tokens=2) == decode(oracle(engine, encode("abcdef" * 2), 2))
    assert session.statistics.reused_tokens == 0 and session.statistics.long_switch
    assert engine.calls[0] == (0, 7, False) and "short" in events[0]


def test_the_next_turn_prefills_only_what_is_new():
    engine, prompt = FakeEngine(), encode("abc def.\n")
    rows = Rows(engine)
    answer, _ = run(engine, prompt, rows, max_tokens=5)
    again, decoder = run(engine, prompt + answer + encode("fff"), rows, max_tokens=5)
    assert again == oracle(engine, prompt + answer + encode("fff"), 5)
    assert decoder.reused_tokens == len(prompt) + 4  # the fifth token was sampled and not yet run
    assert decoder.prefilled_tokens == 1 + 3
    _, decoder = run(engine, prompt, rows, max_tokens=5)  # as after undo
    assert (decoder.reused_tokens, decoder.prefilled_tokens) == (len(prompt) - 1, 1)


def test_far_back_an_evicting_cache_is_filled_again_from_0():
    engine, events = FakeEngine(back=10), []
    session = Session(FakeParts(), engine, on_event=events.append)
    prompt = "fedcb" * 8
    text(session, prompt, max_tokens=5)
    for length, reused in ((35, 34), (30, 0), (28, 27)):  # the farthest row ends at 44, 44, 34
        engine.calls.clear()
        assert text(session, prompt[:length], max_tokens=5) == decode(oracle(engine, encode(prompt[:length]), 5))
        assert session.statistics.reused_tokens == reused
        assert len(events) == (reused == 0)
        assert not events or "all 30 are prefilled again" in events.pop()


def test_reset_forgets_the_cache():
    session = Session(FakeParts(), FakeEngine())
    for _ in range(2):
        text(session, "abc", max_tokens=5)
        assert session.statistics.reused_tokens == 0
        session.reset()


def test_lookup_saves_forwards_and_sampling_with_a_seed_stays_the_same():
    for sampling in (Sampling(), Sampling(0.7, seed=5)):
        prompt = encode("abcdef" * 4)
        engine = FakeEngine(seed=1, habit=8.0, max_chunk=32)
        plain, _ = run(engine, prompt, max_tokens=60, sampling=sampling)
        ids, decoder = run(engine, prompt, max_tokens=60, sampling=sampling, lookup=True)
        assert ids == plain
        assert decoder.accepted >= 10 and decoder.forwards + decoder.accepted == 59


def test_limits_and_their_finish_reasons():
    engine = FakeEngine(max_context=30)
    session = Session(FakeParts(), engine)
    assert text(session, "abc", max_tokens=4)
    assert session.statistics.finish_reason == "length" and session.statistics.generated_tokens == 4
    text(session, "abc")
    assert session.statistics.finish_reason == "context_full" and session.statistics.generated_tokens == 28
    session = Session(FakeParts(), FakeEngine(eos_bias=50.0))
    assert text(session, "abc") == "" and session.statistics.finish_reason == "stop"
    assert session.statistics.generated_tokens == 0 and session.statistics.ttft_s == 0


def split_everywhere(whole, cuts):
    edges = [0, *sorted(cut % (len(whole) + 1) for cut in cuts), len(whole)]
    return [whole[a:b] for a, b in pairwise(edges)]


@settings(max_examples=300, deadline=None)
@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.lists(st.integers(0, 99)))
def test_stop_strings_are_found_however_the_text_is_cut(whole, stops, cuts):
    gate, shown = StopGate(tuple(stops)), ""
    for piece in split_everywhere(whole, cuts):
        shown += gate.push(piece)
        if not gate.hit:  # nothing is held back longer than it can still become a stop string
            held = len(whole[: len(shown) + len(gate._held)]) - len(shown)
            assert held == 0 or any(stop.startswith(gate._held) for stop in stops)
    shown += gate.finish()
    ends = [end for end in range(len(whole) + 1) if any(whole[:end].endswith(stop) for stop in stops)]
    expected = whole
    if ends:
        expected = whole[: ends[0] - max(len(stop) for stop in stops if whole[: ends[0]].endswith(stop))]
    assert shown == expected and gate.hit == bool(ends)
    assert not any(stop in shown for stop in stops)


@pytest.mark.parametrize("lookup", [False, True])
def test_a_stop_string_ends_the_answer_and_is_never_shown(lookup):
    engine = FakeEngine(seed=4, habit=3.0)
    whole = text(Session(FakeParts(), engine), "abc", max_tokens=25)
    for start in range(len(whole)):
        for stop in (whole[start : start + 3], whole[start : start + 1]):
            session = Session(FakeParts(), engine)
            assert text(session, "abc", max_tokens=25, stop=[stop, "zzz"], lookup=lookup) == whole[: whole.find(stop)]
            assert session.statistics.finish_reason == "stop_string"
            # What was generated stays in the KV cache and is right.
            assert text(session, "abcd", max_tokens=5) == decode(oracle(engine, encode("abcd"), 5))


def test_text_held_back_for_a_stop_string_is_shown_if_it_ends_there():
    engine = FakeEngine(seed=4)
    whole = text(Session(FakeParts(), engine), "abc", max_tokens=25)
    assert text(Session(FakeParts(), engine), "abc", max_tokens=25, stop=[whole[-2:] + "zzz"]) == whole


def test_no_piece_of_text_is_half_a_character():
    engine = FakeEngine(seed=6, habit=0.0)
    half_heavy = Sampling(3.0, seed=0)
    pieces = list(Session(FakeParts(), engine).complete("é🙂", max_tokens=80, sampling=half_heavy))
    assert "".join(pieces) == decode(oracle(engine, encode("é🙂"), 80, half_heavy))
    assert all(pieces)


def test_cancel_from_another_thread_ends_within_one_token():
    engine = FakeEngine()
    session = Session(FakeParts(), engine)
    whole = text(session, "abc", max_tokens=30)
    session.reset()
    engine.calls.clear()

    def hook(count):
        if count == 6:
            thread = threading.Thread(target=session.cancel)
            thread.start()
            thread.join()

    engine.hook = hook
    answer = text(session, "abc", max_tokens=30)
    assert session.statistics.finish_reason == "cancelled"
    assert len(engine.calls) == 7 and session.statistics.generated_tokens == 7
    assert whole.startswith(answer.rstrip("\ufffd"))
    assert text(session, "abc", max_tokens=30) == whole  # a later answer is not cancelled


def test_cancel_between_prefill_chunks():
    engine = FakeEngine(max_chunk=4)
    session = Session(FakeParts(), engine)
    engine.hook = lambda count: session.cancel() if count == 1 else None
    assert text(session, "f" * 20) == ""
    assert len(engine.calls) == 2 and session.statistics.finish_reason == "cancelled"
    assert text(session, "f" * 20, max_tokens=5) == decode(oracle(engine, encode("f" * 20), 5))
    assert session.statistics.reused_tokens == 8


def test_one_generation_at_a_time():
    engine = FakeEngine()
    session = Session(FakeParts(), engine)
    first = session.complete("abc", max_tokens=30)
    next(first)
    second = session.complete("abd", max_tokens=6)
    assert list(first) == []
    assert "".join(second) == decode(oracle(engine, encode("abd"), 6))
    errors = []

    def hook(count):
        def other():
            with pytest.raises(RuntimeError, match="another thread") as error:
                session.complete("abc")
            errors.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    engine.hook = hook
    assert text(session, "abd", max_tokens=6) == decode(oracle(engine, encode("abd"), 6))
    assert len(errors) == 6  # in each forward of the third answer: one prefill chunk was still cached


@pytest.mark.parametrize("failing", [0, 1, 3, 5])
def test_a_failed_forward_leaves_the_cache_list_true(failing):
    engine = FakeEngine(max_chunk=4)
    session = Session(FakeParts(), engine)

    def hook(count):
        if count == failing:
            raise MemoryError("no more")

    engine.hook = hook
    with pytest.raises(MemoryError):
        text(session, "abcdef abc", max_tokens=8)
    assert session.statistics.finish_reason == "error"
    assert engine.holds(session._rows.tokens, session._rows.long)
    assert text(session, "abcdef abc", max_tokens=8) == decode(oracle(engine, encode("abcdef abc"), 8))


def conversation(turns, system="cd.", content="abc"):
    messages = [{"role": "system", "content": system}] if system else []
    for _ in range(turns):
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    return [*messages, {"role": "user", "content": "fed"}]


def slid_oracle(engine, messages, limit):
    """The greedy answer where a full context drops the oldest turns, every step on a fresh engine; messages dropped."""
    parts, answer, turn = FakeParts(), [], 0
    head = [m for m in messages if m["role"] == "system"]
    starts = [i for i, m in enumerate(messages) if m["role"] == "user"]
    while len(answer) < limit:
        tokens = parts.chat.encode(parts.tokenizer, head + messages[starts[turn] :]) + answer
        if len(tokens) >= engine.max_context:
            while turn < len(starts) - 1 and engine.max_context - len(tokens) < engine.max_context // 8:
                turn += 1
                tokens = parts.chat.encode(parts.tokenizer, head + messages[starts[turn] :]) + answer
            if len(tokens) >= engine.max_context:
                break
        token = int(fresh_logits(engine, tokens).argmax())
        if token == EOS:
            break
        answer.append(token)
    return answer, starts[turn] - len(head)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    count=st.integers(0, 8),
    system=st.sampled_from(["", "cd."]),
    lookup=st.booleans(),
    original=st.none() | st.integers(15, 50),
)
def test_slide_drops_the_oldest_turns_and_continues_the_answer(seed, count, system, lookup, original):
    engine = FakeEngine(seed, max_context=56, original_context=original)
    messages = conversation(count, system)
    session = Session(FakeParts(), engine)
    answer = "".join(session.generate(messages, overflow="slide", max_tokens=45, lookup=lookup))
    ids, dropped = slid_oracle(engine, messages, 45)
    assert answer == decode(ids)
    assert session.statistics.dropped_messages == dropped and session.statistics.generated_tokens == len(ids)
    assert session.statistics.finish_reason == ("length" if len(ids) == 45 else "context_full")


def test_slid_turns_reuse_the_window_in_the_cache():
    engine, events = FakeEngine(max_context=64), []
    session = Session(FakeParts(), engine, on_event=events.append)
    messages, reused = conversation(6), []
    for _ in range(6):
        answer = "".join(session.generate(messages, overflow="slide", max_tokens=2)).replace("\ufffd", "")
        reused.append(session.statistics.reused_tokens > session.statistics.prompt_tokens // 2)
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "a"}]
    assert len(events) >= 5 and sum(reused) >= 3


def test_without_slide_a_long_conversation_is_refused_and_with_it_the_last_turn_must_fit():
    engine = FakeEngine(max_context=40)
    session = Session(FakeParts(), engine)
    with pytest.raises(InputError, match=r"prompt has \d+ tokens; the context holds 40"):
        session.generate(conversation(8))
    with pytest.raises(InputError, match=r"last turn alone have \d+ tokens; the context holds 40"):
        session.generate([*conversation(3), {"role": "user", "content": "f" * 40}], overflow="slide")
    assert not engine.calls


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([], "no messages"),
        ([{"role": "user", "content": " \n"}], "empty"),
        (["hi"], "message 0"),
        ([{"role": "user"}], "message 0"),
        ([*USER, {"role": "assistant", "content": None}], "message 1"),
    ],
)
def test_bad_messages_are_refused_at_the_call(messages, named):
    with pytest.raises(InputError, match=named):
        Session(FakeParts(), FakeEngine()).generate(messages)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stop": "end"}, "list"),
        ({"stop": [""]}, "empty"),
        ({"stop": [1]}, "strings"),
        ({"overflow": "drop"}, "slide"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(options, named):
    with pytest.raises(InputError, match=named):
        Session(FakeParts(), FakeEngine()).generate(USER, **options)


def test_bad_prompts_are_refused_at_the_call():
    session = Session(FakeParts(), FakeEngine(max_context=40))
    with pytest.raises(InputError, match="empty"):
        session.complete("")
    with pytest.raises(InputError, match="has 40 tokens; the context holds 40"):
        session.complete("f" * 40)
    assert text(session, "f" * 39) and session.statistics.finish_reason == "context_full"


def test_statistics_add_up_and_leave_out_the_consumers_time():
    session = Session(FakeParts(), FakeEngine())
    for _ in session.complete("abcdef abc", max_tokens=8):
        time.sleep(0.05)
    got = session.statistics
    assert got.prompt_tokens == got.prefilled_tokens == len(encode("abcdef abc")) and got.reused_tokens == 0
    assert (got.generated_tokens, got.forwards, got.drafted, got.accepted) == (8, 7, 0, 0)
    assert 0 < got.prefill_s <= got.ttft_s and 0 < got.decode_s < 0.2
    assert got.decode_tokens_per_s == pytest.approx(7 / got.decode_s)
    assert got.prefill_tokens_per_s == pytest.approx(got.prompt_tokens / got.prefill_s)
    assert 0 < got.interval_p50_ms <= got.interval_p95_ms < 100


def test_a_reprefill_is_not_counted_as_decoding():
    engine = FakeEngine(original_context=20, max_chunk=30)
    engine.hook = lambda count: time.sleep(0.1) if engine.calls[-1][2] and engine.calls[-1][0] == 0 else None
    _, decoder = run(engine, encode("abcdef" * 3), max_tokens=8)
    assert decoder.long_switch and decoder.refill_s >= 0.1 and sum(decoder.times[1:]) - decoder.refill_s < 0.1


def test_a_failure_after_going_back_keeps_no_row_it_overwrote():
    engine = FakeEngine()
    session = Session(FakeParts(), engine)
    text(session, "fedcdef", max_tokens=2)

    def hook(count):
        raise MemoryError("no more")

    engine.hook = hook
    with pytest.raises(MemoryError):
        text(session, "fedabcdef", max_tokens=2)
    assert session._rows.tokens == encode("fed") and engine.holds(session._rows.tokens, False)


def test_messages_changed_during_the_answer_do_not_matter():
    engine = FakeEngine(max_context=56)
    messages = conversation(3)
    pieces = Session(FakeParts(), engine).generate(messages, overflow="slide", max_tokens=40)
    expected, _ = slid_oracle(engine, [dict(message) for message in messages], 40)
    messages.clear()
    assert "".join(pieces) == decode(expected)


def test_the_session_closes_its_engine():
    engine = FakeEngine()
    with Session(FakeParts(), engine) as session:
        next(session.complete("abc"))
    assert engine.closed and session.statistics.finish_reason == "cancelled"


def test_an_engine_may_be_given():
    engine = FakeEngine(seed=1)
    assert Session(FakeParts(), engine=engine).engine is engine


def test_importing_a_session_needs_nothing_heavy():
    code = "import sys, phi3mobile.session.session; print({'torch', 'tokenizers', 'jinja2', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
