"""BERT's uncased WordPiece tokenizer in plain Python: what the embedder reads, on the computer and on the phone.

Source: Devlin et al. 2018; the steps are those of the `tokenizers` types BertNormalizer, BertPreTokenizer and WordPiece.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_LONGEST_WORD = 100  # characters; a longer word is one [UNK]
_CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPiece:
    """A vocabulary: `vocab[id]` is a piece; those that continue a word start with ##."""

    def __init__(self, vocab: Sequence[str]) -> None:
        self._ids = {piece: index for index, piece in enumerate(vocab)}
        self._unknown, self._start, self._end = (self._ids[name] for name in ("[UNK]", "[CLS]", "[SEP]"))
        self._seen: dict[str, list[int]] = {}

    def encode(self, text: str, limit: int) -> list[int]:
        """[CLS] pieces [SEP], at most `limit` ids: the end of a longer text is left out."""
        ids: list[int] = []
        for word in _words(text):
            ids += self._pieces(word)
            if len(ids) >= limit - 2:
                break
        return [self._start, *ids[: limit - 2], self._end]

    def _pieces(self, word: str) -> list[int]:
        if word not in self._seen:
            self._seen[word] = self._cut(word)
        return self._seen[word]

    def _cut(self, word: str) -> list[int]:
        """Greedily the longest piece first."""
        if len(word) > _LONGEST_WORD:
            return [self._unknown]
        ids, start = [], 0
        while start < len(word):
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if mark + word[start:end] in self._ids), None)
            if end is None:
                return [self._unknown]
            ids.append(self._ids[mark + word[start:end]])
            start = end
        return ids


def _words(text: str) -> list[str]:
    if text.isascii():
        cleaned = "".join(_ascii_char(char) for char in text.lower())
    else:
        cleaned = "".join(map(_clean, text))
        decomposed = unicodedata.normalize("NFD", cleaned)
        plain = "".join(char for char in decomposed if unicodedata.category(char) != "Mn").lower()
        cleaned = "".join(f" {char} " if _is_punctuation(char) else char for char in plain)
    return cleaned.split()


def _ascii_char(char: str) -> str:
    if char.isalnum() or char == " ":
        return char
    if char in "\t\n\r":
        return " "
    return f" {char} " if char.isprintable() else ""


def _clean(char: str) -> str:
    code = ord(char)
    if char in "\t\n\r":
        return " "
    if code in (0, 0xFFFD) or unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs"):
        return ""
    if char.isspace():
        return " "
    return f" {char} " if any(low <= code <= high for low, high in _CJK) else char


def _is_punctuation(char: str) -> bool:
    code = ord(char)
    ascii_symbol = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_symbol or unicodedata.category(char).startswith("P")
