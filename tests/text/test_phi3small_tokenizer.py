"""phi-3-small's tokenizer and chat from files as released, against tiktoken itself."""

import base64
import json
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.text.chat import KNOWN_TEMPLATES, guess_template, load_chat
from phi3mobile.text.vocabularies import load_tokenizer

RANKS = Path(__file__).parents[3] / "shared" / "data" / "phi3-small-tokenizer" / "cl100k_base.tiktoken"
SPECIAL = {
    "<|endoftext|>": 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|system|>": 100261,
    "<|user|>": 100262,
    "<|assistant|>": 100263,
    "<|dummy_id_0|>": 100264,
    "<|dummy_id_1|>": 100265,
    "<|end|>": 100266,
    "<|dummy_id_2|>": 100256,
    "<|dummy_id_3|>": 100267,
    "<|dummy_id_11|>": 100275,
    "<|endofprompt|>": 100276,
    "<|dummy_id_12|>": 100277,
    "<|dummy_id_86|>": 100351,
}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi, 12345!\n  two  spaces"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Say <|end|> in Ω"},
]


def released(folder: Path, ranks: bytes) -> Path:
    """The tokenizer files of a checkpoint: the class names bos and eos, so tokenizer_config.json need not."""
    folder.mkdir()
    (folder / "cl100k_base.tiktoken").write_bytes(ranks)
    config = {
        "tokenizer_class": "Phi3SmallTokenizer",
        "added_tokens_decoder": {},
        "chat_template": KNOWN_TEMPLATES["phi-3-small"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def bytes_only(tmp_path_factory):
    ranks = b"".join(base64.b64encode(bytes([byte])) + f" {byte}\n".encode() for byte in range(256))
    return released(tmp_path_factory.mktemp("small") / "tokenizer", ranks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if not RANKS.is_file():
        pytest.skip("needs ../shared/data/phi3-small-tokenizer/cl100k_base.tiktoken")
    return released(tmp_path_factory.mktemp("small") / "tokenizer", RANKS.read_bytes())


@pytest.fixture(scope="module")
def oracle(folder):
    rows = [line.split() for line in RANKS.read_bytes().splitlines()]
    pattern = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
    return tiktoken.Encoding("oracle", pat_str=pattern, mergeable_ranks=ranks, special_tokens=SPECIAL)


def test_every_id_has_a_token(bytes_only):
    tokenizer = load_tokenizer(bytes_only)
    assert tokenizer.vocab_size == 100352
    assert sorted(tokenizer.special_ids.values()) == list(range(100256, 100352))
    assert SPECIAL.items() <= tokenizer.special_ids.items()
    text = "<|user|>\nHi <|dummy_id_11|><|end|>"
    assert (
        tokenizer.encode(text) == [100262, 10, 72, 105, 32, 100275, 100266] and tokenizer.decode(tokenizer.encode(text)) == text
    )
    assert guess_template(tokenizer) == "phi-3-small"


def test_the_conversation_starts_with_bos_and_ends_with_the_assistants_turn(bytes_only):
    tokenizer, chat = load_tokenizer(bytes_only), load_chat(bytes_only)
    assert (chat.bos, chat.eos) == ("<|endoftext|>", "<|endoftext|>")
    text = "<|endoftext|><|system|>\nBe brief.<|end|>\n<|user|>\nHi, 12345!\n  two  spaces<|end|>\n"
    text += "<|assistant|>\nHello.<|end|>\n<|user|>\nSay <|end|> in Ω<|end|>\n<|assistant|>\n"
    assert chat.render(MESSAGES) == text
    assert chat.render(MESSAGES[:2], add_generation_prompt=False).endswith("<|end|>\n<|endoftext|>")
    ids = chat.encode(tokenizer, MESSAGES)
    assert ids[:3] == [100257, 100261, 10] and ids[-2:] == [100263, 10]
    assert ids.count(100266) == 4  # <|end|> in the user's text is text
    assert chat.segments()["bos"] == "<|endoftext|>"


def test_ids_are_tiktokens(folder, oracle):
    tokenizer, chat = load_tokenizer(folder), load_chat(folder)
    text = chat.render(MESSAGES[:2])
    assert tokenizer.encode(text) == oracle.encode(text, allowed_special="all")
    assert chat.encode(tokenizer, MESSAGES[:2]) == tokenizer.encode(text)

    pieces = st.one_of(st.text(max_size=12), st.sampled_from([*SPECIAL, " ", "\n\n", "\r\n ", "'Ll ", "123456", "<|", "|>"]))

    @settings(max_examples=200, deadline=None)
    @given(st.lists(pieces, max_size=8).map("".join))
    def same(text):
        assert tokenizer.encode(text) == oracle.encode(text, allowed_special="all")
        assert tokenizer.encode(text, special=False) == oracle.encode_ordinary(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text

    same()
