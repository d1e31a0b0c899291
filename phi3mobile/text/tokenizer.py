"""Text to token ids and back: one Tokenizer over tokenizer.json, sentencepiece and tiktoken vocabularies.

A vocabulary has *control* tokens (<|user|>, <|end|>, </s>, ...: every added token that is not mere whitespace) and
plain ones. Text that people wrote must never become a control token, so `encode_spans` takes text with the knowledge of
who wrote which part. BOS is never added here: where a model wants one, its chat template writes it.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from phi3mobile.errors import InputError
from phi3mobile.text.byte_level import byte_level_alphabet
from phi3mobile.text.pure_tokenizer import PureTokenizer
from phi3mobile.text.unicode_classes import SPACE as _SPACE

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# cl100k's pre-tokenizer and phi-3-small's control tokens (docs: tiktoken's cl100k_base; Phi-3-small's tokenizer).
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_PHI3_SMALL = {
    "<|endoftext|>": 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|system|>": 100261,
    "<|user|>": 100262,
    "<|assistant|>": 100263,
    "<|end|>": 100266,
    "<|endofprompt|>": 100276,
}
# Its other ids up to 100351 are spelled too, as <|dummy_id_N|>; the model never says them.
_PHI3_SMALL_DUMMIES = (100264, 100265, 100256, *range(100267, 100276), *range(100277, 100352))


@dataclass(frozen=True)
class AddedToken:
    """A token matched in the text before any other; lstrip/rstrip swallow the whitespace beside it."""

    id: int
    lstrip: bool = False
    rstrip: bool = False


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
    """A vocabulary. The three loaders below give it its backend as functions.

    plain(text, first): ids of text without any added token; `first` is False after an added token.
    piece_bytes(id): bytes of a token that was not added; b"" if there is none.
    piece_id(text): id of a vocabulary piece spelled so. whole(text): the backend's own ids of a text with added tokens.
    strips_space: decoding drops one leading space, which encoding put there (sentencepiece's dummy prefix).
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
    ):
        self._plain, self._piece_bytes, self._piece_id, self._added = plain, piece_bytes, piece_id, added
        self._whole = whole or (lambda text: self._split([(text, True)]))
        self._strips_space = strips_space
        self._added_bytes = {token.id: text.encode() for text, token in added.items()}
        self.special_ids: dict[str, int] = {text: token.id for text, token in added.items() if text.strip(_SPACE)}
        self._text_of = {token: text for text, token in self.special_ids.items()}
        self._control = _any_of(self.special_ids)
        self._spacing = _any_of(added.keys() - self.special_ids.keys())
        self._all = _any_of(added)
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
            for match in [*(self._all if trusted else self._spacing).finditer(text), None]:
                piece = text[position : match.start() if match else None]
                piece = piece.lstrip(_SPACE) if swallow else piece
                buffer, swallow = buffer + piece, swallow and not piece
                if match and swallow and match.group() not in self.special_ids:
                    position = match.end()  # a token of mere whitespace, swallowed too
                elif match:
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


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder: tokenizer.json, else tokenizer.model, else a *.tiktoken ranks file."""
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        return _load_json(folder / "tokenizer.json")
    if (folder / "tokenizer.model").is_file():
        return _load_sentencepiece(folder / "tokenizer.model")
    ranks = sorted(folder.glob("*.tiktoken"))
    if len(ranks) == 1:
        return _load_tiktoken(ranks[0])
    found = f"{len(ranks)} *.tiktoken files" if ranks else "no tokenizer"
    raise InputError(f"{folder}: {found}; put one of tokenizer.json, tokenizer.model, *.tiktoken there")


def _load_json(path: Path) -> Tokenizer:
    try:
        config = json.loads(path.read_text("utf-8"))
        backend = _native(config) or PureTokenizer(config)
        vocab = config["model"]["vocab"]
        added = {t["content"]: AddedToken(t["id"], t["lstrip"], t["rstrip"]) for t in config.get("added_tokens") or []}
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # tokenizers raises bare Exception
        raise _damaged(path, error) from error
    for content, token in added.items():
        if backend.token_to_id(content) != token.id:  # tokenizers numbers what follows a gap anew
            raise _damaged(path, f"added token {content} has id {token.id}, which leaves a gap in the vocabulary")

    decoder = config.get("decoder") or {}
    decoders = {step["type"]: step for step in decoder.get("decoders", [decoder]) if step}
    if "ByteLevel" in decoders:
        unicode_to_byte = byte_level_alphabet()

        def piece_bytes(token: int) -> bytes:
            piece = backend.id_to_token(token) or ""
            if all(char in unicode_to_byte for char in piece):
                return bytes(unicode_to_byte[char] for char in piece)
            return piece.encode()

    elif "ByteFallback" in decoders or "Metaspace" in decoders:

        def piece_bytes(token: int) -> bytes:
            return _sentencepiece_bytes(backend.id_to_token(token) or "")

    else:
        names = ", ".join(decoders) or "none"
        raise InputError(f"{path}: decoder {names} is not supported; allowed: ByteLevel, ByteFallback, Metaspace")

    strip, metaspace = decoders.get("Strip", {}), decoders.get("Metaspace", {})
    return Tokenizer(
        plain=backend.plain,
        whole=backend.whole,
        piece_bytes=piece_bytes,
        piece_id=backend.token_to_id,
        added=added,
        vocab_size=1 + max(vocab.values()) if isinstance(vocab, dict) else len(vocab),
        strips_space=(strip.get("content") == " " and strip.get("start") == 1)
        or metaspace.get("prepend_scheme", "never") != "never",
    )


class _Native:
    """The compiled library, with the methods of PureTokenizer."""

    def __init__(self, tokenizers: ModuleType, config: dict) -> None:
        native = tokenizers.Tokenizer.from_str(json.dumps(config))
        native.no_truncation()
        native.no_padding()
        self._native, self.token_to_id, self.id_to_token = native, native.token_to_id, native.id_to_token
        # The same model without its added tokens: nothing in a text can become a control token.
        self._start, self._middle = tokenizers.Tokenizer(native.model), tokenizers.Tokenizer(native.model)
        for plain in (self._start, self._middle):
            if native.normalizer:
                plain.normalizer = native.normalizer
            if native.pre_tokenizer:
                plain.pre_tokenizer = native.pre_tokenizer
        pre = config.get("pre_tokenizer") or {}
        if pre.get("type") == "Metaspace" and pre.get("prepend_scheme") == "first":
            metaspace = tokenizers.pre_tokenizers.Metaspace
            self._middle.pre_tokenizer = metaspace(pre["replacement"], "never", pre.get("split", True))

    def whole(self, text: str) -> list[int]:
        return self._native.encode(text, add_special_tokens=False).ids

    def plain(self, text: str, first: bool) -> list[int]:
        return (self._start if first else self._middle).encode(text, add_special_tokens=False).ids


def _native(config: dict) -> _Native | None:
    """None where `tokenizers` is not installed: on a phone."""
    try:
        import tokenizers
    except ImportError:
        return None
    return _Native(tokenizers, config)


def _load_sentencepiece(path: Path) -> Tokenizer:
    """As tokenizer.json on every text whose control tokens are matched before normalizing (Phi-3: all but </s>)."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
        size = processor.GetPieceSize()
    except Exception as error:
        raise _damaged(path, error) from error
    if not size:
        raise _damaged(path, "no pieces")
    own = [i for i in range(size) if processor.IsControl(i) or processor.IsUnknown(i)]
    added = {processor.IdToPiece(i): AddedToken(i) for i in own} | _read_added_tokens(path.parent)
    dummy_prefix = processor.EncodeAsPieces("a")[0].startswith("▁")

    def piece_id(text: str) -> int | None:
        found = processor.PieceToId(text)
        return None if processor.IsUnknown(found) else found

    return Tokenizer(
        plain=lambda text, first: processor.EncodeAsIds(text),
        piece_bytes=lambda token: _sentencepiece_bytes(processor.IdToPiece(token)) if token < size else b"",
        piece_id=piece_id,
        added=added,
        vocab_size=size,
        strips_space=dummy_prefix,
    )


