"""Tool calls in the core: the prompt is told as Python's session tells it, and the same answers are calls."""

from __future__ import annotations

import json

import numpy as np
import pytest
from library import DONE, TEXT, TOOL_CALL, CoreError, asked, core, core_session, has_guidance
from scenarios import VOCAB, ChainEngine, write_bundle
from wrong_tools import WRONG_TOOLS

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.native import native_library
from phi3mobile.session.session import Session

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native")
TOWN = {
    "type": "object",
    "properties": {"town": {"type": "string", "maxLength": 20}, "share": {"minimum": 0.5, "maximum": 100.0}},
}
WEATHER = {"name": "weather", "description": 'é "the" <|end|>\n', "parameters": TOWN}
TOOLS = [WEATHER, {"type": "function", "function": {"name": "now"}}]
ASKED = [{"role": "user", "content": "rain?"}]
RESULTS = [
    {"role": "system", "content": "on"},
    *ASKED,
    {"role": "assistant", "content": "{}"},
    {"role": "tool", "name": "now", "content": "12"},
    {"role": "tool", "name": "weather", "content": "rain"},
    {"role": "user", "content": "and?"},
]


class Script(ChainEngine):
    """Says a text from `start` on, whatever it is asked; `prompt`: what it read."""

    said: list[int]

    def forward(self, tokens, position, long=False):
        logits = super().forward(tokens, position, long) * 0
        self.prompt = [*getattr(self, "prompt", [])[:position], *tokens.tolist()]
        logits[-1, self.said[max(0, min(position + len(tokens) - self.start, len(self.said) - 1))]] = 9
        return np.asarray(logits, np.float32)


@pytest.fixture
def saying(tmp_path):
    """A text -> a bundle and an engine that says it after a prompt of these messages."""

    def make(text: str, messages: list[dict], tools: list[dict] | None) -> tuple:
        engine = Script(VOCAB, max_context=1000, max_chunk=999)
        folder = write_bundle(tmp_path / str(len(list(tmp_path.iterdir()))), engine)
        bundle = open_bundle(folder)
        engine.said = [*bundle.tokenizer.encode(text, special=False), VOCAB - 1]
        session = Session(bundle, ChainEngine(VOCAB, max_context=1000, max_chunk=999))
        next(iter(session.generate(messages, tools=tools, max_tokens=1, temperature=0.0)), None)
        (position, prompt, _) = session.engine.calls[0]
        assert position == 0
        engine.start = len(prompt)
        return folder, engine, list(prompt)

    return make


@pytest.mark.parametrize("messages", [ASKED, RESULTS])
def test_the_prompt_is_pythons(saying, messages):
    folder, engine, prompt = saying("yes", messages, TOOLS)
    with core_session(folder, engine) as session:
        session.answer({"messages": messages, "tools": TOOLS})
    assert engine.prompt[: len(prompt)] == prompt


@pytest.mark.parametrize("overflow", ["stop", "slide"])
def test_a_conversation_that_had_tools_goes_on_without_them(saying, overflow):
    folder, engine, prompt = saying("yes", RESULTS, None)
    with core_session(folder, engine) as session:
        assert session.answer({"messages": RESULTS, "overflow": overflow}).text == "yes"
        assert engine.prompt[: len(prompt)] == prompt
        for wrong in ({"content": "rain"}, {"name": 3, "content": "rain"}):
            with pytest.raises(CoreError, match="message 1 is a tool's result without a name or a text; give"):
                session.answer({"messages": [*ASKED, {"role": "tool", **wrong}]})


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "weather", "arguments": {"town": "é 🙂"}}', [("weather", {"town": "é 🙂"})]),
        (
            'functools[{"name": "now", "arguments": {}}, {"name": "now", "parameters": {"a": 1.5}}]',
            [("now", {}), ("now", {"a": 1.5})],
        ),
        (' \n{"name": "now", "arguments": {}}', [("now", {})]),
    ],
)
def test_calls_are_events(saying, text, calls):
    folder, engine, _ = saying(text, ASKED, TOOLS)
    with core_session(folder, engine) as session:
        session.start({"messages": ASKED, "tools": TOOLS, "repetition": True})
        events = []
        while not events or events[-1][0] != DONE:
            events.append(session.next())
        found = [json.loads(event) for kind, event in events if kind == TOOL_CALL]
        assert [(call["name"], call["arguments"]) for call in found] == calls
        assert json.loads(events[-1][1])["finish_reason"] == "tool_calls" and TEXT not in dict(events)
        assert session.next() == events[-1]


@pytest.fixture
def unguided():
    """As in a build that has no llguidance."""
    with pytest.raises(CoreError, match="no constrained output"):
        asked(core().p3m_guidance, b"")
    yield
    core().p3m_guidance(None, None, 0)


NO_CALLS = [
    "It rains.",
    "fun",
    "functional",
    '{"name": "other", "arguments": {}}',
    '{"name": "now", "arguments": []}',
    "[1",
    "{}",
    " ",
    "[]",
]


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_is_text(saying, text, unguided):
    folder, engine, _ = saying(text, ASKED, TOOLS)
    with core_session(folder, engine) as session:
        answer = session.answer({"messages": ASKED, "tools": TOOLS})
        assert (answer.text, answer.statistics["finish_reason"]) == (text, "stop")


@pytest.mark.skipif(not has_guidance(), reason="this build has no constrained output")
@pytest.mark.parametrize("text", [*NO_CALLS, '{"name": "weather", "arguments": {"town": 3, "share": 200}}'])
def test_a_guided_call_is_pythons(saying, text):
    """What begins as a call and is none is not said."""
    folder, engine, _ = saying(text, ASKED, TOOLS)
    request = {"tools": TOOLS, "max_tokens": 150}
    with core_session(folder, engine) as session:
        session.start({"messages": ASKED, **request})
        events = []
        while not events or events[-1][0] != DONE:
            events.append(session.next())
    engine.reset()
    python = Session(open_bundle(folder), engine)
    assert "".join(python.generate(ASKED, **request)) == "".join(text for kind, text in events if kind == TEXT)
    calls = [{"name": call.name, "arguments": call.arguments} for call in python.calls]
    assert [json.loads(said) for kind, said in events if kind == TOOL_CALL] == calls
    statistics = json.loads(events[-1][1])
    assert statistics["finish_reason"] == python.statistics.finish_reason
    assert statistics["generated_tokens"] == python.statistics.generated_tokens
    assert calls or not text.strip(" ").startswith(("{", "[")) or statistics["finish_reason"] == "repetition"


@pytest.mark.skipif(not has_guidance(), reason="this build has no constrained output")
def test_a_tools_schema_that_can_not_be_followed_is_refused(saying):
    folder, engine, _ = saying("x", ASKED, TOOLS)
    tools = [{"name": "now", "parameters": {"type": "object", "not": {}}}]
    with core_session(folder, engine) as session, pytest.raises(CoreError, match="not is not supported"):
        session.answer({"messages": ASKED, "tools": tools})


@pytest.mark.parametrize(("tools", "says"), WRONG_TOOLS)
def test_wrong_tools_are_refused(saying, tools, says):
    folder, engine, _ = saying("x", ASKED, TOOLS)
    with core_session(folder, engine) as session, pytest.raises(CoreError) as refused:
        session.answer({"messages": ASKED, "tools": tools})
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_tools_belong_to_messages(saying):
    folder, engine, _ = saying("x", ASKED, TOOLS)
    with core_session(folder, engine) as session, pytest.raises(CoreError, match="tools were given with a prompt"):
        session.answer({"prompt": "a", "tools": TOOLS})
