"""Text and pictures that weights are solved on, and the quality card's text; `bench --perplexity` reads another one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from phi3mobile.errors import InputError
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.vision import plan_crops
from phi3mobile.pictures import open_picture
from phi3mobile.text.tokenizer import Tokenizer

WINDOW = 512  # tokens of one sequence
TOKENS = 20480  # read at most: more gains little and costs time
FEWEST = 2048  # with less, layers learn the text by heart
CARD_TOKENS = 1024
_TEXT_SUFFIXES = (".txt", ".md")
_TEXTS = Path(__file__).parent / "text"


@dataclass(frozen=True)
class Calibration:
    """Windows of tokens int64 [B, T], and where they are from."""

    tokens: torch.Tensor
    name: str
    sha256: str
    pictures: tuple[Path, ...] = ()  # weights are solved on their rows too, and a tower's loss is measured on them


def calibration_of(tokenizer: Tokenizer, config: DecoderConfig, path: str | Path | None = None) -> Calibration:
    """The user's text, or the one that ships; a folder's texts are one, in the order of their names, its pictures beside it.

    InputError: not readable, too short, ids that the model does not have, pictures that it does not see.
    """
    name, text = "phi3mobile's own", _shipped("calibration.txt")
    pictures: tuple[Path, ...] = ()
    if path is not None and Path(path).is_dir():
        found, pictures = _folder(Path(path), config)
        name, text = (str(path), found) if found else (f"{name}, pictures of {path}", text)
    elif path is not None:
        name, text = str(path), _read(Path(path))
    ids, window = _encode(tokenizer, text, config), _window(config)
    if len(ids) < FEWEST:
        raise InputError(f"calibration text {name} has {len(ids)} tokens; give {FEWEST} at least, {TOKENS} are best")
    digest = hashlib.sha256(text.encode())
    for picture in pictures:
        digest.update(picture.read_bytes())
    return Calibration(_windows(ids[:TOKENS], window), name, digest.hexdigest(), pictures)


def card_tokens(tokenizer: Tokenizer, config: DecoderConfig) -> torch.Tensor:
    """The quality card's text, int64 [B, T], about CARD_TOKENS in all; a text that nothing is solved on."""
    return _windows(_encode(tokenizer, _shipped("card.txt"), config)[:CARD_TOKENS], _window(config))


def _window(config: DecoderConfig) -> int:
    return min(WINDOW, config.original_context or config.max_position_embeddings)


def _windows(ids: torch.Tensor, window: int) -> torch.Tensor:
    return ids[: len(ids) // window * window].view(-1, window)


def _shipped(name: str) -> str:
    return (_TEXTS / name).read_text("utf-8")


def _folder(path: Path, config: DecoderConfig) -> tuple[str, tuple[Path, ...]]:
    """Its texts as one, and its pictures. InputError: another kind of file, or a model without eyes."""
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    texts = [file for file in files if file.suffix.lower() in _TEXT_SUFFIXES]
    pictures = tuple(file for file in files if file not in texts)
    if not files:
        raise InputError(f"calibration folder {path} is empty; put texts (.txt, .md) and pictures in it")
    if pictures and config.vision is None:
        raise InputError(f"calibration folder {path} has {pictures[0].name}, and this model sees no pictures: leave only texts")
    for picture in pictures:
        height, width = open_picture(picture).shape[:2]
        plan_crops(width, height, 1)  # raises where it is too narrow
    return "\n\n".join(map(_read, texts)), pictures


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
