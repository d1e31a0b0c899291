"""The three tokenizer backends against their own libraries, and what holds for all of them."""

import base64
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.errors import InputError
from phi3mobile.text.tokenizer import Tokenizer
from phi3mobile.text.vocabularies import load_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data"
CHAT_TOKENS = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
NOT_PLAIN = (*CHAT_TOKENS, "<|endofprompt|>", *(f"<|fim_{part}|>" for part in ("prefix", "middle", "suffix")))
NOT_PLAIN += ("<s>", "</s>", "<unk>")
CHAT = "<|system|>\n Be brief.<|end|>\n<|user|>\nHi there,\n  you!\n<|end|>\n<|assistant|>\n"
LINES = ["the cat sat on the mat", "Hello there, the weather is nice", "naïve café, 中文 and 🙂 12 + 34 = 46"]

quick = settings(max_examples=100, deadline=None)
# Text as it comes, and text made of what is special: spaces, control tokens and halves of them.
PARTS = [*CHAT_TOKENS, "<|us", "er|>", "|>", " ", "  ", "\n", "\u3000", "\x1c", "</s>", "a", "the", "é", "🙂"]
any_text = st.text(max_size=30) | st.lists(st.sampled_from(PARTS)).map("".join)
ordinary_text = any_text.filter(lambda text: not any(part in text for part in (*NOT_PLAIN, "▁")))


WORDS = ("▁the", "▁a", "▁cat", "the", "at", "▁t", "he", "th", "ca", "▁c")


def llama_pieces(words: tuple[str, ...] = WORDS) -> list[str]:
    letters = "▁abcdefghijklmnopqrstuvwxyzABCHIN.,!|<>/é"
    return ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words, *letters]


def sentencepiece_model(pieces: list[str]) -> bytes:
    """A sentencepiece BPE ModelProto as Llama's: identity normalizer, byte fallback, dummy prefix."""

    def varint(value: int) -> bytes:
        return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])

    def field(number: int, value: int | bytes) -> bytes:
        if isinstance(value, int):
            return varint(number << 3) + varint(value)
        return varint(number << 3 | 2) + varint(len(value)) + value

    def score_of(index: int, piece: str) -> float:
        return -1e9 if len(piece) > 1 and set(piece) == {"▁"} else -float(index)

    model = b""
    for i, piece in enumerate(pieces):
        kind = 2 if i == 0 else 3 if i < 3 else 6 if i < 259 else 1  # unknown, control, byte, normal
        score = varint(2 << 3 | 5) + struct.pack("<f", score_of(i, piece))
        model += field(1, field(1, piece.encode()) + score + field(3, kind))
    trainer = field(3, 2) + field(4, len(pieces)) + field(35, 1)  # model_type BPE, vocab_size, byte_fallback
    normalizer = field(1, b"identity") + field(3, 1) + field(4, 0) + field(5, 1)
    return model + field(2, trainer) + field(3, normalizer)


def write_sentencepiece(folder: Path, pieces: list[str]) -> Path:
    """Chat tokens in added_tokens.json and their flags in tokenizer_config.json, as in Phi-3's released folder."""
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    ids = {text: len(pieces) + i for i, text in enumerate(CHAT_TOKENS)}
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    decoder = {i: {"content": text, "rstrip": text != "<|endoftext|>", "special": True} for text, i in ids.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    return folder


def write_byte_level(folder: Path) -> Path:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    native = tokenizers.Tokenizer(models.BPE())
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    native.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    native.train_from_iterator(LINES, trainer)
    native.add_special_tokens([tokenizers.AddedToken(text, rstrip=text == "<|end|>") for text in CHAT_TOKENS])
    native.add_tokens(["    "])  # some vocabularies add runs of spaces: those stay plain text
    native.save(str(folder / "tokenizer.json"))
    return folder


def write_llama_json(folder: Path) -> Path:
    """The same pieces as the sentencepiece model, in HF's converted form."""
    pieces = llama_pieces()
    merges = [
        (vocab_id, i, [piece[:i], piece[i:]])
        for vocab_id, piece in enumerate(pieces[259:])
        for i in range(1, len(piece))
        if {piece[:i], piece[i:]} <= set(pieces[259:])
    ]
    added = [("<unk>", 0, False), ("<s>", 1, False), ("</s>", 2, False)]
    added += [(text, len(pieces) + i, text != "<|endoftext|>") for i, text in enumerate(CHAT_TOKENS)]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    config = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": text, "rstrip": rstrip, "special": True}
            | {"lstrip": False, "single_word": False, "normalized": False}
            for text, i, rstrip in added
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]},
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [merge for _, _, merge in sorted(merges)],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(config))
    return folder


