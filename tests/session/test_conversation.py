"""Chat history: order, undo, save and restore; the window of it that fits a context."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3mobile.errors import InputError
from phi3mobile.session.conversation import Conversation, Window


def talk(*contents, system=None):
    conversation = Conversation()
    if system is not None:
        conversation.say("system", system)
    for index, content in enumerate(contents):
        conversation.say(("user", "assistant")[index % 2], content)
    return conversation


def contents(messages):
    return [message["content"] for message in messages]


def test_undo_takes_back_the_last_question_and_its_answer():
    conversation = talk("q1", "a1", "q2", "a2", system="s")
    assert contents(conversation.undo()) == ["q2", "a2"]
    assert contents(conversation.messages) == ["s", "q1", "a1"]
    conversation.say("user", "q3")
    assert contents(conversation.undo()) == ["q3"]
    assert contents(conversation.undo()) == ["q1", "a1"]
    assert conversation.undo() == [] and contents(conversation.messages) == ["s"]


def test_reset_keeps_the_system_message_if_wanted():
    for keep, left in ((True, ["s"]), (False, [])):
        conversation = talk("q", "a", system="s")
        conversation.reset(keep_system=keep)
        assert contents(conversation.messages) == left
    conversation = talk("q", "a")
    conversation.reset()
    assert conversation.messages == []


@pytest.mark.parametrize(
    ("role", "content", "named"),
    [("robot", "x", "robot"), ("user", 3, "int"), ("user", None, "NoneType"), ("system", "late", "first")],
)
def test_bad_messages_are_refused(role, content, named):
    conversation = talk("q")
    with pytest.raises(InputError, match=named):
        conversation.say(role, content)
    assert contents(conversation.messages) == ["q"]


@given(st.lists(st.text()), st.none() | st.text())
def test_json_restores_the_same_conversation(texts, system):
    conversation = talk(*texts, system=system)
    assert Conversation.from_json(conversation.to_json()) == conversation


def test_what_functions_gave_is_kept_and_taken_back_with_its_turn(tmp_path):
    conversation = talk("q1", "a1", "Rain?", '{"name": "weather", "arguments": {}}', system="s")
    conversation.say("tool", "rain 🌧", "weather")
    conversation.say("assistant", "Yes.")
    conversation.save(tmp_path / "chat.json")
    loaded = Conversation.load(tmp_path / "chat.json")
    assert loaded == conversation and loaded.messages[5] == {"role": "tool", "name": "weather", "content": "rain 🌧"}
    assert [message["role"] for message in loaded.undo()] == ["user", "assistant", "tool", "assistant"]
    assert contents(loaded.messages) == ["s", "q1", "a1"]


GOOD = {"format": "phi3mobile-conversation", "version": 1, "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        "[" * 100_000,
        {},
        GOOD | {"format": "other"},
        GOOD | {"version": 2},
        GOOD | {"version": True},
        GOOD | {"version": "1"},
        GOOD | {"extra": 1},
        {k: GOOD[k] for k in ("format", "version")},
        GOOD | {"messages": {}},
        GOOD | {"messages": ["hi"]},
        GOOD | {"messages": [{"role": "user"}]},
        GOOD | {"messages": [{"role": "user", "content": "a", "name": "b"}]},
        GOOD | {"messages": [{"role": "tool", "content": "a"}]},
        GOOD | {"messages": [{"role": "tool", "content": "a", "name": None}]},
        GOOD | {"messages": [{"role": "user", "content": "a", "name": None}]},
        GOOD | {"messages": [{"role": "tool", "content": "a", "name": "\ud800"}]},
        GOOD | {"messages": [{"role": "user", "content": ["a"]}]},
        GOOD | {"messages": [{"role": ["user"], "content": "a"}]},
        GOOD | {"messages": [{"role": "user", "content": "\ud800"}]},
        GOOD | {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
    ],
)
def test_json_that_is_no_conversation_is_refused(document):
    with pytest.raises(InputError) as error:
        Conversation.from_json(document if isinstance(document, str) else json.dumps(document))
    assert "\n" not in str(error.value)


scalars = st.none() | st.booleans() | st.integers() | st.text()


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_other_messages_are_refused_or_valid(value):
    try:
        conversation = Conversation.from_json(json.dumps(GOOD | {"messages": value}))
    except InputError:
        return
    assert conversation.messages == value


def test_save_replaces_the_file_whole_and_load_reads_it(tmp_path):
    path = tmp_path / "chat.json"
    talk("first").save(path)
    talk("q", "ä").save(path)
    assert Conversation.load(path) == talk("q", "ä")
    assert [file.name for file in tmp_path.iterdir()] == ["chat.json"]


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        Conversation.load(tmp_path / "nowhere")
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        Conversation.load(tmp_path / "latin")
    with pytest.raises(InputError, match="missing"):
        talk("q").save(tmp_path / "missing" / "chat.json")


def window(messages, max_context, cached=()):
    """A window whose tokens are the messages' characters."""

    def common(tokens):
        pairs = enumerate(zip(tokens, cached, strict=False))
        return next((i for i, (a, b) in pairs if a != b), min(len(tokens), len(cached)))

    events = []
    encode = lambda kept: [ord(c) for m in kept for c in m["content"]]  # noqa: E731
    return Window(messages, encode, max_context, common, events.append), events


def text(tokens):
    return "".join(map(chr, tokens))


def test_the_window_drops_whole_turns_and_keeps_the_system_message():
    messages = talk("qqq1", "aaa1", "qqq2", "aaa2", "qqq3", system="sss").messages
    view, events = window(messages, 24)
    assert text(view.tokens([])) == "sssqqq1aaa1qqq2aaa2qqq3" and view.dropped == 0 and not events
    assert text(view.tokens([ord("x")] * 2)) == "sssqqq2aaa2qqq3xx" and view.dropped == 2 and len(events) == 1
    assert text(view.tokens([ord("x")] * 9)) == "sssqqq3" + 9 * "x" and view.dropped == 4
    assert text(view.tokens([ord("x")] * 16)) == "sssqqq3" + 16 * "x"
    assert view.tokens([ord("x")] * 17) is None
    assert text(view.smallest()) == "sssqqq3"


def test_a_full_window_is_kept_only_if_it_is_in_the_cache():
    messages = talk("qqq1", "aaa1", "qqq2", "aaa2", "qqq3", system="sss").messages
    assert text(window(messages, 16)[0].tokens([])) == "sssqqq3"  # "sssqqq2aaa2qqq3" would leave one token
    assert text(window(messages, 16, [ord(c) for c in "sssqqq2aaa2"])[0].tokens([])) == "sssqqq2aaa2qqq3"


def test_an_answer_without_a_question_is_a_turn_of_its_own():
    messages = [{"role": "assistant", "content": "hello"}, *talk("q1").messages]
    assert text(window(messages, 5)[0].tokens([])) == "q1"
