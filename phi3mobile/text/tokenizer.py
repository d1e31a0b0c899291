"""Text to token ids and back: one Tokenizer over every kind of vocabulary (text/vocabularies.py loads them).

A vocabulary has *control* tokens (<|user|>, <|end|>, ...: added tokens that are special and not mere whitespace) and
plain ones; an added token that is not special (<think>, a word of a fine-tune) is one id in anybody's text, and text.
Text that people wrote must never become a control token, so `encode_spans` takes text with the knowledge of who wrote
which part. BOS is never added here: where a model wants one, its chat template writes it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from phi3mobile.errors import InputError
from phi3mobile.text.unicode_classes import SPACE as _SPACE


@dataclass(frozen=True)
class AddedToken:
    """A token matched in the text before any other; lstrip/rstrip swallow the whitespace beside it.

    `special`: it structures a text (control); else it is a word like any other. `shown`: its text, if it is not spelled so.
    """

    id: int
    lstrip: bool = False
    rstrip: bool = False
    special: bool = True
    shown: str | None = None


class TextStream:
    """Tokens in, text out, never half a character. Malformed bytes become U+FFFD as soon as they are sure to be."""

    def __init__(self, token_bytes: Callable[[int], bytes], skip: frozenset[int], strip_space: bool):
        self._token_bytes, self._skip, self._strip_space = token_bytes, skip, strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that `token` completes; "" while a character is unfinished or the token is skipped."""
        data = b"" if token in self._skip else self._token_bytes(token)
        if self._strip_space and data:
            data, self._strip_space = data.removeprefix(b" "), False
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left: U+FFFD if the last character never completed."""
        return self._decoder.decode(b"", final=True)


class Tokenizer:
    """A vocabulary, its backend given as functions.

    plain(text, first): ids of text in which no control token is recognised; `first` is False after one.
    piece_bytes(id): bytes of a token that was not added; b"" if there is none.
    piece_id(text): id of a vocabulary piece spelled so. whole(text): the backend's own ids of a text with added tokens.
    strips_space: decoding drops one leading space, which encoding put there (sentencepiece's dummy prefix).
    bos: text of the begin token, if the vocabulary names one. around: ids that its post-processor puts before and after a
    text; encode does not, evaluation does.
    """

    def __init__(
        self,
        plain: Callable[[str, bool], list[int]],
        piece_bytes: Callable[[int], bytes],
        piece_id: Callable[[str], int | None],
        added: dict[str, AddedToken],
        vocab_size: int,
        strips_space: bool = False,
        whole: Callable[[str], list[int]] | None = None,
        bos: str | None = None,
        around: tuple[list[int], list[int]] = ([], []),
    ):
        self._plain, self._piece_bytes, self._piece_id, self._added = plain, piece_bytes, piece_id, added
        self._whole = whole or (lambda text: self._split([(text, True)]))
        self._strips_space, self.bos, self.around = strips_space, bos, around
        self._added_bytes = {t.id: (text if t.shown is None else t.shown).encode() for text, t in added.items()}
        self.special_ids: dict[str, int] = {text: t.id for text, t in added.items() if t.special and text.strip(_SPACE)}
        self._text_of = {token: text for text, token in self.special_ids.items()}
        self._control = any_of(self.special_ids)
        self.vocab_size = max(vocab_size, 1 + max(self._added_bytes, default=-1))  # 1 + the greatest id

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of `text`; no BOS is added. special=False reads control-token text (<|user|>) as plain text."""
        _check_unicode(text)
        return self._whole(text) if special else self._split([(text, False)])

    def encode_spans(self, spans: Iterable[tuple[str, bool]]) -> list[int]:
        """Ids of the joined texts of (text, trusted) spans, control tokens being recognised in trusted spans only.

        Exactly encode(joined text) unless an untrusted span takes part in control-token text: only then is the text
        split at the trusted control tokens and the rest encoded as plain text.
        """
        spans = _merge(spans)
        text = "".join(part for part, _ in spans)
        _check_unicode(text)
        trusted, end = [], 0
        for part, is_trusted in spans:
            start, end = end, end + len(part)
            trusted += [(start, end)] if is_trusted else []
        found = [match.span() for match in self._control.finditer(text)]
        if all(any(a <= start and stop <= b for a, b in trusted) for start, stop in found):
            ids = self._whole(text)
            # A normalizer can make control tokens of look-alikes; then there are more than the text spells.
            if sum(token in self._text_of for token in ids) <= len(found):
                return ids
        return self._split(spans)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of a whole sequence, control tokens as their text, malformed UTF-8 as U+FFFD."""
        data = b"".join(map(self.token_bytes, ids))
        return (data.removeprefix(b" ") if self._strips_space else data).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; b"" for ids without a token (padding of the embedding)."""
        found = self._added_bytes.get(token)
        if found is None:
            found = self._piece_bytes(token) if 0 <= token < self.vocab_size else b""
        return found

    def id_of(self, text: str) -> int | None:
        """Id of the control token or vocabulary piece spelled `text`, or None."""
        token = self._added.get(text)
        return self._piece_id(text) if token is None else token.id

    def stream(self, skip: frozenset[int] | None = None, at_start: bool = False) -> TextStream:
        """Incremental decoding that leaves out the `skip` ids (default: all control tokens).

        at_start=False continues a prompt: the text is decode(prompt + ids)[len(decode(prompt)):], so a sentencepiece
        reply starts with the space of its first piece. at_start=True is decode(ids): that one space is dropped.
        """
        skip = frozenset(self._text_of) if skip is None else skip
        return TextStream(self.token_bytes, skip, at_start and self._strips_space)

    def _split(self, spans: list[tuple[str, bool]]) -> list[int]:
        ids: list[int] = []
        buffer, swallow = "", False  # plain text not yet encoded; inside the whitespace after an rstrip token
        for text, trusted in spans:
            position = 0
            for match in [*(self._control.finditer(text) if trusted else ()), None]:
                piece = text[position : match.start() if match else None]
                piece = piece.lstrip(_SPACE) if swallow else piece
                buffer, swallow = buffer + piece, swallow and not piece
                if match:
                    token = self._added[match.group()]
                    ids += self._encode_plain(buffer.rstrip(_SPACE) if token.lstrip else buffer, first=not ids)
                    ids.append(token.id)
                    buffer, swallow, position = "", token.rstrip, match.end()
        return ids + self._encode_plain(buffer, first=not ids)

    def _encode_plain(self, text: str, first: bool) -> list[int]:
        ids = self._plain(text, first) if text else []
        for token in ids:
            control = self._text_of.get(token)
            if control and control in text:  # e.g. a user-defined symbol, which sentencepiece can't be told to ignore
                raise InputError(f"this tokenizer reads {control!r} as a control token even in plain text: remove it")
        return ids


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Any of the texts: leftmost-longest, as tokenizers matches; without texts it never matches."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _merge(spans: Iterable[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Neighbours of equal trust made one: a template may spell a control token across two of its segments."""
    merged: list[tuple[str, bool]] = []
    for text, trusted in spans:
        if text and merged and merged[-1][1] == trusted:
            merged[-1] = (merged[-1][0] + text, trusted)
        elif text:
            merged.append((text, trusted))
    return merged


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"text has a lone surrogate at character {error.start}: give valid Unicode") from error