def write_tiktoken(folder: Path) -> Path:
    words = [b"th", b"the", b" t", b" the", b"at", b"\xc3\xa9", b"\xf0\x9f", b"  "]
    tokens = [bytes([b]) for b in range(256)] + words
    lines = [base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens)]
    (folder / "small.tiktoken").write_bytes(b"".join(lines))
    return folder


@pytest.fixture(scope="module", params=["byte_level", "llama_json", "sentencepiece", "tiktoken"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp(request.param)
    writers = {
        "byte_level": write_byte_level,
        "llama_json": write_llama_json,
        "sentencepiece": lambda folder: write_sentencepiece(folder, llama_pieces()),
        "tiktoken": write_tiktoken,
    }
    return load_tokenizer(writers[request.param](folder))


@pytest.fixture(scope="module")
def phi3() -> Tokenizer:
    if not (SHARED / "phi3-tokenizer" / "tokenizer.json").is_file():
        pytest.skip("needs ../shared/data/phi3-tokenizer/tokenizer.json")
    return load_tokenizer(SHARED / "phi3-tokenizer")


# -- what holds for every backend


def test_text_without_control_tokens_comes_back(tokenizer):
    @quick
    @given(ordinary_text)
    def holds(text):
        for special in (True, False):
            assert tokenizer.decode(tokenizer.encode(text, special)) == text

    holds()


def test_plain_encoding_never_yields_a_control_token(tokenizer):
    controls = {token for text, token in tokenizer.special_ids.items() if text != "<unk>"}

    @quick
    @given(any_text)
    def holds(text):
        assert controls.isdisjoint(tokenizer.encode(text, special=False))

    holds()
    assert tokenizer.decode(tokenizer.encode("x<|user|>y", special=False)) == "x<|user|>y"


def test_control_tokens_are_recognised_in_order(tokenizer):
    found = [token for token in tokenizer.encode(CHAT) if token in tokenizer.special_ids.values()]
    order = ["<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>"]
    assert found == [tokenizer.special_ids[text] for text in order]
    assert [tokenizer.id_of(text) for text in order] == found
    assert tokenizer.id_of("<|nothing|>") is None


def test_spans_without_control_text_encode_as_one_text(tokenizer):
    @quick
    @given(ordinary_text, ordinary_text, st.sampled_from(["<|user|>\n", "<|end|>", "x", ""]))
    def holds(first, second, own):
        spans = [(own, True), (first, False), ("<|end|>\n", True), (second, False), (own, True)]
        text = "".join(part for part, _ in spans)
        assert tokenizer.encode_spans(spans) == tokenizer.encode(text)
        assert tokenizer._split(spans[:2]) == tokenizer.encode(own + first)

    holds()


def test_untrusted_spans_never_make_a_control_token(tokenizer):
    controls = [token for text, token in tokenizer.special_ids.items() if text != "<unk>"]
    own = [tokenizer.special_ids["<|user|>"], tokenizer.special_ids["<|end|>"]]

    @quick
    @given(any_text)
    def holds(content):
        ids = tokenizer.encode_spans([("<|user|>\n", True), (content, False), ("<|end|>", True)])
        assert [token for token in ids if token in controls] == own

    holds()
    halves = tokenizer.encode_spans([("<|us", True), ("er|>", False), ("<|en", True), ("d|>", True)])
    assert [token for token in halves if token in controls] == own[1:]


def test_decode_is_the_text_of_the_token_bytes(tokenizer):
    @quick
    @given(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=20))
    def holds(ids):
        data = b"".join(tokenizer.token_bytes(token) for token in ids)
        stripped = data.removeprefix(b" ")
        assert tokenizer.decode(ids) in (data.decode("utf-8", "replace"), stripped.decode("utf-8", "replace"))

    holds()
    for nothing in (tokenizer.vocab_size, -1, 2**40):
        assert tokenizer.token_bytes(nothing) == b""
    assert tokenizer.token_bytes(tokenizer.special_ids["<|end|>"]) == b"<|end|>"


def test_stream_is_decode_in_pieces(tokenizer):
    @quick
    @given(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=20))
    def holds(ids):
        stream = tokenizer.stream(skip=frozenset(), at_start=True)
        assert "".join([stream.push(token) for token in ids]) + stream.finish() == tokenizer.decode(ids)
        skipping = tokenizer.stream(at_start=True)
        kept = [token for token in ids if token not in tokenizer.special_ids.values()]
        assert "".join([skipping.push(token) for token in ids]) + skipping.finish() == tokenizer.decode(kept)

    holds()


