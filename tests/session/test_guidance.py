"""Guided answers: always whole and valid, or a named error; from random logits, which know nothing of JSON."""

from __future__ import annotations

import json
import random
import re
import time
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest

from phi3mobile.cli import main
from phi3mobile.engines import EngineInfo
from phi3mobile.errors import InputError
from phi3mobile.session.guidance import Guide, GuideError
from phi3mobile.session.sampling import Sampling
from phi3mobile.session.session import Session
from phi3mobile.text.tokenizer import AddedToken, Tokenizer

EOS, USER = 0, 1
WORDS = [
    b'{"',
    b'":',
    b'":"',
    b'",',
    b'"}',
    b"}}",
    b'"]',
    b"],",
    b"true",
    b"false",
    b"null",
    b"name",
    b" the",
    b", ",
    b"abc",
    b"ab",
    b"cd",
    b"00",
    b"12",
    b"  ",
    b"\n  ",
    "é".encode(),
    "🙂".encode(),
]
PIECES = [b"<eos>", b"<user>", *(bytes([i]) for i in range(256)), *WORDS]
VOCAB = len(PIECES) + 5  # as a model's, wider than the tokenizer's


def make_tokenizer(strips_space=False):
    """Byte pieces and some words, longest match first. strips_space: as sentencepiece, a space before the beginning."""

    def plain(text, first):
        data, ids = text.encode(), []
        if strips_space and first:
            data = b" " + data
        while data:
            ids.append(max((i for i in range(2, len(PIECES)) if data.startswith(PIECES[i])), key=lambda i: len(PIECES[i])))
            data = data[len(PIECES[ids[-1]]) :]
        return ids

    added = {"<eos>": AddedToken(EOS), "<user>": AddedToken(USER)}
    return Tokenizer(plain, PIECES.__getitem__, lambda text: None, added, len(PIECES), strips_space)


TOKENIZER = make_tokenizer()


class RandomEngine:
    """Logits that depend on the whole sequence and mean nothing; `wishes`: bytes -> a higher logit for their token."""

    def __init__(self, seed=0, context=2048, wishes=None):
        self.info = EngineInfo(VOCAB, context, 64)
        self.seed, self.tokens, self.forwards = seed, [], 0
        self.wish = np.zeros(VOCAB, dtype=np.float32)
        for data, value in (wishes or {}).items():
            self.wish[PIECES.index(data)] = value

    def forward(self, tokens, position, long=False):
        assert position <= len(self.tokens) and position + len(tokens) <= self.info.max_context
        self.forwards += 1
        del self.tokens[position:]
        rows = []
        for token in tokens.tolist():
            self.tokens.append(token)
            seed = [self.seed, len(self.tokens), *self.tokens[-8:]]
            rows.append(np.random.default_rng(seed).standard_normal(VOCAB) * 3 + self.wish)
        return np.asarray(rows, dtype=np.float32)

    def reset(self):
        self.tokens.clear()

    def close(self):
        pass


class Chat:
    def encode(self, tokenizer, messages):
        return [token for m in messages for token in [USER, *tokenizer.encode(m["content"])]] + [USER]


def opened(engine=None, tokenizer=TOKENIZER, **options):
    parts = SimpleNamespace(tokenizer=tokenizer, chat=Chat(), eos_ids=frozenset({EOS}))
    return Session(parts, engine or RandomEngine(), **options)


def answer(guide, max_tokens=200, engine=None, tokenizer=TOKENIZER, chat=False, **options):
    """(text, statistics) of a guided completion, or of an answer in a chat."""
    session = opened(engine, tokenizer)
    ask = session.generate if chat else session.complete
    text = "".join(ask([{"role": "user", "content": "ab"}] if chat else "ab", guide=guide, max_tokens=max_tokens, **options))
    return text, session.statistics


