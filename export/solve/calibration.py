"""Text that weights are solved on, and the quality card's text. Neither is the text that `bench --perplexity` reads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from phi3mobile.errors import InputError
from phi3mobile.models.config import DecoderConfig
from phi3mobile.text.tokenizer import Tokenizer

WINDOW = 512  # tokens of one sequence
TOKENS = 20480  # read at most: more gains little and costs time
FEWEST = 2048  # with less, layers learn the text by heart
CARD_TOKENS = 1024
_TEXTS = Path(__file__).parent / "text"


@dataclass(frozen=True)
class Calibration:
    """Windows of tokens int64 [B, T], and where they are from."""

    tokens: torch.Tensor
    name: str
    sha256: str


def calibration_of(tokenizer: Tokenizer, config: DecoderConfig, path: str | Path | None = None) -> Calibration:
    """The user's text, or the one that ships. InputError: not readable, too short, or ids that the model does not have."""
    name, text = ("phi3mobile's own", _shipped("calibration.txt")) if path is None else (str(path), _read(Path(path)))
    ids, window = _encode(tokenizer, text, config), _window(config)
    if len(ids) < FEWEST:
        raise InputError(f"calibration text {name} has {len(ids)} tokens; give {FEWEST} at least, {TOKENS} are best")
    return Calibration(_windows(ids[:TOKENS], window), name, hashlib.sha256(text.encode()).hexdigest())


def card_tokens(tokenizer: Tokenizer, config: DecoderConfig) -> torch.Tensor:
    """The quality card's text, int64 [B, T], about CARD_TOKENS in all; a text that nothing is solved on."""
    return _windows(_encode(tokenizer, _shipped("card.txt"), config)[:CARD_TOKENS], _window(config))


def _window(config: DecoderConfig) -> int:
    return min(WINDOW, config.original_context or config.max_position_embeddings)


def _windows(ids: torch.Tensor, window: int) -> torch.Tensor:
    return ids[: len(ids) // window * window].view(-1, window)


def _shipped(name: str) -> str:
    return (_TEXTS / name).read_text("utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"calibration text {path} can't be read ({error}); give a file of UTF-8 text") from None


def _encode(tokenizer: Tokenizer, text: str, config: DecoderConfig) -> torch.Tensor:
    ids = torch.tensor(tokenizer.encode(text), dtype=torch.int64)
    if len(ids) and int(ids.max()) >= config.vocab_size:
        raise InputError(f"the tokenizer gives id {int(ids.max())}, the model has {config.vocab_size}: files of two models?")
    return ids