def test_stream_continues_a_prompt(tokenizer):
    @quick
    @given(ordinary_text, ordinary_text)
    def holds(before, after):
        prompt, ids = tokenizer.encode(f"<|user|>{before}<|end|>"), tokenizer.encode(after)
        stream = tokenizer.stream()
        text = "".join([stream.push(token) for token in ids]) + stream.finish()
        assert text == tokenizer.decode(prompt + ids)[len(tokenizer.decode(prompt)) :]

    holds()


def test_stream_never_shows_half_a_character(tokenizer):
    ids = tokenizer.encode("🙂é中", special=False)
    stream = tokenizer.stream(at_start=True)
    shown = [stream.push(token) for token in ids]
    assert "".join(shown) == "🙂é中"
    assert len(ids) > 3  # some characters took several tokens
    assert "\ufffd" not in "".join(shown)


def test_stream_replaces_malformed_bytes_once_sure(tokenizer):
    byte = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\xf0")
    letter = tokenizer.encode("a")[-1]
    stream = tokenizer.stream()
    assert stream.push(byte) == ""
    assert stream.push(byte) == "\ufffd"  # the first can't be completed any more
    assert stream.push(letter).startswith("\ufffd")
    assert stream.push(byte) == ""
    assert stream.finish() == "\ufffd"


def test_lone_surrogate_is_refused(tokenizer):
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_spans([(text, False)])):
        with pytest.raises(InputError, match="lone surrogate at character 1: give valid Unicode"):
            encode("a\ud800")


# -- against the libraries' own answers


@pytest.fixture(params=["phi3", "byte_level", "llama_json"])
def native_pair(request, tmp_path):
    import tokenizers

    if request.param == "phi3":
        pair = request.getfixturevalue("phi3"), SHARED / "phi3-tokenizer"
    else:
        folder = {"byte_level": write_byte_level, "llama_json": write_llama_json}[request.param](tmp_path)
        pair = load_tokenizer(folder), folder
    return pair[0], tokenizers.Tokenizer.from_file(str(pair[1] / "tokenizer.json"))


def test_json_backend_equals_tokenizers(native_pair):
    ours, native = native_pair

    @quick
    @given(any_text)
    def holds(text):
        ids = native.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids
        if "</s>" not in text:  # Phi-3's </s> is matched after normalizing: tokenizers shows a space before it
            assert ours.decode(ids) == native.decode(ids, skip_special_tokens=False)

    holds()
    assert ours.encode(CHAT) == native.encode(CHAT, add_special_tokens=False).ids
    assert ours.vocab_size == native.get_vocab_size()


def test_own_splitting_equals_tokenizers(native_pair):
    """The path that is taken only when a content holds control-token text, on texts where both must agree."""
    ours, native = native_pair
    parts = [*CHAT_TOKENS, " ", "\n", "\u3000", "\x1c", "a", "the", "é", "    "]

    @quick
    @given(st.lists(st.sampled_from(parts)).map("".join))
    def holds(text):
        assert ours._split([(text, True)]) == native.encode(text, add_special_tokens=False).ids

    holds()


