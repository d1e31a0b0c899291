"""The vocabularies of checkpoint folders as Tokenizers: tokenizer.json, sentencepiece's and tiktoken's files."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.files import read_object
from phi3mobile.models.companions import NAMES_OF_TOKENS
from phi3mobile.text.byte_level import byte_level_alphabet
from phi3mobile.text.pure_tokenizer import PureTokenizer
from phi3mobile.text.tokenizer import AddedToken, Tokenizer, any_of
from phi3mobile.text.unicode_classes import SPACE

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
# tokenizer_config.json names a token's role so: bos_token, ...
_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

Plain = Callable[[str, bool], list[int]]  # text, whether it starts a text -> ids


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
    named = named_tokens(path.parent)
    try:
        config = json.loads(path.read_text("utf-8"))
        vocab = config["model"]["vocab"]
        entries = config["added_tokens"] = _with_named(config.get("added_tokens") or [], named, vocab)
        backend = _native(config) or PureTokenizer(config)
        added = {t["content"]: _added_token(t, backend.id_to_token(t["id"]) or "") for t in entries}
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # tokenizers raises bare Exception
        raise _damaged(path, error) from error
    for content, token in added.items():
        if backend.token_to_id(content) != token.id:  # tokenizers numbers what follows a gap anew
            raise _damaged(path, f"added token {content} has id {token.id}, which leaves a gap in the vocabulary")

    bos, around = _around(path.parent, backend.token_to_id, _frame(config.get("post_processor")))
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
        bos=bos,
        around=around,
    )


class _Native:
    """The compiled library, with the methods of PureTokenizer."""

    def __init__(self, tokenizers: ModuleType, config: dict) -> None:
        native = tokenizers.Tokenizer.from_str(json.dumps(config))
        native.no_truncation()
        native.no_padding()
        self._native, self.token_to_id, self.id_to_token = native, native.token_to_id, native.id_to_token
        # The same model without its control tokens: nothing in a text can become one.
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        words = [t for t in config["added_tokens"] if not t["special"]]
        self._start, self._middle = tokenizers.Tokenizer(native.model), tokenizers.Tokenizer(native.model)
        for plain in (self._start, self._middle):
            if native.normalizer:
                plain.normalizer = native.normalizer
            if native.pre_tokenizer:
                plain.pre_tokenizer = native.pre_tokenizer
            plain.add_tokens([tokenizers.AddedToken(t["content"], **{flag: t[flag] for flag in flags}) for t in words])
        given = {self._start.token_to_id(t["content"]): t["id"] for t in words}
        self._renumbered = {new: token for new, token in given.items() if new != token}
        pre = config.get("pre_tokenizer") or {}
        if pre.get("type") == "Metaspace" and pre.get("prepend_scheme") == "first":
            metaspace = tokenizers.pre_tokenizers.Metaspace
            self._middle.pre_tokenizer = metaspace(pre["replacement"], "never", pre.get("split", True))

    def whole(self, text: str) -> list[int]:
        return self._native.encode(text, add_special_tokens=False).ids

    def plain(self, text: str, first: bool) -> list[int]:
        ids = (self._start if first else self._middle).encode(text, add_special_tokens=False).ids
        return [self._renumbered.get(token, token) for token in ids] if self._renumbered else ids


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

    start = [processor.bos_id()] if processor.bos_id() >= 0 else []
    bos, around = _around(path.parent, piece_id, (start, []), processor.IdToPiece(start[0]) if start else None)
    return Tokenizer(
        plain=_with_words(lambda text, first: processor.EncodeAsIds(text), added),
        piece_bytes=lambda token: _sentencepiece_bytes(processor.IdToPiece(token)) if token < size else b"",
        piece_id=piece_id,
        added=added,
        vocab_size=size,
        strips_space=dummy_prefix,
        bos=bos,
        around=around,
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
    added = {text: AddedToken(token) for text, token in known.items()} | _read_added_tokens(path.parent)
    encoding = tiktoken.Encoding(path.stem, pat_str=_CL100K, mergeable_ranks=ranks, special_tokens={})
    return Tokenizer(
        plain=_with_words(lambda text, first: encoding.encode_ordinary(text), added),
        piece_bytes=lambda token: of_rank.get(token, b""),
        piece_id=lambda text: ranks.get(text.encode("utf-8", "replace")),
        added=added,
        vocab_size=1 + max(of_rank),
        bos="<|endoftext|>",  # named by phi-3-small's tokenizer class, which adds none
    )


def _frame(post_processor: dict[str, Any] | None) -> tuple[list[int], list[int]]:
    """Ids that tokenizer.json's post-processor puts before and after one text."""
    before: list[int] = []
    after: list[int] = []
    for step in (post_processor or {}).get("processors", [post_processor or {}]):
        if step.get("type") == "TemplateProcessing":
            ids = {name: entry["ids"] for name, entry in step["special_tokens"].items()}
            place = next(i for i, part in enumerate(step["single"]) if "Sequence" in part)
            parts = [ids[part["SpecialToken"]["id"]] if "SpecialToken" in part else [] for part in step["single"]]
            before, after = list(chain(*parts[:place])), list(chain(*parts[place:]))
        elif step.get("type") in ("BertProcessing", "RobertaProcessing"):
            before, after = [step["cls"][1]], [step["sep"][1]]
    return before, after


