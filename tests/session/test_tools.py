"""Tool calls: what is told, what an answer may be, what is read from it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wrong_tools import WRONG_TOOLS

from phi3mobile.bundle import open_bundle
from phi3mobile.errors import InputError
from phi3mobile.info import EngineInfo
from phi3mobile.session.guidance import Guide, json_grammar
from phi3mobile.session.session import Session
from phi3mobile.session.tools import CallGate, ToolCall, Tools, spans

TOWN = {"type": "object", "properties": {"town": {"type": "string"}, "days": {"type": "integer"}}, "required": ["town"]}
WEATHER = {"name": "weather", "description": "The weather of a town.", "parameters": TOWN}
TOOLS = [WEATHER, {"name": "now"}]
ASKED = [{"role": "user", "content": "Is it raining in Lyon?"}]
CALL = '{"name": "weather", "arguments": {"town": "Lyon"}}'


class Script:
    """An engine that wants to say a text, whatever it is asked."""

    def __init__(self, tokenizer, vocab: int, text: str, eos: int) -> None:
        self.info = EngineInfo(vocab, 1024, 128, None)
        self._said = [*tokenizer.encode(text, special=False), eos]
        self.prompt: list[int] = []
        self.start = 0

    def forward(self, tokens, position, long=False):
        if len(tokens) > 1 or not self.start:
            self.prompt[position:] = tokens.tolist()
            self.start = position + len(tokens)
        logits = np.zeros((len(tokens), self.info.vocab), np.float32)
        at = position + len(tokens) - self.start
        logits[-1, self._said[min(at, len(self._said) - 1)]] = 9
        return logits

    def reset(self) -> None:
        self.start = 0

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def bundle(bundle_of):
    return open_bundle(bundle_of("tiny-gqa", "host"))


@pytest.fixture
def saying(bundle):
    """A session whose model wants to say a text."""

    def session(text: str) -> Session:
        engine = Script(bundle.tokenizer, bundle.info.vocab, text, min(bundle.eos_ids))
        return Session(bundle, engine)

    return session


@pytest.mark.parametrize("text", [CALL, f"[{CALL}]", f" {CALL}", '{"name":"now","arguments":{}}'])
def test_a_call_is_no_text(saying, text):
    session = saying(text)
    assert list(session.generate(ASKED, tools=TOOLS)) == []
    asked = json.loads(text)
    asked = asked[0] if isinstance(asked, list) else asked
    assert session.calls == (ToolCall(asked["name"], asked["arguments"]),)
    assert session.statistics.finish_reason == "tool_calls"


@pytest.mark.parametrize("text", ["It rains.", "functional, too", "f", "no { braces at first }"])
def test_words_are_shown(saying, text):
    session = saying(text)
    assert "".join(session.generate(ASKED, tools=TOOLS)) == text
    assert session.calls == () and session.statistics.finish_reason == "stop"


@pytest.mark.parametrize(
    "wanted",
    [
        '{"name": "rain", "arguments": {}}',
        '{"name": "weather", "arguments": {"town": 3}}',
        '{"name": "weather"}',
        "[1, 2]",
        "{x",
    ],
)
def test_what_is_no_valid_call_can_not_be_said(saying, wanted):
    session = saying(wanted)
    text = "".join(session.generate(ASKED, tools=TOOLS, max_tokens=60))
    assert text == "" and session.calls, "the guide led into a call"
    (call,) = session.calls
    assert call.name in ("weather", "now") and (call.name == "now" or isinstance(call.arguments["town"], str))


def test_the_tools_and_results_are_told(saying, bundle):
    session = saying("It rains.")
    messages = [
        {"role": "system", "content": "Be brief."},
        *ASKED,
        {"role": "assistant", "content": CALL},
        {"role": "tool", "name": "weather", "content": "rain"},
        {"role": "tool", "name": "now", "content": "noon"},
    ]
    list(session.generate(messages, tools=TOOLS))
    prompt = bundle.tokenizer.decode(session.engine.prompt)
    assert "Be brief.\n\nYou can call functions." in prompt and '"description": "The weather of a town."' in prompt
    assert "Result of weather: rain\nResult of now: noon" in prompt


def test_a_template_without_system_messages_tells_the_first_user():
    told, mark = Tools(TOOLS).told(ASKED, system=False, control=False)
    assert [m["role"] for m in told] == ["user"] and mark == ""
    assert told[0]["content"].startswith("You can call") and told[0]["content"].endswith("\n\nIs it raining in Lyon?")


def test_phi_4_minis_control_tokens_surround_the_list():
    asked = [{"role": "system", "content": "Brief. \uf8ff"}, *ASKED]
    told, mark = Tools([WEATHER]).told(asked, system=True, control=True)
    parts = [("<|system|>", True), (told[0]["content"], False), ("<|end|><|user|>", True), (told[1]["content"], False)]
    assert mark != "\uf8ff"
    assert spans(parts, mark) == [
        ("<|system|>", True),
        ("Brief. \uf8ff", False),
        ("<|tool|>", True),
        (json.dumps([WEATHER]), False),
        ("<|/tool|>", True),
        ("", False),
        ("<|end|><|user|>", True),
        ("Is it raining in Lyon?", False),
    ]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (CALL, 1),
        (f"functools[{CALL}, {CALL}]", 2),
        (f"\n functools {CALL} \n", 1),
        (f"[{CALL}] and more", 0),
        ('{"name": "weather", "parameters": {}}', 1),
        ('{"name": "weather", "arguments": []}', 0),
        ('{"name": "other", "arguments": {}}', 0),
        ('{"name": "weather", "arguments": {"days": NaN}}', 0),
        ("[]", 0),
        ("7", 0),
        ("", 0),
    ],
)
def test_reading(text, calls):
    assert len(Tools(TOOLS).read(text)) == calls


@given(st.text("functools {[x]}\n", max_size=30), st.integers(1, 5))
def test_the_gate_loses_nothing(text, step):
    gate, shown = CallGate(), ""
    for at in range(0, len(text), step):
        shown += gate.push(text[at : at + step])
    assert shown + gate.finish() == text
    start = text.lstrip(" \n")
    assert gate.opened == (
        bool(start) and start[0] not in "[{" and not start.startswith("functools") and not "functools".startswith(start)
    )


@pytest.mark.parametrize(("tools", "says"), [*WRONG_TOOLS, ([{"name": "a", "parameters": {"type": "what"}}], "what")])
def test_wrong_tools_are_refused(saying, tools, says):
    with pytest.raises(InputError) as refused:
        saying("x").generate(ASKED, tools=tools)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_guide_beside_tools_is_refused(saying, bundle):
    guide = Guide(json_grammar({"type": "object"}), bundle.tokenizer)
    with pytest.raises(InputError, match="tools and a guide both say"):
        saying("x").generate(ASKED, tools=TOOLS, guide=guide)


@pytest.mark.parametrize("tools", [TOOLS, None])
@pytest.mark.parametrize("given", [{"content": "rain"}, {"name": 3, "content": "rain"}])
def test_a_result_without_a_name_is_refused(saying, tools, given):
    with pytest.raises(InputError, match="message 1 is a tool's result without a name"):
        saying("x").generate([*ASKED, {"role": "tool", **given}], tools=tools)


def test_a_conversation_that_had_tools_goes_on_without_them(saying, bundle):
    """Results are the user's messages; the answer is text, even one that looks like a call."""
    session = saying(CALL)
    said = [*ASKED, {"role": "assistant", "content": CALL}, {"role": "tool", "name": "weather", "content": "rain"}]
    assert "".join(session.generate(said, max_tokens=60, repetition=True)) == CALL and not session.calls
    told = [*said[:2], {"role": "user", "content": "Result of weather: rain"}]
    assert session.engine.prompt == bundle.chat.encode(bundle.tokenizer, told)


def test_openais_form_is_the_same():
    assert Tools([{"type": "function", "function": WEATHER}])._tools == Tools([WEATHER])._tools
