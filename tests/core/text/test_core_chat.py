"""Conversations to ids by a template's segments, against Python's."""

import json

import pytest
from border import Refused
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import texts

from phi3mobile.errors import InputError
from phi3mobile.text.chat import KNOWN_TEMPLATES, ChatFormat
from phi3mobile.text.messages import ROLES, check_messages
from phi3mobile.text.segments import joined

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
TEMPLATES = {**KNOWN_TEMPLATES, "trimming": CHATML + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"}
contents = texts | st.sampled_from(["", " x ", "\u3000wide\x85", "\x1ca\x1f", "\u200bz\u200b", "<|end|>"])
messages = st.lists(st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": contents}), max_size=4)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from([0.5, -1.25, 2.0, 1e20])
    | st.sampled_from(["user", "bot", "it's", 'a"\n\x7f\u2028é', "'\""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(params=TEMPLATES)
def segments(request) -> dict:
    found = ChatFormat(TEMPLATES[request.param], "<s>", "</s>").segments()
    assert found is not None
    return found


def expected_ids(tokenizer, segments, messages):
    try:
        check_messages(messages)
        return tokenizer.encode_spans(joined(segments, messages))
    except InputError as error:
        return str(error)


def ids_of(tokenizer, segments, messages):
    try:
        return tokenizer.encode_chat(segments, messages)
    except Refused as error:
        return str(error)


@pytest.mark.parametrize("name", ["byte level", "llama"])
def test_ids_are_pythons(pair_of, segments, name):
    ours, theirs = pair_of(name)

    @settings(max_examples=60, deadline=None)
    @given(messages, contents)
    def same(before, content):
        conversation = [*before, {"role": "user", "content": content}]
        assert ids_of(ours, segments, conversation) == expected_ids(theirs, segments, conversation)

    same()


def test_what_is_no_conversation_is_refused_as_in_python(pair_of):
    ours, theirs = pair_of("byte level")
    segments = ChatFormat(KNOWN_TEMPLATES["phi-3"]).segments()

    @settings(max_examples=300, deadline=None)
    @given(anything | st.lists(anything, max_size=3) | messages)
    def same(messages):
        assert ids_of(ours, segments, messages) == expected_ids(theirs, segments, messages)

    same()


def test_segments_that_are_none_or_damaged(pair_of):
    ours, _ = pair_of("byte level")
    asked = [{"role": "user", "content": "x"}]
    whole = ChatFormat(KNOWN_TEMPLATES["phi-3"]).segments()
    for segments, message in (
        (None, "this chat template has no segments, which the core needs"),
        ({**whole, "user": ["a"]}, "the chat segments of 'user' are not two texts: export the bundle again"),
        ({**whole, "user": None}, "this chat template has no 'user' role; leave such messages out"),
        ({**whole, "bos": 3}, 'the chat segments lack a text "bos": export the bundle again'),
        ({}, 'the chat segments lack a text "bos"'),
    ):
        with pytest.raises(Refused, match=message):
            ours.encode_chat(segments, asked)
    for text in (b"", b"[", b'[{"role": "user"}] x', b'"\xff"'):
        said = ours._error
        given_segments = json.dumps(whole).encode()
        assert ours._library.p3m_encode_chat(ours._self, given_segments, text, None, 0, said, 2000) == -1
        assert said.value.startswith(b"messages is not ")
