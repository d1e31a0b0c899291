"""The core's tokenizer against Python's, on every vocabulary that is at hand."""

import json
import threading

import pytest
from border import CoreTokenizer, Refused
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import CONTROLS, awkward, texts

from phi3mobile.errors import InputError

quick = settings(max_examples=80, deadline=None)


def sample(strategy) -> list[str]:
    """Some texts of a strategy."""
    found = []
    quick(given(strategy)(lambda text: found.append(text)))()
    return found


def outcome(call, *arguments):
    """What a call gives, or the line it refuses with."""
    try:
        return call(*arguments)
    except (InputError, Refused) as error:
        return f"refused: {error}"


def test_ids_are_pythons(pair):
    ours, theirs = pair

    @quick
    @given(texts)
    def same(text):
        assert ours.encode(text) == theirs.encode(text)
        assert outcome(ours.encode, text, False) == outcome(theirs.encode, text, False)

    same()
    for text in awkward:
        assert ours.encode(text) == theirs.encode(text)


def test_spans_are_pythons(pair):
    ours, theirs = pair
    spans = st.lists(st.tuples(texts, st.booleans()), max_size=6)
    chat = texts.map(lambda text: [("<|user|>\n", True), (text, False), ("<|end|>\n", True)])

    @quick
    @given(spans | chat)
    def same(spans):
        assert outcome(ours.encode_spans, spans) == outcome(theirs.encode_spans, spans)

    same()
    halves = [("<|us", True), ("er|>", False), ("<|en", True), ("d|>", True)]
    assert ours.encode_spans(halves) == theirs.encode_spans(halves)


def test_every_token_is_pythons(pair):
    ours, theirs = pair
    assert ours.vocab_size == theirs.vocab_size
    for token in (-(2**40), -1, *range(theirs.vocab_size + 2), 2**40):
        assert ours.token_bytes(token) == theirs.token_bytes(token)
        assert ours.is_control(token) == (token in theirs.special_ids.values())
    for text in (*theirs.special_ids, *CONTROLS, "a", ""):
        assert ours.control_id(text) == theirs.special_ids.get(text, -1)


def test_decoding_and_streams_are_pythons(pair):
    ours, theirs = pair
    ids = st.lists(st.integers(-1, theirs.vocab_size + 1), max_size=25) | texts.map(theirs.encode)

    @quick
    @given(ids, st.booleans())
    def same(ids, at_start):
        assert ours.decode(ids) == theirs.decode(ids)
        stream, reference = ours.stream(at_start), theirs.stream(at_start=at_start)
        assert [stream.push(token) for token in ids] == [reference.push(token) for token in ids]
        assert stream.finish() == reference.finish()

    same()


def test_a_stream_never_shows_half_a_character(pair_of):
    ours, _ = pair_of("byte level")
    byte = {ours.token_bytes(i): i for i in reversed(range(ours.vocab_size))}

    @quick
    @given(st.binary(max_size=12) | texts.map(str.encode))
    def whole(data):
        stream = ours.stream(at_start=True)
        shown = [stream.push(byte[bytes([value])]) for value in data]
        assert "".join(shown) + stream.finish() == data.decode("utf-8", "replace")
        assert stream.finish() == ""

    whole()


def test_ids_are_those_of_tokenizers(pair_of, library, tmp_path):
    """The library itself, not our Python, on the vocabularies that it reads."""
    import tokenizers
    from conftest import WRITERS

    for name in ("byte level", "llama", "phi-3", "smollm2", "o200k"):
        folder = tmp_path / name
        folder.mkdir()
        try:
            folder = WRITERS[name](folder)
        except pytest.skip.Exception:
            continue
        ours = CoreTokenizer(library, folder)
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

        differ = [text for text in sample(texts) if ours.encode(text) != theirs.encode(text, add_special_tokens=False).ids]
        assert differ == []


