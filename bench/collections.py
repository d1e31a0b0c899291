"""Retrieval over collections unlike each other, and the fit of what phi3mobile.retrieval.relevance decides by.

Each folder of bench/text/collections is documents and questions.json, whose questions are in two halves: `calibrate` for the
fit, `held_out` for what is reported. Each half has questions that the collection answers, with words of the right passage, some
that nothing here answers, and some that only another collection does (`elsewhere`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from phi3mobile.retrieval import Library, index_documents
from phi3mobile.retrieval.embed import Embedder
from phi3mobile.retrieval.library import Method

TEXT = Path(__file__).parent / "text"
COLLECTIONS = TEXT / "collections"
TOGETHER = "together"  # the library that all collections are in
Questions = dict[str, dict[str, Any]]


class Remembering:
    """An embedder that embeds no text twice: the collections are indexed one by one and together."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, np.ndarray] = {}

    def embed(self, text: str) -> np.ndarray:
        if text not in self._known:
            self._known[text] = self._embedder.embed(text)
        return self._known[text]


def read_questions() -> dict[str, Questions]:
    """Collection -> half -> "answerable" (question, evidence), "unanswerable" and "elsewhere"."""
    return {path.parent.name: json.loads(path.read_text("utf-8")) for path in sorted(COLLECTIONS.glob("*/questions.json"))}


@contextmanager
def open_collections(folder: Path, embedder: Any | None, more: Sequence[str] = ()) -> Iterator[dict[str, Library]]:
    """Each collection as a library in `folder`, and all together with `more` files; without an embedder, of words only."""
    libraries = {}
    for name in (*read_questions(), TOGETHER):
        sources = [COLLECTIONS, *more] if name == TOGETHER else [COLLECTIONS / name]
        index_documents(sources, folder / f"{name}.db", embedder=embedder)
        libraries[name] = Library(folder / f"{name}.db", embedder)
    try:
        yield libraries
    finally:
        for library in libraries.values():
            library.close()


def measure_collections(libraries: dict[str, Library], half: str = "held_out", k: int = 3) -> list[dict[str, Any]]:
    """A row for each collection, alone and among the others, by words and by both: recall, false "nothing", false hits."""
    rows = []
    for method in ("words", "hybrid") if libraries[TOGETHER].has_vectors else ("words",):
        for among in (False, True):
            for name, halves in read_questions().items():
                library = libraries[TOGETHER if among else name]
                row = {"method": method, "collection": name, "among_others": among, "passages": library.passages}
                rows.append(row | _measure(library, halves[half], method, k, among))
    return rows


def _measure(library: Library, questions: dict[str, Any], method: Method, k: int, among: bool) -> dict[str, Any]:
    answerable = questions["answerable"]
    wrong = _wrong(questions, among)
    found = [library.search(item["question"], k, method) for item in answerable]
    right = [[item["evidence"] in passage.text for passage in each] for item, each in zip(answerable, found, strict=True)]
    hits = [question for question in wrong if library.search(question, k, method)]
    return {
        "answerable": len(answerable),
        "unanswerable": len(wrong),
        "recall@1": round(sum(any(each[:1]) for each in right) / len(right), 3),
        f"recall@{k}": round(sum(map(any, right)) / len(right), 3),
        "false_nothing": round(sum(not each for each in found) / len(found), 3),
        "false_hits": round(len(hits) / len(wrong), 3),
    }


def _wrong(questions: dict[str, Any], among: bool) -> list[str]:
    """What the library does not answer: among all collections, another may answer what one does not."""
    return questions["unanswerable"] + ([] if among else questions["elsewhere"])


def calibrate(libraries: dict[str, Library]) -> dict[str, float]:
    """The numbers of phi3mobile.retrieval.relevance, by logistic regression on the halves marked for it.

    Of each question, the passage that counts is the one most surely about it, by the numbers of the round before.
    """
    evidence: list[tuple[bool, np.ndarray]] = []  # answerable?, share and cosine of each passage
    for name, halves in read_questions().items():
        questions = halves["calibrate"]
        for library in (libraries[name], libraries[TOGETHER]):
            asked = [(item["question"], True) for item in questions["answerable"]]
            asked += [(question, False) for question in _wrong(questions, library is libraries[TOGETHER])]
            for question, answerable in asked:
                shared = list(library.evidence(question).values())
                evidence.append((answerable, np.array(shared, float).reshape(-1, 2)))  # None becomes nan
    known = [(answerable, shared) for answerable, shared in evidence if not np.isnan(shared).any()]
    numbers = np.array([1.0, 2.0, 0.0])
    for _ in range(20):
        best = np.stack([shared[(shared @ numbers[:2]).argmax()] for _, shared in known])
        numbers = _logistic(best, np.zeros(len(best)), np.array([answerable for answerable, _ in known]))
    shares = np.array([shared[:, 0].max(initial=0.0) for _, shared in evidence])
    (least,) = _logistic(np.empty((len(shares), 0)), numbers[0] * shares, np.array([answerable for answerable, _ in evidence]))
    names = ("BY_WORDS", "BY_COSINE", "LEAST", "LEAST_BY_WORDS")
    return {name: round(float(number), 2) for name, number in zip(names, (*numbers, least), strict=True)}


def _logistic(inputs: np.ndarray, offset: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The weight of each column, then the constant, by Newton's method; 0.01 keeps it finite where all is told apart."""
    columns = np.column_stack([inputs, np.ones(len(inputs))])
    weights = np.zeros(columns.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-(columns @ weights + offset)))
        slope = columns.T @ (wanted - chance) - 0.01 * weights
        weights += np.linalg.solve(
            columns.T @ (columns * (chance * (1 - chance))[:, None]) + 0.01 * np.eye(len(weights)), slope
        )
    return weights


def show(rows: list[dict[str, Any]], print_line: Callable[[str], None] = print) -> None:
    names = [name for name in rows[0] if name not in ("method", "collection", "among_others")]
    print_line(f"{'':32}" + "".join(f"{name:>15}" for name in names))
    for row in rows:
        label = f"{row['collection']}{', among the others' if row['among_others'] else ''}"
        print_line(f"{row['method']:7}{label:25}" + "".join(f"{row[name]:>15}" for name in names))
