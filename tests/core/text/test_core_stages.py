"""Patterns, normalizers and pre-tokenizers of the core against Python's, where a text shows what they did."""

import json
import re
import subprocess
import sys
from functools import cache
from itertools import count, product
from pathlib import Path

import pytest
from border import CORE, CoreTokenizer, Refused
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from texts import known, texts

from phi3mobile.errors import InputError
from phi3mobile.text.gguf_vocab import _PRE_TYPES
from phi3mobile.text.unicode_classes import compile_pattern
from phi3mobile.text.vocabularies import _CL100K

quick = settings(max_examples=150, deadline=None)
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
RELEASED = sorted({pattern for patterns in _PRE_TYPES.values() for pattern in patterns} | {_CL100K.replace("}+|", "}|")})


@pytest.fixture
def shown(library, pure_python, tmp_path):
    """Stages -> (what the core makes of a text, what Python does): every byte is a token."""
    numbers = count()

    def get(**stages):
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        model = {"type": "BPE", "byte_fallback": True, "vocab": BYTES, "merges": []}
        config = {"model": model, "added_tokens": [], "decoder": {"type": "ByteFallback"}} | stages
        (folder / "tokenizer.json").write_text(json.dumps(config))
        core, python = CoreTokenizer(library, folder), cache(lambda: pure_python(folder))
        return lambda text: core.decode(core.encode(text)), lambda text: python().decode(python().encode(text))

    return get


def replace(pattern: str) -> dict:
    """A normalizer that shows where a pattern matches."""
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": "|"}


def pieces(*steps: dict) -> dict:
    """A pre-tokenizer whose pieces all begin with ▁."""
    mark = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
    return {"type": "Sequence", "pretokenizers": [*steps, mark]}


def split(pattern: str | dict, behavior: str = "Isolated", invert: bool = False) -> dict:
    pattern = {"Regex": pattern} if isinstance(pattern, str) else pattern
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


@pytest.mark.parametrize("pattern", RELEASED, ids=range(len(RELEASED)))
def test_released_patterns(shown, pattern):
    ours, theirs = shown(pre_tokenizer=pieces(split(pattern)))

    @quick
    @given(texts)
    def same(text):
        assert ours(text) == theirs(text)

    same()


# Patterns of all that the core reads, over few letters, so that they match.
letters = st.sampled_from([*"abcABC ", "\n", "1", "é", "s", "ſ", "K", "k", "\\.", "\\n", "\\x41", "\\u00e9"])
classes = st.sampled_from([r"\s", r"\S", r"\d", r"\D", r"\w", r"\W", r"\p{L}", r"\P{L}", r"\p{Lu}", r"\p{^N}", "."])
members = st.lists(st.sampled_from([*"abc", "é", "A-C", "0-9", r"\s", r"\d", r"\p{Ll}", r"\-", "-"]), min_size=1, max_size=3)
sets = st.builds(lambda caret, some: f"[{caret}{''.join(some)}]", st.sampled_from(["", "^"]), members)
repeats = st.sampled_from(["", "", "*", "+", "?", "*?", "+?", "??", "*+", "++", "?+", "{2}", "{1,2}", "{0,3}?", "{,2}", "{2,}"])
places = st.sampled_from([r"\b", r"\B", "^", "$", r"\A", r"\Z"])
groups = st.sampled_from(["(?:%s)", "(%s)", "(?>%s)", "(?i:%s)"])
ahead = st.sampled_from(["(?=%s)", "(?!%s)"])
taken = st.tuples(letters | classes | sets, repeats).map("".join)


def combined(inner):
    sequence = st.lists(inner | places, min_size=1, max_size=3).map("".join)
    choice = st.lists(sequence, min_size=1, max_size=3).map("|".join)
    grouped = st.tuples(groups, choice, repeats).map(lambda parts: parts[0] % parts[1] + parts[2])
    return grouped | st.tuples(ahead, choice).map(lambda parts: parts[0] % parts[1])


patterns = st.lists(st.recursive(taken, combined, max_leaves=6), min_size=1, max_size=3).map("".join)
strings = st.text("abcABC 1é\nsSſkKi-.", min_size=1, max_size=14)


def test_random_patterns_match_as_in_python(shown):
    read = []

    @settings(max_examples=600, deadline=None)
    @given(patterns, st.lists(strings, min_size=1, max_size=5))
    def same(pattern, some):
        try:
            expected = compile_pattern(pattern)
        except (InputError, re.error):
            assume(False)
        try:
            ours, _ = shown(normalizer=replace(pattern))
        except Refused as error:  # what the core does not read, it names
            assert "pattern" in str(error)
            return
        read.append(pattern)
        for text in some:
            assert ours(text) == expected.sub("|", text), pattern

    same()
    assert len(read) > 200