def _load_tiktoken(path: Path) -> Tokenizer:
    import tiktoken

    try:
        rows = [line.split() for line in path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
    except (ValueError, binascii.Error) as error:
        raise _damaged(path, error) from error
    of_rank = {rank: token for token, rank in ranks.items()}
    if len(of_rank) != len(rows) or not {bytes([b]) for b in range(256)} <= ranks.keys():
        raise _damaged(path, "a rank or a single byte is missing or given twice")
    first_special = min(_PHI3_SMALL.values())
    if min(of_rank) < 0 or max(of_rank) >= first_special:
        raise InputError(f"{path}: rank {max(of_rank)}; only cl100k (ranks below {first_special}) is supported")
    known = _PHI3_SMALL | {f"<|dummy_id_{number}|>": token for number, token in enumerate(_PHI3_SMALL_DUMMIES)}
    encoding = tiktoken.Encoding(path.stem, pat_str=_CL100K, mergeable_ranks=ranks, special_tokens={})
    return Tokenizer(
        plain=lambda text, first: encoding.encode_ordinary(text),
        piece_bytes=lambda token: of_rank.get(token, b""),
        piece_id=lambda text: ranks.get(text.encode("utf-8", "replace")),
        added={text: AddedToken(token) for text, token in known.items()} | _read_added_tokens(path.parent),
        vocab_size=1 + max(of_rank),
    )


def _read_added_tokens(folder: Path) -> dict[str, AddedToken]:
    """added_tokens.json (text -> id), then tokenizer_config.json's added_tokens_decoder, which also has the flags."""
    added: dict[str, AddedToken] = {}
    try:
        path = folder / "added_tokens.json"
        if path.is_file():
            added |= {text: AddedToken(int(token)) for text, token in json.loads(path.read_text("utf-8")).items()}
        path = folder / "tokenizer_config.json"
        if path.is_file():
            for token, entry in json.loads(path.read_text("utf-8")).get("added_tokens_decoder", {}).items():
                flags = bool(entry.get("lstrip")), bool(entry.get("rstrip"))
                added[entry["content"]] = AddedToken(int(token), *flags)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    return added


def _sentencepiece_bytes(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    # Leftmost-longest, as tokenizers matches; "(?!)" never matches.
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


def _damaged(path: Path, why: object) -> InputError:
    reason = " ".join(str(why).split())[:200]
    return InputError(f"{path}: damaged or not a tokenizer ({reason}); download or export it again")
