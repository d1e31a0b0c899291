"""Packed token shards: documents end to end in memory-mapped files, their boundaries and content keys beside.

A folder holds, for each shard NAME, `NAME.tokens` (uint16 or uint32, little-endian), `NAME.ends` (uint64: where each document
ends), `NAME.keys` (uint64: hash of each document's text) and `NAME.json` (counts and sha256 of the three), and at last
`index.json` over all of them. A document's last token is the end-of-text id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from phi3mobile.errors import InputError
from phi3mobile.files import sha256, whole_file

FORMAT = 1
SHARD_TOKENS = 1 << 27


@dataclass(frozen=True)
class Vocabulary:
    """Which tokenizer made the ids: size, id that ends a document, hash of its file."""

    size: int
    eos: int
    sha256: str

    @property
    def dtype(self) -> str:
        return "<u2" if self.size <= 1 << 16 else "<u4"


class ShardWriter:
    """Documents in, shards out. A killed writer leaves whole shards: open another with the same name, skip the first
    `documents` documents of the stream, and add the rest; the files come out as if nothing had happened.

    `name` tells apart the writers (tasks) that share a folder. A shard is closed at the first document's end at or
    after `shard_tokens` tokens.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, name: str = "00000", shard_tokens: int = SHARD_TOKENS) -> None:
        if shard_tokens < 1:
            raise InputError(f"shard_tokens is {shard_tokens}; it must be 1 or more")
        self._folder, self._vocabulary, self._name, self._limit = folder, vocabulary, name, shard_tokens
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.json").unlink(missing_ok=True)  # what follows changes the folder
        kept = _records(folder, name)
        if any(record["vocabulary"] != asdict(vocabulary) or record["limit"] != shard_tokens for record in kept):
            raise InputError(f"{folder} has shards of another tokenizer or shard size; give another folder or remove it")
        self.documents = sum(record["documents"] for record in kept)
        self._count = len(kept)
        self._clear()

    def add(self, tokens: Sequence[int] | np.ndarray, key: int = 0) -> None:
        """One document's ids, without the end-of-text id, and the hash of its text."""
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocabulary.size:
            raise InputError(f"token id {ids.max()} is outside the vocabulary of {self._vocabulary.size}; wrong tokenizer?")
        self._tokens.append(np.append(ids, self._vocabulary.eos).astype(self._vocabulary.dtype))
        self._length += ids.size + 1
        self._ends.append(self._length)
        self._keys.append(key)
        self.documents += 1
        if self._length >= self._limit:
            self._close_shard()

    def close(self) -> None:
        """Write what is left."""
        if self._ends:
            self._close_shard()

    def _close_shard(self) -> None:
        stem = self._folder / f"{self._name}-{self._count:05d}"
        ends, keys = (np.array(values, "<u8") for values in (self._ends, self._keys))
        parts = {"tokens": np.concatenate(self._tokens), "ends": ends, "keys": keys}
        record = {
            "name": stem.name,
            "tokens": self._length,
            "documents": len(self._ends),
            "limit": self._limit,
            "vocabulary": asdict(self._vocabulary),
            "sha256": {},
        }
        for part, values in parts.items():
            file = _rename_into(stem.with_name(f"{stem.name}.{part}"), values.tobytes())
            record["sha256"][part] = sha256(file)
        _rename_into(stem.with_name(f"{stem.name}.json"), json.dumps(record).encode())  # last: makes the shard count
        self._count += 1
        self._clear()

    def _clear(self) -> None:
        self._tokens, self._ends, self._keys, self._length = [], [], [], 0


def write_index(folder: Path, about: dict | None = None) -> Shards:
    """index.json over all shards in `folder`, once every writer is closed. Raises InputError if there are none."""
    records = _records(folder)
    if not records:
        raise InputError(f"{folder} has no shards: no document was written; see the statistics of the filters")
    vocabulary = records[0]["vocabulary"]
    if any(record["vocabulary"] != vocabulary for record in records):
        raise InputError(f"{folder} has shards of several tokenizers; write each tokenizer's into a folder of its own")
    shards = [{key: record[key] for key in ("name", "tokens", "documents", "sha256")} for record in records]
    index = {"format": FORMAT, "vocabulary": vocabulary, "about": about or {}, "shards": shards}
    _rename_into(folder / "index.json", json.dumps(index, indent=1).encode())
    return open_shards(folder, hashes=False)