@pytest.mark.parametrize(
    "pattern",
    [
        "(?i:[sdmt]|ll|ve|re|k|i)",
        "(?i)s|K",
        "a|b|",
        "(?:ab|a)(?:c|bcd)",
        "x*",
        r"\s+(?!\S)|\s+",
        "a{2,3}?",
        "(?>a+)a",
        "{",
        "a{x",
        "a{,}",
        "[]a]",
        "[^]a]",
        r"[\b]",
        "é+?é",
    ],
)
def test_patterns_by_hand(shown, pattern):
    ours, theirs = shown(normalizer=replace(pattern))

    @quick
    @given(st.text("abcdxs SſKkKiIİı{},]^\n\béÉvelL", max_size=12))
    def same(text):
        assert ours(text) == theirs(text)

    same()


@pytest.mark.parametrize("behavior", ["Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"])
@pytest.mark.parametrize("invert", [False, True])
def test_behaviors_of_splits(shown, behavior, invert):
    for pattern in (r"\s", r"[a-c]+", r"a*", {"String": "ab"}, {"String": "."}):
        ours, theirs = shown(pre_tokenizer=pieces(split(pattern, behavior, invert)))

        for length in range(6):
            for chosen in product("ab .", repeat=length):
                assert ours("".join(chosen)) == theirs("".join(chosen))


@pytest.mark.parametrize(
    "steps",
    [
        [{"type": "Digits", "individual_digits": True}],
        [{"type": "Digits", "individual_digits": False}],
        [{"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}],
        [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}, split(r"\p{L}")],
        [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}],
        [{"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": True}],
        [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}],
        [],
    ],
)
def test_pre_tokenizers(shown, steps):
    ours, theirs = shown(pre_tokenizer=pieces(*steps))

    @quick
    @given(texts)
    def same(text):
        assert ours(text) == theirs(text)

    same()


@pytest.mark.parametrize(
    "normalizer",
    [
        *({"type": form} for form in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase")),
        {"type": "Prepend", "prepend": "é "},
        {"type": "Replace", "pattern": {"String": "  "}, "content": "x"},
        {"type": "Replace", "pattern": {"String": ""}, "content": "-"},
        {"type": "Sequence", "normalizers": [{"type": "NFKD"}, replace(r"\p{M}"), {"type": "Lowercase"}]},
        {"type": "Sequence", "normalizers": []},
        None,
    ],
)
def test_normalizers(shown, normalizer):
    ours, theirs = shown(normalizer=normalizer)
    marks = st.sampled_from(
        [*"aAoOuU\u00c5ΣςσΟΔ. '", *"\u0300\u0301\u0323\u0345\u0327\u031b\u3099\u0f71\u0f72", "가", "각", "ᄀ", "ᅡ", "ᆨ", "ﷺ", "ŀ"]
    )

    @settings(max_examples=300, deadline=None)
    @given(texts | st.lists(marks, max_size=10).map("".join) | st.text(known, max_size=5))
    def same(text):
        assert ours(text) == theirs(text)

    same()


def test_normal_forms_and_cases_of_every_character(shown):
    import unicodedata

    codes = [code for code in (*range(0x30000), *range(0xE0000, 0xE0200)) if not 0xD800 <= code < 0xE000]
    for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase"):
        ours, _ = shown(normalizer={"type": kind})
        for start in range(0, len(codes), 4096):
            text = "\0".join(map(chr, codes[start : start + 4096]))
            assert ours(text) == (text.lower() if kind == "Lowercase" else unicodedata.normalize(kind, text))


def test_classes_of_every_character(shown):
    codes = [code for code in (*range(0x40000), 0x50000, *range(0xE0000, 0xE0200), 0x10FFFF) if not 0xD800 <= code < 0xE000]
    text = "".join(map(chr, codes))
    for pattern in (
        r"\p{L}+",
        r"\p{Lu}",
        r"\p{M}+",
        r"\p{N}+",
        r"\d+",
        r"\s+",
        r"\p{P}+",
        r"[^\s\p{L}\p{N}]+",
        r"\P{Nd}+",
        r"\w+",
    ):
        ours, _ = shown(normalizer=replace(pattern))
        assert ours(text) == compile_pattern(pattern).sub("|", text)


def test_the_tables_are_what_their_script_makes():
    import unicodedata

    tables = (CORE / "src" / "text" / "unicode_tables.inc").read_text()
    version = re.search(r'kUnicodeVersion\[\] = "(.*)"', tables)[1]
    if unicodedata.unidata_version != version:
        pytest.skip(f"the tables are Unicode {version}'s, this Python knows {unicodedata.unidata_version}")
    script = [sys.executable, str(Path(__file__).with_name("unicode_tables.py"))]
    assert subprocess.run(script, capture_output=True, text=True, check=True).stdout == tables


def test_a_pattern_that_runs_wild_is_stopped(library, tmp_path):
    config = {"model": {"type": "BPE", "byte_fallback": True, "vocab": BYTES, "merges": []}}
    config |= {"decoder": {"type": "ByteFallback"}, "pre_tokenizer": split("(?:a|a)*b")}
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match="takes too long on this text"):
        CoreTokenizer(library, tmp_path).encode("a" * 60)
