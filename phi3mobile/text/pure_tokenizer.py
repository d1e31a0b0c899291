"""tokenizer.json in plain Python, for phones without compiled packages: BPE with byte fallback (Llama) or byte level (GPT).

The steps are those of the library `tokenizers`, whose ids these equal: added tokens, normalizer, pre-tokenizer, merges by
rank. Two deviations: characters newer than this Python's Unicode tables may be split elsewhere, and other models than BPE
raise InputError.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Sequence
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.text.pure_stages import normalizer, pre_tokenizer
from phi3mobile.text.unicode_classes import SPACE

_REMEMBERED = 50_000  # words whose ids are kept

Ranked = Callable[[int, int], tuple[int, int] | None]  # two neighbours -> rank of their merge, the merged id


class PureTokenizer:
    """What `tokenizers.Tokenizer` is to tokenizer.py. Raises InputError for what is not supported, KeyError if damaged."""

    def __init__(self, config: dict[str, Any]) -> None:
        model = config["model"]
        if model.get("type", "BPE") != "BPE" or model.get("dropout") or not isinstance(model["vocab"], dict):
            raise InputError(f"the tokenizer's model is {model.get('type')!r}; without `tokenizers` only BPE can be read")
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise InputError("the tokenizer marks word parts; install the package `tokenizers` for it")
        self._vocab: dict[str, int] = model["vocab"]
        self._pieces = {index: piece for piece, index in self._vocab.items()}
        added = config.get("added_tokens") or []
        self._added_id = {token["content"]: token["id"] for token in added}
        pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        self._merges = {
            (self._vocab[left], self._vocab[right]): (rank, self._vocab[left + right])
            for rank, (left, right) in reversed(list(enumerate(pairs)))  # of two equal merges the first one counts
        }
        self._unknown = self._vocab.get(model.get("unk_token") or "")
        self._fuse, self._whole_words = bool(model.get("fuse_unk")), bool(model.get("ignore_merges"))
        bytes_ = [self._vocab.get(f"<0x{byte:02X}>") for byte in range(256)]
        self._bytes = bytes_ if model.get("byte_fallback") else None
        self._normalize = normalizer(config.get("normalizer"))
        self._pieces |= {t["id"]: self._normalize(t["content"]) if t["normalized"] else t["content"] for t in added}
        self._split = pre_tokenizer(config.get("pre_tokenizer"))
        self._cut = _word_cutter(self._vocab)
        words = [token for token in added if not token.get("special")]
        self._all, self._words = ((self._raw(tokens), self._late(tokens)) for tokens in (added, words))
        self._known: dict[str, list[int]] = {}

    def token_to_id(self, text: str) -> int | None:
        return self._added_id.get(text, self._vocab.get(text))

    def id_to_token(self, token: int) -> str | None:
        return self._pieces.get(token)

    def whole(self, text: str) -> list[int]:
        """Ids of a text in which added tokens are recognised."""
        return self._found(text, *self._all, start=True)

    def plain(self, text: str, first: bool) -> list[int]:
        """Ids of a text in which only added tokens that are not special are recognised; `first`: it starts the whole text."""
        return self._found(text, *self._words, start=first)

    def _raw(self, tokens: list[dict[str, Any]]) -> _Added:
        return _Added([token for token in tokens if not token["normalized"]], lambda text: text)

    def _late(self, tokens: list[dict[str, Any]]) -> _Added:
        return _Added([token for token in tokens if token["normalized"]], self._normalize)

    def _found(self, text: str, raw: _Added, late: _Added, start: bool) -> list[int]:
        ids: list[int] = []
        for piece, token in raw.find(text):
            if token is None:
                for part, word in late.find(self._normalize(piece)):
                    ids += self._ids(part, start) if word is None else [word]
                    start = False
            else:
                ids.append(token)
            start = False
        return ids

    def _ids(self, text: str, first: bool) -> list[int]:
        ids: list[int] = []
        for word in self._split([text], first) if text else ():
            for part in self._cut(word):
                known = self._known.get(part)
                if known is None:
                    known = self._word(part)
                    if len(self._known) < _REMEMBERED and len(part) < 64:
                        self._known[part] = known
                ids += known
        return ids

    def _word(self, word: str) -> list[int]:
        if self._whole_words and word in self._vocab:
            return [self._vocab[word]]
        return merge(self._characters(word), lambda left, right: self._merges.get((left, right)))

    def _characters(self, word: str) -> list[int]:
        ids: list[int] = []
        unknown = False  # the id before stands for unknown characters
        for char in word:
            known = self._vocab.get(char)
            codes = [self._bytes[byte] for byte in char.encode()] if known is None and self._bytes else [known]
            found = [code for code in codes if code is not None]
            if len(found) == len(codes):
                ids += found
                unknown = False
            elif self._unknown is not None:
                if not (unknown and self._fuse):
                    ids.append(self._unknown)
                unknown = True
        return ids


def merge(ids: list[int], ranked: Ranked) -> list[int]:
    """Byte pair encoding: the pair of least rank is merged first, of equal ranks the leftmost; O(n log n)."""
    if len(ids) < 2:
        return ids
    ids, end = list(ids), len(ids)
    after, before = list(range(1, end + 1)), list(range(-1, end - 1))
    heap: list[tuple[int, int, int, int, int]] = []  # rank, left place, both ids, the merged id

    def offer(left: int, right: int) -> None:
        found = ranked(ids[left], ids[right])
        if found:
            heapq.heappush(heap, (found[0], left, ids[left], ids[right], found[1]))

    for left in range(end - 1):
        offer(left, left + 1)
    while heap:
        _, left, first, second, merged = heapq.heappop(heap)
        right = after[left]
        if ids[left] != first or right >= end or ids[right] != second:
            continue  # one of the two was merged with another meanwhile
        ids[left], ids[right] = merged, -1
        after[left] = after[right]
        if after[left] < end:
            before[after[left]] = left
            offer(left, after[left])
        if before[left] >= 0:
            offer(before[left], left)
    return [token for token in ids if token >= 0]


def _word_cutter(vocab: dict[str, int]) -> Callable[[str], Sequence[str]]:
    """Llama's vocabularies see a text as one word. If no piece has ▁ after another character, no merge crosses such a
    place: cutting there changes no id, and words can be remembered."""
    if "▁" in vocab and not any(re.search("[^▁]▁", piece) for piece in vocab):
        return re.compile("▁*[^▁]+|▁+").findall
    return lambda word: (word,)


class _Added:
    """Added tokens in a text: leftmost, and of several the longest."""

    def __init__(self, tokens: list[dict[str, Any]], normalize: Callable[[str], str]) -> None:
        self._tokens = {normalize(token["content"]): token for token in tokens}
        texts = sorted((text for text in self._tokens if text), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, texts)) or "(?!)")

    def find(self, text: str) -> list[tuple[str, int | None]]:
        """(piece, id of the added token or None) for all of `text`."""
        pieces: list[tuple[str, int | None]] = []
        done = 0
        for match in self._pattern.finditer(text):
            token, (start, stop) = self._tokens[match.group()], match.span()
            if token.get("single_word") and (_is_word(text[start - 1 : start]) or _is_word(text[stop : stop + 1])):
                continue
            if token.get("lstrip"):
                start = max(done, len(text[:start].rstrip(SPACE)))
            if token.get("rstrip"):
                stop = len(text) - len(text[stop:].lstrip(SPACE))
            if done < start:
                pieces.append((text[done:start], None))
            pieces.append((text[start:stop], token["id"]))
            done = stop
        return [*pieces, (text[done:], None)] if done < len(text) else pieces


def _is_word(char: str) -> bool:
    return bool(char) and (char.isalnum() or char == "_")
