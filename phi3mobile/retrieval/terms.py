"""A question to the terms that are looked up: its telling words, as phrases of FTS5's query language."""

from __future__ import annotations

import re

from phi3mobile.retrieval.function_words import cut, function_words, language

MOST = 64  # terms of one question: a text that is pasted is not looked up to its end
SHORTEST = 4  # letters of the beginning that a word may be found by
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_CHARACTER = re.compile(f"([{_CJK}])")
_WORD = re.compile(f"[{_CJK}]+|[^\\W{_CJK}]+(?:['’]t\\b)?")  # "don't" is one word


def spaced(text: str) -> str:
    """Chinese, Japanese and Korean characters as words of their own: FTS5 sees words only between spaces."""
    return _CHARACTER.sub(r" \1 ", text)


def terms(question: str) -> list[str]:
    """The question's words, each once, without function words; all of them if there are no others.

    A run of Chinese, Japanese or Korean characters is its pairs of neighbours, so that one shared character is no hit.
    """
    words = list(dict.fromkeys(_WORD.findall(question.lower())))
    runs = [word for word in words if _CHARACTER.match(word)]
    functions = function_words([word for word in words if word not in runs])
    telling = [part for word in words if word not in functions for part in (cut(word) if word in runs else [word])]
    return list(dict.fromkeys(term for part in telling or words for term in _phrases(part)))[:MOST]


def beginning(term: str) -> str:
    """A long word's term for all words that begin as it does, with another ending: "Rechnung" for "Rechnungen"; else ""."""
    word = term.strip('"')
    start = word[:-2].rstrip("aeiouys")  # without what the index would cut off
    return f'"{start}" *' if len(start) >= SHORTEST and word.isalpha() else ""


def language_of(question: str) -> str:
    """The question's language as far as its function words tell: "en", "de"; "" where they don't and its letters could be
    English, "other" where they could not.
    """
    ascii_ = all(char.isascii() for char in question if char.isalpha())
    return language(set(_WORD.findall(question.lower()))) or ("" if ascii_ else "other")


def _phrases(word: str) -> list[str]:
    if not _CHARACTER.match(word):
        return [f'"{word}"']
    pairs = [word[at : at + 2] for at in range(len(word) - 1)] or [word]
    return [f'"{" ".join(pair)}"' for pair in pairs]
