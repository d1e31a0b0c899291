"""A library: documents, passages, words and vectors in one SQLite file, searched with sqlite3 and numpy alone.

The best by FTS5's bm25 and the nearest by vectors (signs first, by Hamming distance; the best are compared as int8) are put in
one order by reciprocal rank fusion; phi3mobile.retrieval.relevance says which of them are about the question at all. The
embedder's program travels inside the file.
"""

from __future__ import annotations

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
from phi3mobile.retrieval.relevance import RELEVANT, relevance, weight
from phi3mobile.retrieval.terms import beginning, language_of, terms
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
# Fusion: the paper's 60 and equal weights let the vectors push the right passage down; so does the order of relevance alone in
# a large library (recall at 5 of 2,185 passages: 0.90, with these 0.95).
_FUSION, _VECTORS = 5, 0.5
_RANKED = 60  # passages that words and vectors each propose
_CANDIDATES = 400  # passages near by their signs that are compared by their vectors
_COMMON = 1000, 10  # a word in more passages than this, and in more than one of so many, is looked up only if all are such


@dataclass(frozen=True)
class Passage:
    """What was found. `score`, from 0 to 1, is how surely it is about the question."""

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
            words, evidence = self._proposed(question, method)
            scores = {identity: relevance(*shared) for identity, shared in evidence.items()}
            near = [identity for identity, (_, cosine) in evidence.items() if cosine is not None]
            if method == "hybrid" and near:
                order = fuse(words, near)
            else:
                order = list(scores) if method == "vectors" else sorted(scores, key=lambda identity: -scores[identity])
            shown = [identity for identity in order if always or scores[identity] >= RELEVANT][:k]
            return [self._fetch(identity, scores[identity]) for identity in shown]

    def evidence(self, question: str, method: Method = "hybrid") -> dict[int, tuple[float, float | None]]:
        """Passage -> the share of the question's words that it has and its cosine (None: says nothing), of those that words or
        vectors propose; the nearest first, without vectors the best bm25.
        """
        return self._proposed(question, method)[1]

    def _proposed(self, question: str, method: Method) -> tuple[list[int], dict[int, tuple[float, float | None]]]:
        """What has the question's words, best bm25 first; and `evidence`."""
        language = language_of(question)
        asked = self._weights(question, endings=language != "en")  # the endings of English are cut off by the index
        found = words = self._by_words(asked)
        cosines: dict[int, float] = {}
        if method != "words" and self.has_vectors:
            query = self.embedder().embed(question)
            cosines = self._by_vectors(query)
            if method != "vectors":
                cosines |= self._cosines([identity for identity in found if identity not in cosines], query)
            found = sorted(cosines, key=lambda identity: -cosines[identity])
        shares, known = self._shares(asked, found), language in ("en", "")  # the embedder knows English alone
        return words, {identity: (shares[identity], cosines.get(identity) if known else None) for identity in found}

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

    def _weights(self, question: str, endings: bool) -> dict[str, float]:
        """The question's terms, and how much each says: the rarer, the more. `endings`: a word that no passage has stands for
        words that differ in their endings.
        """
        most = max(_COMMON[0], self.passages // _COMMON[1])
        counts: dict[str, int] = {}
        for term in terms(question):
            count = self._count(term, most + 1)
            if not count and endings and (start := beginning(term)) and (others := self._count(start, most + 1)):
                term, count = start, others
            counts[term] = count
        telling = [term for term, count in counts.items() if count <= most]
        if not any(counts[term] for term in telling):
            telling = list(counts)
        return {term: weight(counts[term], self.passages) for term in telling}

    def _count(self, term: str, most: int) -> int:
        """Passages with the term, counted no further than `most`."""
        count = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
        return self._db.execute(count, (term, most)).fetchone()[0]

    def _by_words(self, asked: dict[str, float]) -> list[int]:
        """Passages with the question's terms, best bm25 first."""
        ranking = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words, 2.0, 1.0) LIMIT ?"
        return [row[0] for row in self._db.execute(ranking, (" OR ".join(asked), _RANKED))] if asked else []

    def _shares(self, asked: dict[str, float], identities: list[int]) -> dict[int, float]:
        """Passage -> the share of what the question's terms say that it has, from 0 to 1."""
        says, total = dict.fromkeys(identities, 0.0), sum(asked.values())
        for term, worth in asked.items():  # all that have it: faster than to ask for each of these
            for (identity,) in self._db.execute("SELECT rowid FROM words WHERE words MATCH ?", (term,)):
                if identity in says:
                    says[identity] += worth / total
        return says

    def _by_vectors(self, query: np.ndarray) -> dict[int, float]:
        """Passage -> cosine, nearest first."""
        if self._signs is None:
            rows = self._db.execute("SELECT passage, signs FROM signs").fetchall()
            signs = np.frombuffer(b"".join(row[1] for row in rows), np.uint64).reshape(len(rows), -1)
            self._signs = np.array([row[0] for row in rows]), signs
        identities, signs = self._signs
        distance = np.bitwise_count(signs ^ pack_signs(query)).sum(axis=1, dtype=np.uint16)
        count = min(_CANDIDATES, len(identities))
        nearest = identities[np.argpartition(distance, count - 1)[:count]]
        cosines = self._cosines(nearest.tolist(), query)
        return dict(sorted(cosines.items(), key=lambda item: -item[1])[:_RANKED])

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


def fuse(words: list[int], near: list[int]) -> list[int]:
    """Reciprocal rank fusion (Cormack et al. 2009) of the ranking by words with the one by vectors: best first."""
    scores: dict[int, float] = {}
    for ranking, share in ((words, 1.0), (near, _VECTORS)):
        for rank, identity in enumerate(ranking, 1):
            scores[identity] = scores.get(identity, 0.0) + share / (_FUSION + rank)
    return sorted(scores, key=lambda identity: -scores[identity])


def pack_signs(vector: np.ndarray) -> np.ndarray:
    """One bit per dimension as uint64 words; float32 [D] -> uint64 [D/64]."""
    return np.packbits(vector > 0, bitorder="little").view(np.uint64)


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
