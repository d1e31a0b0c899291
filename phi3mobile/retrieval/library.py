"""A library: documents, passages, words and vectors in one SQLite file, searched with sqlite3 and numpy alone.

Words are ranked by FTS5's bm25, vectors by cosine (signs first, by Hamming distance; the best are compared as int8), and
both ranks are joined by reciprocal rank fusion (Cormack et al. 2009). The embedder's program travels inside the file.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from phi3mobile.errors import InputError
from phi3mobile.retrieval.embed import Embedder, open_program
from phi3mobile.unicode import printable, valid

APPLICATION, VERSION = 0x7033_6C62, 1  # PRAGMA application_id ("p3lb") and user_version
SCHEMA = """
CREATE TABLE documents(id INTEGER PRIMARY KEY, source TEXT UNIQUE NOT NULL, title TEXT NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE passages(id INTEGER PRIMARY KEY, document INTEGER NOT NULL REFERENCES documents(id), location TEXT NOT NULL,
                      text TEXT NOT NULL);
CREATE INDEX passages_of ON passages(document);
CREATE TABLE signs(passage INTEGER PRIMARY KEY, signs BLOB NOT NULL);
CREATE TABLE vectors(passage INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE files(name TEXT PRIMARY KEY, sha256 TEXT NOT NULL, data BLOB NOT NULL);
CREATE VIRTUAL TABLE words USING fts5(place, text, content='', tokenize='porter unicode61 remove_diacritics 2');
"""
Method = Literal["hybrid", "words", "vectors"]
PROGRAM, VOCAB = "embedder.pte", "vocab.txt"  # names in the table files
NEAR, NEARBY, SHARED = 0.40, 0.30, 0.55  # see is_relevant

# Fusion: the paper's constant 60 and equal weights let the vectors push the right passage down (recall at 3 on 1,543
# passages: 0.86; words alone 0.98). With these it is 0.98, and at 5 1.0, more than either alone.
_FUSION, _VECTORS = 5, 0.5
_RANKED = 60  # passages each method hands to the fusion
_CANDIDATES = 400  # passages near by their signs that are compared by their vectors
_COMMON = 10  # a word in more than one of so many passages says little
_CJK = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff])")


@dataclass(frozen=True)
class Passage:
    """What was found. `score` is the cosine to the question, or without an embedder the share of its words found."""

    text: str
    title: str
    source: str  # the document's path below the folder that was indexed
    location: str  # headings, and page or line: "Install > Linux, page 3"
    score: float
    id: int


def open_library(path: str | Path) -> Library:
    """Open a library for searching. Raises InputError: no such file, not a library, damaged, of a newer version."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{printable(path)} does not exist; make a library with `phi3mobile index DOCS -o {path.name}`")
    return Library(path)


class Library:
    """An opened library; use it from any thread. `embedder` replaces the one in the file (None: load that on first use)."""

    def __init__(self, path: Path, embedder: Embedder | None = None) -> None:
        self.path, self._embedder = path, embedder
        self._lock = threading.RLock()
        self._signs: tuple[np.ndarray, np.ndarray] | None = None
        with self._reading():
            self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
            check_format(self._db, path)
            self.documents, self.passages, self.has_vectors = self._db.execute(
                "SELECT (SELECT count(*) FROM documents), (SELECT count(*) FROM passages), EXISTS(SELECT 1 FROM signs)"
            ).fetchone()

    def search(self, question: str, k: int = 5, method: Method = "hybrid", always: bool = False) -> list[Passage]:
        """The k best passages, best first; [] if nothing in the library is about the question (`always`: even then).

        Raises InputError: an empty question, k below 1, a damaged file.
        """
        question = valid(question)
        if not question.strip():
            raise InputError("the question is empty; write some text")
        if k < 1:
            raise InputError(f"k is {k}; ask for 1 passage or more")
        with self._lock, self._reading():
            words, near, cosine = dict(self._by_words(question)), {}, None
            scores = words
            if method != "words" and self.has_vectors:
                query = self.embedder().embed(question)
                near = dict(self._by_vectors(query))
                cosine = max(near.values(), default=0.0)
                scores = near | self._cosines([identity for identity in words if identity not in near], query)
            if not always and not is_relevant(cosine, max(words.values(), default=0.0)):
                return []
            ranked = fuse([] if method == "vectors" and near else list(words), list(near))
            return [self._fetch(identity, scores[identity]) for identity in ranked[:k]]

    def passage(self, identity: int) -> Passage:
        """One passage by its id, with score 0. Raises InputError if there is none."""
        with self._lock, self._reading():
            return self._fetch(identity, 0.0)

    def embedder(self) -> Embedder:
        """The embedder of this library, its program unpacked into the user's cache on first use."""
        if self._embedder is None:
            self._embedder = unpack_embedder(self._db)
        return self._embedder

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _by_words(self, question: str) -> list[tuple[int, float]]:
        """(passage, share of the question's telling words that it has), best bm25 first."""
        words = list(dict.fromkeys(re.findall(r"\w+", spaced(question).lower())))
        telling = [word for word in words if self._count(word) <= max(3, self.passages // _COMMON)]
        telling = [word for word in telling or words if self._count(word)] if words else []
        if not telling:
            return []
        query = " OR ".join(f'"{word}"' for word in telling)
        rows = self._db.execute(
            "SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words, 2.0, 1.0) LIMIT ?", (query, _RANKED)
        ).fetchall()
        marks, asked = ",".join("?" * len(rows)), len([word for word in words if word in telling or not self._count(word)])
        found: dict[int, int] = {}
        for word in telling:
            match = f"SELECT rowid FROM words WHERE words MATCH ? AND rowid IN ({marks})"
            for (identity,) in self._db.execute(match, (f'"{word}"', *(row[0] for row in rows))):
                found[identity] = found.get(identity, 0) + 1
        return [(identity, found.get(identity, 0) / asked) for (identity,) in rows]

    def _count(self, word: str) -> int:
        """Passages with the word, counted no further than what makes it common."""
        most = max(3, self.passages // _COMMON) + 1
        query = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
        return self._db.execute(query, (f'"{word}"', most)).fetchone()[0]

    def _by_vectors(self, query: np.ndarray) -> list[tuple[int, float]]:
        """(passage, cosine), nearest first."""
        if self._signs is None:
            rows = self._db.execute("SELECT passage, signs FROM signs").fetchall()
            signs = np.frombuffer(b"".join(row[1] for row in rows), np.uint64).reshape(len(rows), -1)
            self._signs = np.array([row[0] for row in rows]), signs
        identities, signs = self._signs
        distance = np.bitwise_count(signs ^ pack_signs(query)).sum(axis=1, dtype=np.uint16)
        count = min(_CANDIDATES, len(identities))
        nearest = identities[np.argpartition(distance, count - 1)[:count]]
        cosines = self._cosines(nearest.tolist(), query)
        return sorted(cosines.items(), key=lambda item: -item[1])[:_RANKED]

    def _cosines(self, identities: list[int], query: np.ndarray) -> dict[int, float]:
        if not identities:
            return {}
        marks = ",".join("?" * len(identities))
        rows = self._db.execute(f"SELECT passage, vector FROM vectors WHERE passage IN ({marks})", identities).fetchall()
        vectors = np.frombuffer(b"".join(row[1] for row in rows), np.int8).reshape(len(rows), -1).astype(np.float32)
        cosines = vectors @ query / np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
        return {row[0]: float(cosine) for row, cosine in zip(rows, cosines, strict=True)}

    def _fetch(self, identity: int, score: float) -> Passage:
        query = """SELECT text, title, source, location FROM passages JOIN documents ON documents.id = document
                   WHERE passages.id = ?"""
        row = self._db.execute(query, (identity,)).fetchone()
        if row is None:
            raise InputError(f"{printable(self.path)} has no passage {identity}; search again: it may have been indexed anew")
        text, title, source, location = row
        return Passage(text, title, source, location, score, identity)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Damage is found when the damaged page is read, so everything that reads is in here."""
        try:
            yield
        except (sqlite3.DatabaseError, ValueError) as error:
            raise InputError(
                f"{printable(self.path)} is damaged or not a library ({error}); copy it again or index anew"
            ) from None


def check_format(db: sqlite3.Connection, path: Path) -> None:
    """Raises InputError unless `db` is a library of this version; sqlite3.DatabaseError if it is no database."""
    application, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if application != APPLICATION:
        raise InputError(f"{printable(path)} is not a library; make one with `phi3mobile index`")
    if version != VERSION:
        raise InputError(
            f"{printable(path)} is a library of version {version}, this phi3mobile reads {VERSION}: index anew or upgrade"
        )


def is_relevant(cosine: float | None, share: float) -> bool:
    """Whether something was found: by the nearest passage's cosine (None: no vectors), and by the greatest share of the
    question's words in one passage. The limits tell all questions of bench/text/questions.json apart.
    """
    if cosine is None:
        return share >= SHARED
    return cosine >= NEAR or (cosine >= NEARBY and share >= SHARED)


def fuse(words: list[int], near: list[int]) -> list[int]:
    """Reciprocal rank fusion of the ranking by words with the one by vectors: best first."""
    scores: dict[int, float] = {}
    for ranking, weight in ((words, 1.0), (near, _VECTORS)):
        for rank, identity in enumerate(ranking, 1):
            scores[identity] = scores.get(identity, 0.0) + weight / (_FUSION + rank)
    return sorted(scores, key=lambda identity: -scores[identity])


def pack_signs(vector: np.ndarray) -> np.ndarray:
    """One bit per dimension as uint64 words; float32 [D] -> uint64 [D/64]."""
    return np.packbits(vector > 0, bitorder="little").view(np.uint64)


def spaced(text: str) -> str:
    """Chinese, Japanese and Korean characters as words of their own: FTS5 sees words only between spaces."""
    return _CJK.sub(r" \1 ", text)


def unpack_embedder(db: sqlite3.Connection) -> Embedder:
    """The embedder in a library. Raises InputError if there is none or the cache can't be written."""
    from phi3mobile.files import cache_folder, whole_file

    files = {name: (sha, data) for name, sha, data in db.execute("SELECT name, sha256, data FROM files")}
    if set(files) != {PROGRAM, VOCAB}:
        raise InputError("this library has no embedder inside; index anew")
    sha, data = files[PROGRAM]
    pte = cache_folder() / f"embedder-{sha[:16]}.pte"
    if not pte.is_file() or pte.stat().st_size != len(data):
        try:
            with whole_file(pte) as partial:
                partial.write_bytes(data)
        except OSError as error:
            raise InputError(f"{printable(pte)} can't be written ({error.strerror}); make room in the cache folder") from None
    vocab = files[VOCAB][1].decode("utf-8").split("\n")
    return Embedder(open_program(pte, len(vocab)), vocab)