def random_schema(rng, depth=0):
    """A schema of the kinds people ask models for."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern"]
    if depth < 3:
        kinds += ["object", "object", "array", "array", "anyOf"]
    kind = rng.choice(kinds if depth else ["object", "array", "anyOf"])
    if kind == "object":
        names = rng.sample(["name", "age", "first name", "tags", "é", "a", "id"], rng.randint(0, 4))
        schema = {"type": "object", "properties": {name: random_schema(rng, depth + 1) for name in names}}
        schema["required"] = [name for name in names if rng.random() < 0.6]
        if rng.random() < 0.7:
            schema["additionalProperties"] = False
        return schema
    if kind == "array":
        low = rng.randint(0, 3)
        return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": low, "maxItems": low + rng.randint(0, 3)}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(2, 3))]}
    if kind == "string":
        low = rng.choice([0, 0, 1, 5])
        return (
            {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 20)}
            if rng.random() < 0.7
            else {"type": kind}
        )
    if kind == "integer":
        low = rng.randint(-1000, 1000)
        return (
            {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 500)} if rng.random() < 0.5 else {"type": kind}
        )
    if kind == "enum":
        return {"enum": rng.sample(["red", "green", 'q"uote', 1, 2.5, None, True, ["x"]], 3)}
    if kind == "const":
        return {"const": rng.choice(["fixed", 7, {"k": [1]}])}
    if kind == "pattern":
        return {"type": "string", "pattern": rng.choice(["^[a-f0-9]{4}$", "^(ab|cd)+$", "^[0-9]{3}-[A-Z]{2}$"])}
    return {"type": kind}


@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(40, 240), marks=pytest.mark.slow)])
def test_random_schemas_give_valid_json_or_a_named_error(seeds):
    valid, refused, closed = 0, 0, 0
    for seed in seeds:
        rng = random.Random(seed)
        schema = random_schema(rng)
        guide = Guide.json_schema(schema, TOKENIZER)
        limit = rng.choice([2, 8, 20, 60, 300])
        sampling = rng.choice([Sampling(), Sampling(1.0, seed=seed), Sampling(0.7, 20, 0.9, repetition_penalty=1.2, seed=seed)])
        try:
            text, statistics = answer(guide, limit, RandomEngine(seed), sampling=sampling, lookup=rng.random() < 0.5)
        except InputError as error:
            assert "raise max_tokens" in str(error) and "\n" not in str(error), (seed, schema)
            refused += 1
            continue
        jsonschema.validate(json.loads(text), schema)
        assert statistics.generated_tokens <= limit and statistics.finish_reason in ("stop", "length")
        valid, closed = valid + 1, closed + guide.closing
    count = len(seeds)
    assert valid >= 0.65 * count and closed >= 0.2 * count and refused >= 0.05 * count, (valid, closed, refused)


def test_no_room_is_refused_at_the_call_with_the_number_needed():
    guide = Guide.json_schema({"type": "object", "properties": {"name": {"const": "x" * 30}}, "required": ["name"]}, TOKENIZER)
    session = opened()
    with pytest.raises(InputError, match=r"4 tokens are left.* has ([0-9]+)") as error:
        session.complete("ab", guide=guide, max_tokens=4)
    needed = int(re.search("has ([0-9]+)", str(error.value))[1])
    assert session.engine.forwards == 0
    assert json.loads("".join(session.complete("ab", guide=guide, max_tokens=needed))) == {"name": "x" * 30}
    with pytest.raises(InputError, match="tokens are left"):
        opened(RandomEngine(context=20)).complete("ab" * 8, guide=guide)


@pytest.mark.parametrize("limit", [7, 9, 12, 40])
def test_an_endless_string_is_closed_in_time_and_an_event_says_so(limit):
    guide = Guide.json_schema({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, TOKENIZER)
    events = []
    session = opened(RandomEngine(wishes={b'"': -50, b'{"': -50, b'"}': -50, b'",': -50, b'"]': -50}), on_event=events.append)
    text = "".join(session.complete("ab", guide=guide, max_tokens=limit))
    assert set(json.loads(text)) == {"a"}
    assert session.statistics.generated_tokens <= limit and session.statistics.finish_reason == "length"
    assert len(events) == 1 and "closed after" in events[0]


def test_nesting_is_closed_in_time():
    tree = {
        "type": "object",
        "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["kids"],
        "additionalProperties": False,
    }
    for limit in (10, 50, 200):
        text, statistics = answer(
            Guide.json_schema(tree, TOKENIZER), limit, RandomEngine(wishes={b"[": 20, b"{": 20, b'{"': 20, b"]": -20})
        )
        jsonschema.validate(json.loads(text), tree)
        assert statistics.generated_tokens <= limit and text.count("[") >= limit // 15


def test_the_context_is_a_limit_too():
    guide = Guide.json_schema({"type": "array", "items": {"type": "integer"}}, TOKENIZER)
    engine = RandomEngine(context=64, wishes={b"]": -50, b"],": -50})
    text, statistics = answer(guide, None, engine)
    assert all(isinstance(item, int) for item in json.loads(text))
    assert 40 < statistics.generated_tokens <= 64 - statistics.prompt_tokens


def test_a_slid_window_gives_the_answer_the_room_of_the_dropped_turns():
    guide = Guide.json_schema({"type": "array", "items": {"type": "integer"}}, TOKENIZER)
    session = opened(RandomEngine(context=96, wishes={b"]": -50, b"],": -50}))
    turns = [{"role": "user", "content": "abcdef" * 3}, {"role": "assistant", "content": "xyz" * 5}] * 2
    messages = [*turns, {"role": "user", "content": "xy"}]
    text = "".join(session.generate(messages, guide=guide, overflow="slide"))
    assert json.loads(text) and session.statistics.dropped_messages > 0
    assert session.statistics.prompt_tokens + session.statistics.generated_tokens > 96


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, seed=3)])
def test_lookup_changes_nothing_but_the_number_of_forwards(sampling):
    saved = 0
    for seed in range(25):
        rng = random.Random(1000 + seed)
        guide = Guide.json_schema(random_schema(rng), TOKENIZER)
        limit = rng.choice([40, 120])
        results = []
        for lookup in (False, True):
            try:
                results.append(answer(guide, limit, RandomEngine(seed), sampling=sampling, lookup=lookup))
            except InputError as error:
                results.append((str(error), None))
        (plain, first), (quick, second) = results
        assert plain == quick
        if first:
            assert first.finish_reason == second.finish_reason and first.generated_tokens == second.generated_tokens
            assert first.drafted == 0 and second.forwards <= first.forwards
            saved += first.forwards - second.forwards
    assert saved > 50  # names and the like are forced


def test_a_draft_never_moves_the_guide():
    guide = Guide.regex("(ab)+c", TOKENIZER)
    ids = TOKENIZER.encode("a") + TOKENIZER.encode("b")
    assert guide.accepts(ids) == 2 and guide.accepts([*ids, EOS]) == 2 and guide.accepts([]) == 0
    assert guide.accepts(TOKENIZER.encode("c") + ids) == 0
    guide.forced()
    assert guide.accepts(ids) == 2 and not guide.complete


@pytest.mark.parametrize("pattern", ["(yes|no)", "[0-9]{3}-[0-9]{4}", "a+b?", " x{2,9}", "é[^a]*!", "a/b", """ "q" ' """])
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("strips_space", [False, True])
def test_a_regex_matches_what_is_shown(pattern, strips_space, chat):
    tokenizer = make_tokenizer(strips_space)
    guide = Guide.regex(pattern, tokenizer)
    for seed in range(8):
        engine = RandomEngine(seed, wishes={b" ": 3})
        text, statistics = answer(guide, 30, engine, tokenizer, chat, sampling=Sampling(1.0, seed=seed))
        assert re.fullmatch(pattern, text, re.DOTALL), text
        whole = "length" if guide.closing else "stop"  # a forced end is no end of the model's
        assert statistics.finish_reason == (whole if guide.finished else statistics.finish_reason)


