"""The normalizers and pre-tokenizers of tokenizer.json in plain Python, as functions over text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.text.byte_level import byte_level_alphabet
from phi3mobile.text.unicode_classes import compile_pattern

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
Split = Callable[[list[str], bool], list[str]]  # pieces, whether the first one starts the text


def normalizer(config: dict[str, Any] | None) -> Callable[[str], str]:
    if config is None:
        return lambda text: text
    kind = config["type"]
    if kind == "Sequence":
        steps = [normalizer(step) for step in config["normalizers"]]
        return lambda text: _through(steps, text)
    if kind == "Prepend":
        return lambda text: config["prepend"] + text if text else text
    if kind == "Replace":
        pattern = _pattern(config["pattern"])
        return lambda text: pattern.sub(lambda match: config["content"], text)
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return lambda text: unicodedata.normalize(kind, text)
    if kind == "Lowercase":
        return str.lower
    raise InputError(f"the tokenizer's normalizer {kind} needs the package `tokenizers`; install it")


def _through(steps: list[Callable[[str], str]], text: str) -> str:
    for step in steps:
        text = step(text)
    return text


def pre_tokenizer(config: dict[str, Any] | None) -> Split:
    if config is None:
        return lambda pieces, first: pieces
    kind = config["type"]
    if kind == "Sequence":
        steps = [pre_tokenizer(step) for step in config["pretokenizers"]]

        def in_turn(pieces: list[str], first: bool) -> list[str]:
            for step in steps:
                pieces = step(pieces, first)
            return pieces

        return in_turn
    if kind == "Split":
        pattern, behavior, invert = _pattern(config["pattern"]), config["behavior"], bool(config.get("invert"))
        return lambda pieces, first: [part for piece in pieces for part in _parts(pattern, piece, behavior, invert)]
    if kind == "Digits":
        pattern = compile_pattern(r"\p{N}")
        behavior = "Isolated" if config.get("individual_digits") else "Contiguous"
        return lambda pieces, first: [part for piece in pieces for part in _parts(pattern, piece, behavior, False)]
    if kind == "ByteLevel":
        return _byte_level(config)
    if kind == "Metaspace":
        return _metaspace(config)
    raise InputError(f"the tokenizer's pre-tokenizer {kind} needs the package `tokenizers`; install it")


def _byte_level(config: dict[str, Any]) -> Split:
    letters = {byte: letter for letter, byte in byte_level_alphabet().items()}
    pattern = compile_pattern(GPT2) if config.get("use_regex", True) else None

    def split(pieces: list[str], first: bool) -> list[str]:
        if config.get("add_prefix_space"):
            pieces = [piece if piece.startswith(" ") else " " + piece for piece in pieces]
        if pattern:
            pieces = [part for piece in pieces for part in _parts(pattern, piece, "Isolated", False)]
        return ["".join(map(letters.__getitem__, piece.encode())) for piece in pieces]

    return split


def _metaspace(config: dict[str, Any]) -> Split:
    mark, scheme = config["replacement"], config.get("prepend_scheme", "always")
    pattern = re.compile(re.escape(mark))

    def split(pieces: list[str], first: bool) -> list[str]:
        pieces = [piece.replace(" ", mark) for piece in pieces]
        for at, piece in enumerate(pieces):
            if not piece.startswith(mark) and (scheme == "always" or (scheme == "first" and first and at == 0)):
                pieces[at] = mark + piece
        if not config.get("split", True):
            return pieces
        return [part for piece in pieces for part in _parts(pattern, piece, "MergedWithNext", False)]

    return split


def _pattern(config: dict[str, str]) -> re.Pattern[str]:
    return compile_pattern(config["Regex"]) if "Regex" in config else re.compile(re.escape(config["String"]))


def _parts(pattern: re.Pattern[str], text: str, behavior: str, invert: bool) -> list[str]:
    """`text` cut at the matches of `pattern`, which stay as `behavior` says."""
    cuts: list[tuple[str, bool]] = []  # piece, whether it is a delimiter
    done = 0
    for match in pattern.finditer(text):
        start, stop = match.span()
        if start > done:
            cuts.append((text[done:start], invert))
        if stop > start:
            cuts.append((text[start:stop], not invert))
        done = max(done, stop)
    if done < len(text):
        cuts.append((text[done:], invert))
    if behavior == "Isolated":
        return [piece for piece, _ in cuts]
    if behavior == "Removed":
        return [piece for piece, delimiter in cuts if not delimiter]
    if behavior == "Contiguous":
        joins = [at for at in range(1, len(cuts)) if cuts[at][1] == cuts[at - 1][1]]
    elif behavior == "MergedWithPrevious":
        joins = [at for at in range(1, len(cuts)) if cuts[at][1] and not cuts[at - 1][1]]
    elif behavior == "MergedWithNext":
        joins = [at + 1 for at in range(len(cuts) - 1) if cuts[at][1] and not cuts[at + 1][1]]
    else:
        raise InputError(f"the tokenizer splits with behavior {behavior!r}; install the package `tokenizers` for it")
    parts: list[str] = []
    for at, (piece, _) in enumerate(cuts):
        if at in joins:
            parts[-1] += piece
        else:
            parts.append(piece)
    return parts