def test_threads_share_a_tokenizer(pair_of):
    ours, theirs = pair_of("llama")
    lines = [f"the cat {i} sat <|end|> at the {i % 7} mat" for i in range(300)]
    expected = [theirs.encode(line) for line in lines]
    wrong = []

    def work():
        own = CoreTokenizer.__new__(CoreTokenizer)  # the same handle with ids of its own
        own.__dict__ |= ours.__dict__ | {"_ids": type(ours._ids)()}
        own.__class__ = type("Shared", (CoreTokenizer,), {"__del__": lambda self: None})
        wrong.extend(line for line, ids in zip(lines * 3, expected * 3, strict=True) if own.encode(line) != ids)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_more_words_than_are_remembered(pair_of):
    ours, theirs = pair_of("llama")
    text = " ".join(f"the{i:x}" for i in range(60_000))
    assert ours.encode(text) == theirs.encode(text) and ours.encode(text) == theirs.encode(text)


def test_names_of_tokens_make_control_tokens(library, pure_python, tmp_path):
    from test_tokenizer import write_with_words

    folder = write_with_words(tmp_path, "byte_level")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</think>", "pad_token": {"content": "the"}}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["tool call", {"content": " t"}]}))
    ours, theirs = CoreTokenizer(library, folder), pure_python(folder)
    for text in theirs.special_ids:
        assert ours.control_id(text) == theirs.special_ids[text]
    assert ours.control_id("</think>") > 0 and ours.control_id("the") > 0 and ours.control_id("<think>") == -1
    for spans in ([("the </think> at the tool call", False)], [("a</think> the", True), (" the", False)]):
        assert outcome(ours.encode_spans, spans) == outcome(theirs.encode_spans, spans)


def test_text_that_is_not_utf8_is_refused(pair_of):
    ours, _ = pair_of("byte level")
    for data, at in ((b"a\xff", 1), (b"ab\xed\xa0\x80", 2), (b"\xf0\x9f\x99", 0), (b"\xc0\x80", 0)):
        with pytest.raises(Refused, match=f"text is not UTF-8 at byte {at}: give valid Unicode"):
            ours.encode_bytes(data)
    assert ours.encode_bytes(b"a\0b") == ours.encode("a\0b")


def test_nulls_and_short_buffers(library, pair_of):
    import ctypes

    ours, _ = pair_of("byte level")
    error = ctypes.create_string_buffer(b"x" * 12, 12)
    assert library.p3m_tokenizer_open(None, error, 12) is None and error.value == b"folder is n"
    assert library.p3m_tokenizer_open(b"/nowhere", None, 0) is None
    assert library.p3m_encode(None, b"a", 1, 1, None, 0, error, 12) == -1 and error.value == b"tokenizer i"
    assert library.p3m_encode(ours._self, None, 1, 1, None, 0, error, 12) == -1
    assert library.p3m_encode(ours._self, None, 0, 1, None, 0, error, 12) == 0
    ids = (ctypes.c_int64 * 2)(-7, -7)
    assert library.p3m_encode(ours._self, b"zyxw", 4, 1, ids, 1, error, 12) == 4
    assert ids[0] >= 0 and ids[1] == -7
    library.p3m_tokenizer_close(None)
    library.p3m_stream_close(None)
    with pytest.raises(Refused, match="spans is not a list"):
        ours.encode_spans({})
    with pytest.raises(Refused, match=r'a span is not \["text", true\]'):
        ours.encode_spans([["a"]])


def test_a_user_defined_piece_that_can_not_be_plain_is_refused(library, pure_python, tmp_path):
    """A merged piece that is a control token, too: plain text makes it."""
    from test_tokenizer import write_byte_level

    path = write_byte_level(tmp_path) / "tokenizer.json"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "the"}))
    assert path.is_file()
    ours, theirs = CoreTokenizer(library, tmp_path), pure_python(tmp_path)
    for text in ("the", "a the b"):
        assert outcome(ours.encode, text, False) == outcome(theirs.encode, text, False)
    assert "reads 'the' as a control token even in plain text: remove it" in outcome(ours.encode, "the", False)