def _around(
    folder: Path, id_of: Callable[[str], int | None], own: tuple[list[int], list[int]], bos: str | None = None
) -> tuple[str | None, tuple[list[int], list[int]]]:
    """(bos, ids around a text): `own` and `bos` unless tokenizer_config.json says more (transformers' rule)."""
    config = read_object(folder / "tokenizer_config.json")
    texts: dict[str, str | None] = {}
    for name in ("bos", "eos"):
        token = config.get(f"{name}_token", bos if name == "bos" else None)
        texts[name] = token.get("content") if isinstance(token, dict) else token
    if {"add_bos_token", "add_eos_token"} & config.keys():
        added = {name: text for name, text in texts.items() if text and config.get(f"add_{name}_token")}
        ids = [id_of(added[name]) if name in added else None for name in ("bos", "eos")]
        own = tuple([] if token is None else [token] for token in ids)  # type: ignore[assignment]
    return texts["bos"], own


def named_tokens(folder: Path) -> set[str]:
    """Texts that tokenizer_config.json or special_tokens_map.json calls its bos, eos, ... token: control tokens, as in HF."""
    named: set[str] = set()
    for path in (folder / name for name in NAMES_OF_TOKENS):
        config = read_object(path)
        try:
            lists = (config.get("additional_special_tokens"), config.get("extra_special_tokens"))
            several = [text for some in lists for text in (some.values() if isinstance(some, dict) else some or ())]
            for token in (*(config.get(f"{name}_token") for name in _NAMES), *several):
                text = token["content"] if isinstance(token, dict) else token
                named |= {text} if isinstance(text, str) and text else set()
        except (KeyError, TypeError) as error:
            raise _damaged(path, error) from error
    return named


def _with_named(entries: list[dict[str, Any]], named: set[str], vocab: Any) -> list[dict[str, Any]]:
    """tokenizer.json's added tokens, those that are `named` as control tokens, too, and mere whitespace never."""
    entries = [
        t | {"special": t["content"].strip(SPACE) != "" and (t.get("special", False) or t["content"] in named)} for t in entries
    ]
    known = {t["content"] for t in entries}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    more = [{"id": vocab[text], "content": text} | flags for text in named - known if isinstance(vocab, dict) and text in vocab]
    return sorted([*entries, *more], key=lambda t: t["id"])


def _added_token(entry: dict[str, Any], piece: str) -> AddedToken:
    # Where the normalizer writes ▁ for a space, a normalized token may begin with one.
    shown = piece.replace("▁", " ") if entry["normalized"] and "▁" in piece else None
    return AddedToken(entry["id"], entry["lstrip"], entry["rstrip"], entry["special"], shown)


def _with_words(plain: Plain, added: dict[str, AddedToken]) -> Plain:
    """`plain`, which knows no added tokens, with those that are words of a text."""
    words = {text: token for text, token in added.items() if not token.special}
    pattern = any_of(words)

    def ids_of(text: str, first: bool) -> list[int]:
        ids: list[int] = []
        done = 0
        for match in pattern.finditer(text):
            token, (start, stop) = words[match.group()], match.span()
            if start < done:  # swallowed
                continue
            part = text[done:start].rstrip(SPACE) if token.lstrip else text[done:start]
            ids += [*(plain(part, first and not ids) if part else ()), token.id]
            done = len(text) - len(text[stop:].lstrip(SPACE)) if token.rstrip else stop
        return ids + (plain(text[done:], first and not ids) if done < len(text) else [])

    return ids_of if words else plain


def _read_added_tokens(folder: Path) -> dict[str, AddedToken]:
    """added_tokens.json (text -> id), then tokenizer_config.json's added_tokens_decoder, which also has the flags.

    Without flags, what is named or spelled <|like this|> is a control token.
    """
    added: dict[str, AddedToken] = {}
    named = named_tokens(folder)

    def token(text: str, index: Any, special: bool, lstrip: bool = False, rstrip: bool = False) -> None:
        added[text] = AddedToken(int(index), lstrip, rstrip, text.strip(SPACE) != "" and (special or text in named))

    try:
        path = folder / "added_tokens.json"
        for text, index in (json.loads(path.read_text("utf-8")) if path.is_file() else {}).items():
            token(text, index, special=text.startswith("<|") and text.endswith("|>"))
        path = folder / "tokenizer_config.json"
        for index, entry in read_object(path).get("added_tokens_decoder", {}).items():
            flags = (bool(entry.get(name)) for name in ("special", "lstrip", "rstrip"))
            token(entry["content"], index, *flags)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    return added


def _sentencepiece_bytes(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def _damaged(path: Path, why: object) -> InputError:
    reason = " ".join(str(why).split())[:200]
    return InputError(f"{path}: damaged or not a tokenizer ({reason}); download or export it again")