class Shards:
    """A folder of shards as one stream of `tokens` tokens in `documents` documents. Made by `open_shards`."""

    def __init__(self, folder: Path, index: dict) -> None:
        self.folder = folder
        self.vocabulary = Vocabulary(**index["vocabulary"])
        self.about: dict = index["about"]
        self.names = [shard["name"] for shard in index["shards"]]
        self.fingerprint = ":".join(shard["sha256"]["tokens"][:16] for shard in index["shards"])
        self._starts = np.cumsum([0, *(shard["tokens"] for shard in index["shards"])])
        self._firsts = np.cumsum([0, *(shard["documents"] for shard in index["shards"])])
        self.tokens, self.documents = int(self._starts[-1]), int(self._firsts[-1])

    @cached_property
    def _maps(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (_map(self._part(name, "tokens"), self.vocabulary.dtype), _map(self._part(name, "ends"), "<u8"))
            for name in self.names
        ]

    def read(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [start, start + length) of the stream: ids and document numbers (over the whole stream), int64 [length]."""
        if start < 0 or length < 0 or start + length > self.tokens:
            raise IndexError(f"[{start}, {start + length}) of {self.tokens} tokens")
        ids, documents = np.empty(length, np.int64), np.empty(length, np.int64)
        shard, done = int(np.searchsorted(self._starts, start, "right")) - 1, 0
        while done < length:
            tokens, ends = self._maps[shard]
            at = start + done - int(self._starts[shard])
            count = min(length - done, len(tokens) - at)
            ids[done : done + count] = tokens[at : at + count]
            first, last = np.searchsorted(ends, [at, at + count - 1], "right")
            inner = np.searchsorted(ends[first:last], np.arange(at, at + count), "right")
            documents[done : done + count] = self._firsts[shard] + first + inner
            shard, done = shard + 1, done + count
        return ids, documents

    def document(self, index: int) -> np.ndarray:
        """int64 ids of document `index`, its end-of-text id included."""
        if not 0 <= index < self.documents:
            raise IndexError(f"document {index} of {self.documents}")
        shard = int(np.searchsorted(self._firsts, index, "right")) - 1
        tokens, ends = self._maps[shard]
        inner = index - int(self._firsts[shard])
        return np.asarray(tokens[int(ends[inner - 1]) if inner else 0 : int(ends[inner])], dtype=np.int64)

    def keys(self) -> np.ndarray:
        """uint64 [documents]: hashes of the documents' texts."""
        return np.concatenate([_map(self._part(name, "keys"), "<u8") for name in self.names])

    def blocks(self, length: int) -> Iterator[dict[str, np.ndarray]]:
        """The stream in order, as whole blocks of {tokens, segments: int32 [length]}: for held-out sets."""
        for start in range(0, self.tokens - length + 1, length):
            yield block(self, start, length)

    def _part(self, name: str, part: str) -> Path:
        return self.folder / f"{name}.{part}"


def block(shards: Shards, start: int, length: int) -> dict[str, np.ndarray]:
    """{tokens, segments: int32 [length]}; segments number the block's documents from 0."""
    ids, documents = shards.read(start, length)
    return {"tokens": ids.astype(np.int32), "segments": (documents - documents[:1]).astype(np.int32)}


def open_shards(folder: str | Path, *, hashes: bool = True) -> Shards:
    """The shards in `folder`, their sizes checked, and their contents too with `hashes`.

    Raises InputError: no index (the build has not ended), another format, a file that is missing, short or changed.
    """
    folder = Path(folder)
    try:
        index = json.loads((folder / "index.json").read_text())
        if index["format"] != FORMAT:
            raise InputError(f"{folder}: format {index['format']}, this version reads {FORMAT}; build it again")
        shards = Shards(folder, index)
        sizes = {"tokens": np.dtype(shards.vocabulary.dtype).itemsize, "ends": 8, "keys": 8}
        for shard in index["shards"]:
            for part, size in sizes.items():
                file = shards._part(shard["name"], part)
                expected = size * shard["tokens" if part == "tokens" else "documents"]
                if file.stat().st_size != expected:
                    raise InputError(f"{file} has {file.stat().st_size} bytes, the index says {expected}; build it again")
                if hashes and sha256(file) != shard["sha256"][part]:
                    raise InputError(f"{file} is not what was written (sha256 differs); build it again")
    except OSError as error:
        raise InputError(f"{error.filename} can't be read ({error.strerror}); is {folder} a finished shard folder?") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}/index.json is damaged ({error!r:.80}); build it again") from None
    return shards


def _records(folder: Path, name: str = "*") -> list[dict]:
    """Whole shards' records in order; of one writer, the unbroken run from 0."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob(f"{name}-?????.json"))]


def _map(path: Path, dtype: str) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def _rename_into(path: Path, data: bytes) -> Path:
    with whole_file(path) as partial:
        partial.write_bytes(data)
    return path
