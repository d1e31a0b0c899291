"""Writes unicode_tables.inc, what unicode.cpp knows of characters, from this Python's unicodedata.

    python tests/core/text/unicode_tables.py > phi3mobile/core/src/text/unicode_tables.inc

Python 3.11's Unicode version is the one in use: the core's ids equal those of the Python tokenizer on a phone.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable

# As phi3mobile/text/unicode_classes.py: the planes between and after hold no letters and numbers.
CODES = (*range(0x40000), *range(0xE0000, 0xE0200))
CATEGORIES = sorted({unicodedata.category(chr(code)) for code in CODES})


def runs(value: Callable[[int], int]) -> list[tuple[int, int]]:
    """(first code, value) of every run of codes with one value; 0 where there are no codes."""
    found: list[tuple[int, int]] = []
    for code in (*CODES[:0x40000], 0x40000, *CODES[0x40000:], 0xE0200):
        of = 0 if code in (0x40000, 0xE0200) else value(code)
        if not found or found[-1][1] != of:
            found.append((code, of))
    return found


def array(kind: str, name: str, values: Iterable[int]) -> str:
    lines, line = [], ""
    for text in (f"{value}," for value in values):
        if len(line) + len(text) > 126:
            lines.append(line)
            line = ""
        line += text
    return f"const {kind} {name}[] = {{\n" + "\n".join([*lines, line]) + "};\n"


def ends_word(text: str) -> bool:
    """Whether a capital sigma after `text` is written as at the end of a word."""
    return (text + "\u03a3").lower().endswith("\u03c2")


def sigma(code: int) -> int:
    """1: cased, 2: ignored between a cased letter and a sigma, else 0."""
    char = chr(code)
    return 1 if ends_word(char) else 2 if ends_word("A" + char) else 0


def decompositions() -> Iterable[tuple[int, bool, list[int]]]:
    """(code, whether only for compatibility, what it stands for) in one step."""
    for code in CODES:
        parts = unicodedata.decomposition(chr(code)).split()
        if parts:
            compatible = parts[0].startswith("<")
            yield code, compatible, [int(part, 16) for part in parts[compatible:]]


def tables() -> str:
    steps = list(decompositions())
    pool: list[int] = []
    places = [0]
    for _, _, parts in steps:
        pool += parts
        places.append(len(pool))
    pairs = sorted(
        (*parts, code)
        for code, compatible, parts in steps
        if not compatible and len(parts) == 2 and unicodedata.normalize("NFC", chr(code)) == chr(code)
    )
    lower = [(code, chr(code).lower()) for code in CODES if chr(code).lower() != chr(code)]
    text = "// Made by tests/core/text/unicode_tables.py; do not edit.\n"
    text += f'const char kUnicodeVersion[] = "{unicodedata.unidata_version}";\n'
    text += "const char* const kCategoryNames[] = {" + ", ".join(f'"{name}"' for name in CATEGORIES) + "};\n"
    text += "// First code of a run << 5 | 1 + its category; 0: none.\n"
    categories = runs(lambda code: 1 + CATEGORIES.index(unicodedata.category(chr(code))))
    text += array("uint32_t", "kCategories", (code << 5 | of for code, of in categories))
    text += "// First code of a run << 8 | combining class.\n"
    text += array(
        "uint32_t", "kCombining", (code << 8 | of for code, of in runs(lambda code: unicodedata.combining(chr(code))))
    )
    text += "// Code << 1 | whether its decomposition is for compatibility only; where its parts start; the parts.\n"
    text += array("uint32_t", "kDecomposed", (code << 1 | compatible for code, compatible, _ in steps))
    text += array("uint16_t", "kPartsAt", places)
    text += array("uint32_t", "kParts", pool)
    text += "// Two characters and the one that they compose, in order.\n"
    text += array("uint32_t", "kComposed", (code for pair in pairs for code in pair))
    text += "// A character and its lower case; U+0130's has a dot more.\n"
    text += array("uint32_t", "kLower", (code for upper, to in lower for code in (upper, ord(to[0]))))
    text += "// First code of a run << 2 | 1: cased, 2: ignored before and after a capital sigma.\n"
    return text + array("uint32_t", "kSigma", (code << 2 | of for code, of in runs(sigma)))


if __name__ == "__main__":
    sys.stdout.write(tables())