def test_sentencepiece_equals_its_converted_json(tmp_path):
    (tmp_path / "json").mkdir()
    (tmp_path / "model").mkdir()
    converted = load_tokenizer(write_llama_json(tmp_path / "json"))
    ours = load_tokenizer(write_sentencepiece(tmp_path / "model", llama_pieces()))
    assert ours.special_ids == converted.special_ids

    @quick
    @given(any_text.filter(lambda text: "\0" not in text))
    def holds(text):
        assert ours.encode(text) == converted.encode(text)
        assert ours.encode(text, special=False) == converted.encode(text, special=False)

    holds()
    assert ours.encode(CHAT) == converted.encode(CHAT)
    for i in range(ours.vocab_size):
        assert ours.token_bytes(i) == converted.token_bytes(i)


def test_sentencepiece_equals_phi3_on_chat(phi3, tmp_path):
    released = json.loads((SHARED / "phi3-tokenizer" / "tokenizer.json").read_text())
    pieces = sorted(released["model"]["vocab"], key=released["model"]["vocab"].get)
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    flags = {str(token["id"]): token for token in released["added_tokens"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": flags}))
    ours = load_tokenizer(tmp_path)
    for text in (CHAT, *LINES, "  two spaces", "<|end|>\n\n x", "tabs\tand\n\nlines", "def f(x):\n    return x\n"):
        assert ours.encode(text) == phi3.encode(text), text
        assert ours.decode(phi3.encode(text)) == phi3.decode(phi3.encode(text))


def test_phi3_known_ids(phi3):
    """Written down once from the released vocabulary; whitespace after a chat token is swallowed (rstrip)."""
    assert phi3.encode("<|user|>\nHello<|end|>\n<|assistant|>\n") == [32010, 15043, 32007, 32001]
    assert phi3.special_ids["<|endoftext|>"] == 32000
    assert (phi3.vocab_size, phi3.token_bytes(13), phi3.token_bytes(15043)) == (32011, b"\n", b" Hello")
    reply = phi3.stream()
    assert reply.push(15043) + reply.push(3186) + reply.push(32007) == " Hello world"
    assert phi3.stream(at_start=True).push(15043) == "Hello"


def test_phi3_small_ids_equal_tiktoken():
    path = SHARED / "phi3-small-tokenizer" / "cl100k_base.tiktoken"
    if not path.is_file():
        pytest.skip("needs ../shared/data/phi3-small-tokenizer/cl100k_base.tiktoken")
    small = load_tokenizer(path.parent)
    assert small.encode("hello world 12345") == [15339, 1917, 220, 4513, 1774]
    chat = "<|endoftext|><|user|>\nHi<|end|>\n<|assistant|>\n"
    assert small.encode(chat) == [100257, 100262, 198, 13347, 100266, 198, 100263, 198]
    assert small.decode(small.encode(chat)) == chat
    assert (small.vocab_size, small.id_of("hello"), small.token_bytes(100351)) == (100352, 15339, b"<|dummy_id_86|>")
    for text in LINES:
        assert small.decode(small.encode(text)) == text


def test_new_llama_scheme_prepends_only_at_the_start(tmp_path):
    """Metaspace with prepend_scheme "first": text after a chat token has no dummy prefix, in both paths."""
    config = json.loads((write_llama_json(tmp_path) / "tokenizer.json").read_text())
    config["normalizer"] = None
    config["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    for text in ("the<|endoftext|>the", "<|endoftext|>the", "<|user|> the"):
        assert tokenizer._split([(text, True)]) == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode_spans([("<|user|>", True), ("the<|end|>", False)])) == "<|user|>the<|end|>"


# -- what can be wrong


def test_folder_without_a_tokenizer_names_what_is_allowed(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError) as caught:
            load_tokenizer(folder)
        allowed = "no tokenizer; put one of tokenizer.json, tokenizer.model, *.tiktoken there"
        assert str(caught.value) == f"{folder}: {allowed}"


def test_json_is_preferred_to_the_others(tmp_path):
    write_sentencepiece(write_tiktoken(tmp_path), llama_pieces())
    assert load_tokenizer(tmp_path).vocab_size == len(llama_pieces()) + len(CHAT_TOKENS)
    write_byte_level(tmp_path)
    assert load_tokenizer(tmp_path).id_of("    ") is not None
    assert "    " not in load_tokenizer(tmp_path).special_ids


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"version https://git-lfs\noid sha256:0"),
        ("tokenizer.json", b'{"model": {}}'),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.model", b""),
        ("tokenizer.model", b"garbage"),
        ("a.tiktoken", b""),
        ("a.tiktoken", b"YQ== 0\n"),
        ("a.tiktoken", b"not base64 at all\n"),
        ("a.tiktoken", b"!!! 0\n"),
    ],
)
def test_damaged_file_is_one_line(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="damaged or not a tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_truncated_files_are_damaged(tmp_path):
    for write in (write_llama_json, lambda f: write_sentencepiece(f, llama_pieces()), write_tiktoken):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write(folder)
        path = next(p for p in folder.iterdir() if p.name in ("tokenizer.json", "tokenizer.model", "small.tiktoken"))
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(InputError, match="damaged or not a tokenizer"):
            load_tokenizer(folder)


def test_added_tokens_file_is_checked(tmp_path):
    write_sentencepiece(tmp_path, llama_pieces())
    (tmp_path / "added_tokens.json").write_text('["<|end|>"]')
    with pytest.raises(InputError, match=r"added_tokens.json: damaged"):
        load_tokenizer(tmp_path)


def test_added_token_past_a_gap_is_refused(tmp_path):
    config = json.loads((write_llama_json(tmp_path) / "tokenizer.json").read_text())
    config["added_tokens"][-1]["id"] += 5
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"<\|end\|> has id \d+, which leaves a gap"):
        load_tokenizer(tmp_path)


