"""The pure-Python tokenizer against `tokenizers`, on the vocabularies of the tests and on Phi-3's where it is at hand."""

import json
import subprocess
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import CHAT, LINES, PARTS, write_byte_level, write_llama_json

from phi3mobile.errors import InputError
from phi3mobile.text.pure_stages import GPT2
from phi3mobile.text.pure_tokenizer import PureTokenizer, merge
from phi3mobile.text.unicode_classes import SPACE, compile_pattern
from phi3mobile.text.vocabularies import load_tokenizer

PHI3 = Path(__file__).parents[3] / "shared" / "data" / "phi3-tokenizer" / "tokenizer.json"
KINDS = ["byte-level", "llama", "phi3"]
quick = settings(max_examples=150, deadline=None)
MIXED = [*PARTS, "'s", "'S", "don't", "12", "٣٤", "½", "Ⅷ", "\r\n", "\t", "ſ", "▁", "_", "中文", "שלום", "👨‍👩‍👧", "e\u0301"]
MIXED += ["\xa0", "\u2028"]
# Characters that this Python knows: newer ones may be letters to the compiled library only.
known = st.characters(blacklist_categories=("Cs", "Cn"))
texts = st.text(known, max_size=40) | st.lists(st.sampled_from(MIXED), max_size=15).map("".join)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Kind -> (ours, theirs)."""
    made = {}

    def get(kind):
        if kind not in made:
            if kind == "phi3":
                if not PHI3.is_file():
                    pytest.skip("Phi-3's vocabulary is not at hand")
                file = PHI3
            else:
                folder = tmp_path_factory.mktemp(kind)
                file = (write_byte_level if kind == "byte-level" else write_llama_json)(folder) / "tokenizer.json"
            text = file.read_text("utf-8")
            theirs = tokenizers.Tokenizer.from_str(text)
            theirs.no_truncation()
            theirs.no_padding()
            made[kind] = PureTokenizer(json.loads(text)), theirs
        return made[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_those_of_tokenizers(both, kind):
    ours, theirs = both(kind)

    @quick
    @given(texts)
    def check(text):
        assert ours.whole(text) == theirs.encode(text, add_special_tokens=False).ids

    check()
    for line in [*LINES, CHAT, "", " ", "\n\n", " " * 70, "a" * 500, "🙂" * 100]:
        assert ours.whole(line) == theirs.encode(line, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_and_ids_are_the_same(both, kind):
    ours, theirs = both(kind)
    vocab = theirs.get_vocab(with_added_tokens=False)
    assert all(ours.token_to_id(piece) == token for piece, token in vocab.items())
    assert all(ours.id_to_token(token) == theirs.id_to_token(token) for token in range(theirs.get_vocab_size()))
    added = theirs.get_added_tokens_decoder()
    assert all(ours.token_to_id(token.content) == number for number, token in added.items())
    assert ours.id_to_token(10**9) is None and ours.token_to_id("no such piece") is None


@pytest.mark.parametrize("write", [write_byte_level, write_llama_json])
def test_the_whole_tokenizer_without_the_library(write, tmp_path, monkeypatch):
    compiled = load_tokenizer(write(tmp_path))
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # importing it raises ImportError
    pure = load_tokenizer(tmp_path)
    assert (pure.special_ids, pure.vocab_size) == (compiled.special_ids, compiled.vocab_size)

    @settings(max_examples=100, deadline=None)
    @given(texts, texts)
    def check(system, user):
        spans = [("<|system|>\n", True), (system, False), ("<|end|>\n", True), (user, False), ("<|end|>", True)]
        ids = pure.encode_spans(spans)
        assert ids == compiled.encode_spans(spans)
        assert pure.encode(user, special=False) == compiled.encode(user, special=False)
        assert pure.decode(ids) == compiled.decode(ids)
        stream, other = pure.stream(), compiled.stream()
        assert [stream.push(token) for token in ids] == [other.push(token) for token in ids]

    check()


def test_nothing_compiled_is_imported(tmp_path):
    write_byte_level(tmp_path)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('tokenizers', 'torch', 'sentencepiece', 'tiktoken', 'regex')))\n"
        "from pathlib import Path\nfrom phi3mobile.text.vocabularies import load_tokenizer\n"
        f"t = load_tokenizer(Path({str(tmp_path)!r})); print(t.decode(t.encode('the cat 🙂')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.stdout == "the cat 🙂\n", done.stderr


@quick
@given(st.text("abc", max_size=12), st.permutations(["ab", "bc", "ca", "aa", "abc", "caa", "abab"]))
def test_merging_by_heap_equals_merging_step_by_step(text, ranks):
    names = [*"abc", *ranks]
    pairs = {(a, b): (ranks.index(a + b), names.index(a + b)) for a in names for b in names if a + b in ranks}

    def ranked(left, right):
        return pairs.get((names[left], names[right]))

    slow = [names.index(char) for char in text]
    while found := sorted((ranked(a, b), i) for i, (a, b) in enumerate(pairwise(slow)) if ranked(a, b)):
        (_, merged), at = found[0]
        slow[at : at + 2] = [merged]
    assert merge([names.index(char) for char in text], ranked) == slow


def test_classes_of_characters_are_unicodes():
    letters, numbers = compile_pattern(r"\p{L}"), compile_pattern(r"\p{N}")
    not_space = compile_pattern(r"[^\s\p{L}\p{N}]")
    for code in [*range(0x3000), *range(0x1F600, 0x1F650), *range(0x20000, 0x20010)]:
        char, category = chr(code), unicodedata.category(chr(code))
        assert bool(letters.fullmatch(char)) == category.startswith("L")
        assert bool(numbers.fullmatch(char)) == category.startswith("N")
        assert bool(not_space.fullmatch(char)) == (char not in SPACE and category[0] not in "LN")
    assert compile_pattern(GPT2).findall("I'm 12 naïve  cafés!") == ["I", "'m", " 12", " naïve", " ", " cafés", "!"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": [], "merges": []}}, "only BPE can be read"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}}, "marks word parts"),
        ({"normalizer": {"type": "Precompiled"}}, "normalizer Precompiled needs the package `tokenizers`"),
        ({"pre_tokenizer": {"type": "UnicodeScripts"}}, "pre-tokenizer UnicodeScripts needs"),
        (
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"\p{Q}+"}, "behavior": "Isolated"}},
            "unknown character class",
        ),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}}, "is not understood"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a{1,3}+"}, "behavior": "Isolated"}}, "needs the package"),
    ],
)
def test_what_is_not_supported_is_said(change, message):
    config = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}} | change
    with pytest.raises(InputError, match=message):
        PureTokenizer(config)


def test_a_damaged_file_is_an_input_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}')
    with pytest.raises(InputError, match="damaged or not a tokenizer"):
        load_tokenizer(tmp_path)