@pytest.mark.parametrize("chat", [False, True])
def test_json_is_shown_whole_where_a_first_space_is_dropped(chat):
    tokenizer = make_tokenizer(strips_space=True)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    for seed in range(5):
        text, _ = answer(Guide.json_schema(schema, tokenizer), 40, RandomEngine(seed), tokenizer, chat)
        jsonschema.validate(json.loads(text), schema)
        assert text.startswith("{")


def test_a_continuation_keeps_its_first_space_and_an_answer_drops_it():
    """sentencepiece drops the space of a text's start; what continues a prompt is not a start."""
    tokenizer = make_tokenizer(strips_space=True)
    wishes = {b" ": 100.0}
    text = "".join(opened(RandomEngine(0, wishes=wishes), tokenizer).complete("The capital is", max_tokens=3))
    ids = [PIECES.index(b" ")] * 3
    prompt = tokenizer.encode("The capital is")
    assert text == tokenizer.decode([*prompt, *ids])[len(tokenizer.decode(prompt)) :] == "   "
    session = opened(RandomEngine(0, wishes=wishes), tokenizer)
    assert "".join(session.generate([{"role": "user", "content": "The capital is"}], max_tokens=3)) == "  "


def test_a_lark_grammar():
    guide = Guide.grammar('start: sum\nsum: NUMBER | "(" sum "+" sum ")"\nNUMBER: /[1-9][0-9]{0,2}/', TOKENIZER)
    for seed in range(10):
        text, _ = answer(guide, 60, RandomEngine(seed, wishes={b"(": 4}))
        assert re.fullmatch(r"[0-9()+]+", text) and text.count("(") == text.count(")") == text.count("+")
        assert isinstance(eval(text), int)