def test_unsupported_decoder_is_named(tmp_path):
    config = json.loads((write_llama_json(tmp_path) / "tokenizer.json").read_text())
    config["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="decoder WordPiece is not supported; allowed: ByteLevel"):
        load_tokenizer(tmp_path)


def test_ranks_of_another_vocabulary_are_refused(tmp_path):
    lines = [base64.b64encode(bytes([b])) + b" %d\n" % b for b in range(256)]
    lines.append(base64.b64encode(b"ab") + b" 199997\n")
    (tmp_path / "o200k.tiktoken").write_bytes(b"".join(lines))
    with pytest.raises(InputError, match=r"rank 199997; only cl100k \(ranks below 100257\)"):
        load_tokenizer(tmp_path)


def test_two_ranks_files_are_ambiguous(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.tiktoken").write_bytes(b"YQ== 0\n")
    with pytest.raises(InputError, match=r"2 \*.tiktoken files; put one of"):
        load_tokenizer(tmp_path)


# -- added tokens that are not special: words


WORDS_ADDED = ("<think>", "</think>", "tool call", "<｜ü｜>")


def write_with_words(folder: Path, kind: str, **flags) -> Path:
    """A vocabulary with words of a fine-tune, as byte_level, llama_json, sentencepiece or tiktoken."""
    flags = {"special": False, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False} | flags
    if kind in ("byte_level", "llama_json"):
        (write_byte_level if kind == "byte_level" else write_llama_json)(folder)
        config = json.loads((folder / "tokenizer.json").read_text())
        first = 1 + max(max(config["model"]["vocab"].values()), *(t["id"] for t in config["added_tokens"]))
        config["added_tokens"] += [{"id": first + i, "content": text} | flags for i, text in enumerate(WORDS_ADDED)]
        (folder / "tokenizer.json").write_text(json.dumps(config))
    else:
        if kind == "sentencepiece":
            write_sentencepiece(folder, llama_pieces())
            config, first = json.loads((folder / "tokenizer_config.json").read_text()), 400
        else:
            write_tiktoken(folder)
            config, first = {"added_tokens_decoder": {}}, 100400
        more = {str(first + i): {"content": text} | flags for i, text in enumerate(WORDS_ADDED)}
        config["added_tokens_decoder"] |= more
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["byte_level", "llama_json", "sentencepiece", "tiktoken"])
def test_an_added_word_is_one_id_in_anybodys_text_and_is_shown(kind, tmp_path):
    tokenizer = load_tokenizer(write_with_words(tmp_path, kind))
    ids = [tokenizer.id_of(text) for text in WORDS_ADDED]
    assert None not in ids and not set(WORDS_ADDED) & tokenizer.special_ids.keys()
    for text, token in zip(WORDS_ADDED, ids, strict=True):
        for said in (f"a{text}b", f"{text}", f"a <|end|>{text} the"):
            for spans in ([(said, False)], [("<|user|>", True), (said, False), ("<|end|>", True)]):
                found = tokenizer.encode_spans(spans)
                assert found.count(token) == 1 and found.count(tokenizer.id_of("<|end|>")) == len(spans) // 2
                assert said.replace(" ", "") in tokenizer.decode(found).replace(" ", "")
            assert tokenizer.encode(said, special=False).count(token) == 1
    stream = tokenizer.stream()
    said = [ids[0], *tokenizer.encode("hm")[-2:], ids[1], tokenizer.id_of("<|end|>")]
    text = "".join(map(stream.push, said)) + stream.finish()
    assert text.startswith("<think>") and text.endswith("</think>")


@pytest.mark.parametrize("kind", ["byte_level", "llama_json"])
@pytest.mark.parametrize("flag", ["", "normalized", "single_word", "lstrip", "rstrip"])
def test_words_of_plain_text_are_those_that_tokenizers_finds(kind, flag, tmp_path, monkeypatch):
    """Ids and shown text, with the library and in plain Python."""
    import tokenizers

    from phi3mobile.text import vocabularies

    folder = write_with_words(tmp_path, kind, **({flag: True} if flag else {}))
    native = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = [load_tokenizer(folder)]
    monkeypatch.setattr(vocabularies, "_native", lambda config: None)
    ours.append(load_tokenizer(folder))
    pieces = st.sampled_from([*WORDS_ADDED, "a", " ", "the", "\n", "<th", "ink>", "é", "tool"])

    @quick
    @given(st.lists(pieces, max_size=8).map("".join))
    def holds(text):
        expected = native.encode(text, add_special_tokens=False).ids
        for tokenizer in ours:
            assert tokenizer.encode_spans([(text, False)]) == expected
            assert tokenizer.encode(text, special=False) == expected
            stream = tokenizer.stream(at_start=True)
            shown = "".join(map(stream.push, expected)) + stream.finish()
            assert shown == native.decode(expected, skip_special_tokens=True)

    holds()


def test_a_token_that_the_config_names_is_control_whatever_its_flag(tmp_path):
    folder = write_with_words(tmp_path, "byte_level")
    named = {"eos_token": "</think>", "additional_special_tokens": [{"content": "tool call"}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    tokenizer = load_tokenizer(folder)
    assert {"</think>", "tool call"} <= tokenizer.special_ids.keys() and "<think>" not in tokenizer.special_ids
    assert tokenizer.id_of("</think>") not in tokenizer.encode_spans([("a</think>", False)])
    assert tokenizer.decode(tokenizer.encode_spans([("a</think>", False)])) == "a</think>"


def test_user_defined_piece_that_can_not_be_plain_is_refused(tmp_path):
    """sentencepiece always honours user-defined symbols; as a control token in a content such text must not pass."""
    model = sentencepiece_model(llama_pieces(("▁the", "[CTRL]")))
    normal, user_defined = b"\x0a\x06[CTRL]\x15", b"\x18\x04"
    at = model.index(normal) + len(normal) + 4  # the piece's type field follows its score
    assert model[at : at + 2] == b"\x18\x01"
    (tmp_path / "tokenizer.model").write_bytes(model[:at] + user_defined + model[at + 2 :])
    decoder = {"260": {"content": "[CTRL]", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    tokenizer = load_tokenizer(tmp_path)
    assert 260 in tokenizer.encode("a[CTRL]b")
    with pytest.raises(InputError, match=r"reads '\[CTRL\]' as a control token even in plain text: remove it"):
        tokenizer.encode("a[CTRL]b", special=False)


def test_importing_is_cheap():
    code = "import sys, phi3mobile.text.vocabularies, phi3mobile.text.chat, phi3mobile.text.gguf_vocab; "
    code += "print({'tokenizers', 'sentencepiece', 'tiktoken', 'jinja2', 'gguf', 'numpy'} & sys.modules.keys())"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "set()"
