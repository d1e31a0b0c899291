"""Text and names from outside as valid Unicode: what a database stores, a tokenizer encodes and a terminal prints."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Any

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_LONE = re.compile("[\ud800-\udfff]")
_REORDERS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def valid(text: str) -> str:
    """`text` with surrogate pairs joined and each lone surrogate as U+FFFD, so that it can be encoded; else as it is."""
    if not _LONE.search(text):
        return text
    return _LONE.sub("\ufffd", _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text))


def valid_values(value: Any) -> Any:
    """A JSON value whose texts, keys too, are as `valid` makes them: JSON can spell halves of characters."""
    if isinstance(value, str):
        return valid(value)
    if isinstance(value, dict):
        return {valid(key): valid_values(inner) for key, inner in value.items()}
    return [valid_values(inner) for inner in value] if isinstance(value, list) else value


def printable(name: str | os.PathLike[str]) -> str:
    r"""A file's name, or a line with such names, for people: bytes that are not UTF-8 as \xe9, controls as \x1b.

    What reorders text on the screen (bidirectional controls) is written as \u202e. Valid names stay as they are.
    """
    text = os.fspath(name)
    if text.isprintable():
        return text
    return "".join(_escaped(char) if _unprintable(char) else char for char in text)


def _unprintable(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in _REORDERS


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode could not read
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