def test_eos_only_where_the_answer_is_complete_and_padding_never():
    guide = Guide.regex("ab?", TOKENIZER)
    logits = np.zeros(VOCAB, dtype=np.float32)
    allowed = lambda: {i for i in range(VOCAB) if guide.mask(logits, {EOS})[i] == 0}  # noqa: E731
    assert allowed() == {PIECES.index(b"a"), PIECES.index(b"ab")} and not guide.complete
    assert guide.mask(logits).dtype == np.float32 and not logits.any()
    assert guide.push(PIECES.index(b"a")) == PIECES.index(b"a")
    assert allowed() == {PIECES.index(b"b"), EOS} and guide.complete and not guide.finished
    guide.push(PIECES.index(b"b"))
    assert allowed() == {EOS} and guide.finished


def test_the_grammars_end_stops_without_another_forward():
    engine = RandomEngine()
    text, statistics = answer(Guide.regex("abc", TOKENIZER), 50, engine)
    assert text == "abc" and statistics.finish_reason == "stop"
    assert statistics.forwards == statistics.generated_tokens - 1
    text, statistics = answer(Guide.regex("a*", TOKENIZER), 50, RandomEngine(wishes={b"<eos>": 99}))
    assert text == "" and statistics.finish_reason == "stop"


def test_a_limit_inside_of_an_answer_that_may_end_there_is_a_length():
    text, statistics = answer(Guide.regex("a*", TOKENIZER), 5, RandomEngine(wishes={b"<eos>": -99}))
    assert text == "aaaaa" and statistics.finish_reason == "length"


@pytest.mark.parametrize("lookup", [False, True])
def test_an_answer_that_is_complete_ends_before_what_would_not_fit(lookup):
    guide = Guide.regex("(xyz)*", TOKENIZER)
    for limit in range(1, 8):
        text, statistics = answer(guide, limit, RandomEngine(wishes={b"<eos>": -99}), lookup=lookup)
        assert text == "xyz" * (limit // 3)
        assert statistics.finish_reason == "length"
        assert statistics.generated_tokens == limit // 3 * 3


def test_a_stop_string_still_cuts():
    guide = Guide.regex("[ab]{40}", TOKENIZER)
    text, statistics = answer(guide, 60, stop=["ba"])
    assert "ba" not in text and len(text) < 40 and statistics.finish_reason == "stop_string"


def test_one_guide_serves_answer_after_answer():
    guide = Guide.json_schema({"enum": ["red", "green"]}, TOKENIZER)
    session = opened()
    next(session.complete("ab", guide=guide))  # left in the middle
    for _ in range(3):
        assert json.loads("".join(session.complete("ab", guide=guide, max_tokens=20))) in ("red", "green")
    assert "".join(session.complete("ab", max_tokens=5)) is not None and session.statistics.generated_tokens == 5


def test_what_can_never_be_completed_is_a_named_error():
    session = opened()
    guide = Guide.grammar('start: "a" start', TOKENIZER)
    with pytest.raises(GuideError, match=r"did not fit 12 tokens.*max-tokens|can't be continued"):
        list(session.complete("ab", guide=guide, max_tokens=12))
    assert session.statistics.finish_reason == "error"


def test_an_ending_that_is_not_found_is_a_named_error_too():
    """The search tries one of the characters that nothing tells apart; here only one of all ends the answer."""
    guide = Guide.regex("é[^a]*🙂", TOKENIZER)
    for seed in range(4):
        try:
            text, _ = answer(guide, 30, RandomEngine(seed))
        except GuideError as error:
            assert "did not fit 30 tokens" in str(error)
        else:
            assert re.fullmatch("é[^a]*🙂", text, re.DOTALL)


@pytest.mark.parametrize(
    ("make", "given", "says"),
    [
        (Guide.json_schema, "{", "not JSON"),
        (Guide.json_schema, "[1]", "is a list"),
        (Guide.json_schema, {"type": "strin"}, "strin"),
        (Guide.json_schema, {"type": "array", "uniqueItems": True}, "uniqueItems"),
        (Guide.json_schema, {"type": "integer", "minimum": 5, "maximum": 2}, "minimum"),
        (Guide.json_schema, {"$ref": "#/nowhere"}, "nowhere"),
        (Guide.json_schema, {"$ref": "http://example.com/schema"}, "example.com"),
        (Guide.json_schema, {"enum": [object()]}, "JSON"),
        (Guide.regex, "a(b", "unclosed"),
        (Guide.regex, "(?=a)b", "look-around"),
        (Guide.regex, "", "empty"),
        (Guide.regex, 5, "text"),
        (Guide.regex, "\ud800", "Unicode"),
        (Guide.grammar, "start: nothing", "nothing"),
        (Guide.grammar, "x: 'a", "grammar"),
        (Guide.grammar, " \n", "empty"),
    ],
)
def test_wrong_guides_are_one_line(make, given, says):
    with pytest.raises(InputError, match=says) as error:
        make(given, TOKENIZER)
    assert "\n" not in str(error.value) and not isinstance(error.value, GuideError)


def test_unusable_logits_are_still_noticed():
    guide = Guide.regex("[a-c]+", TOKENIZER)
    engine = RandomEngine()
    engine.forward = lambda tokens, position, long=False: np.full((len(tokens), VOCAB), np.nan, dtype=np.float32)
    with pytest.raises(RuntimeError, match="unusable"):
        answer(guide, 5, engine)


def test_a_token_costs_little():
    guide = Guide.json_schema({"type": "array", "items": {"type": "string"}}, TOKENIZER)
    guide.start(400)
    logits, spent = np.random.default_rng(0).standard_normal((200, VOCAB)).astype(np.float32), []
    for row in logits:
        began = time.perf_counter()
        guide.push(int(guide.mask(row).argmax()))
        spent.append(time.perf_counter() - began)
        if guide.finished:
            guide.start(400)
    assert np.median(spent) < 2e-3  # measured: 0.1 ms


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--json-schema", "{tmp}/none.json"], "can't read the JSON schema"),
        (["--json-schema", "{tmp}/bad.json"], "not JSON"),
        (["--json-schema", "{tmp}/odd.json"], "strin"),
        (["--grammar", "{tmp}/latin.lark"], "UTF-8"),
        (["--grammar", "{tmp}/bad.lark"], "grammar"),
        (["--regex", "a("], "regex"),
        (["--regex", "a", "--stop", "b"], "--stop"),
    ],
)
def test_the_command_line_refuses_before_it_opens_the_bundle(capsys, tmp_path, flags, says):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "odd.json").write_text('{"type": "strin"}')
    (tmp_path / "latin.lark").write_bytes(b"start: \xe9")
    (tmp_path / "bad.lark").write_text("start: nothing")
    flags = [flag.format(tmp=tmp_path) if "{tmp}" in flag else flag for flag in flags]
    assert main(["run", str(tmp_path / "no bundle"), "hello", *flags]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and len(captured.err.splitlines()) == 1 and captured.out == ""


def test_the_flags_exclude_each_other(capsys):
    assert main(["run", "bundle", "hello", "--regex", "a", "--grammar", "b"]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_the_command_line_answers_with_valid_json(capsys, tmp_path, tiny_bundle):
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}, "required": ["a", "n"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    flags = ["--json-schema", str(tmp_path / "schema.json"), "--max-tokens"]
    assert main(["run", str(tiny_bundle), "hello", *flags, "30"]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), schema)  # the answer alone: a program can read it
    assert main(["run", str(tiny_bundle), "hello", *flags, "3"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "3 tokens are left" in captured.err and len(captured.err.splitlines()) == 1
