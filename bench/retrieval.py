"""python -m phi3mobile.bench.retrieval BUNDLE: what retrieval is worth, on questions about a text that ships.

Answers with no sources, with the passage that holds the answer (the ceiling), and with what words, vectors and both find;
recall at 1 and 5; whether questions that the text does not answer are told apart; time of a search. `--documents` adds
more to search through (e.g. Debian's jargon-text); `--passages N` times a search through N made-up passages. `--collections`
measures collections unlike each other instead, and `--calibrate` fits the numbers that decide what is relevant.
"""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from phi3mobile.errors import InputError
from phi3mobile.retrieval import Library, Passage, grounded_messages, index_documents, open_library

if TYPE_CHECKING:
    from phi3mobile.session.session import Session

TEXT = Path(__file__).parent / "text"
METHODS = ("words", "vectors", "hybrid")
_ASKED = "Answer in one short sentence."


def measure(
    library: Library, session: Session | None, k: int, progress: Callable[[str, int, int], None]
) -> dict[str, dict[str, Any]]:
    """Method -> recall@1, recall@k, MRR, ms per search, and with a session the share of right answers."""
    questions = json.loads((TEXT / "questions.json").read_text("utf-8"))
    answerable, unanswerable = questions["answerable"], questions["unanswerable"]
    evidence = [_holding(library, item["evidence"]) for item in answerable]
    results: dict[str, dict[str, Any]] = {}
    for method in METHODS if library.has_vectors else ("words",):
        found, start = [], time.perf_counter()
        for item in answerable:
            found.append(library.search(item["question"], 10, method, always=True))
        seconds = (time.perf_counter() - start) / len(answerable)
        ranks = [_rank(passages, item["evidence"]) for passages, item in zip(found, answerable, strict=True)]
        row = {f"recall@{n}": np.mean([rank is not None and rank <= n for rank in ranks]) for n in (1, k)}
        row |= {"mrr": np.mean([1 / rank if rank else 0.0 for rank in ranks]), "search_ms": seconds * 1e3}
        row["said_nothing_rightly"] = np.mean([not library.search(question, k, method) for question in unanswerable])
        row["said_nothing_wrongly"] = np.mean([not library.search(item["question"], k, method) for item in answerable])
        if session:
            sources = [passages[:k] for passages in found]
            row["accuracy"] = _accuracy(session, answerable, sources, partial(progress, method))
        results[method] = {name: round(float(value), 4) for name, value in row.items()}
    if session:
        for name, sources in (("no sources", [None] * len(answerable)), ("the right passage", [[e] for e in evidence])):
            share = _accuracy(session, answerable, sources, partial(progress, name))
            results[name] = {"accuracy": round(float(share), 4)}
    return results


def _accuracy(
    session: Session, questions: list[dict[str, str]], sources: Sequence[list[Passage] | None], report: Callable
) -> float:
    """Share of greedy answers in which the expected words are."""
    right = 0
    for number, (item, passages) in enumerate(zip(questions, sources, strict=True)):
        report(number, len(questions))
        asked = f"{item['question']} {_ASKED}"
        messages = [{"role": "user", "content": asked}] if passages is None else grounded_messages(asked, passages)
        answer = "".join(session.generate(messages, max_tokens=32))
        right += bool(re.search(item["answer"], answer, re.IGNORECASE))
    return right / len(questions)


def _holding(library: Library, evidence: str) -> Passage:
    with sqlite3.connect(library.path) as db:
        row = db.execute("SELECT id FROM passages WHERE instr(text, ?) ORDER BY id", (evidence,)).fetchone()
    if row is None:
        raise InputError(f"no passage of {library.path} has {evidence!r}; index bench/text/jargon.txt into it")
    return library.passage(row[0])


def _rank(passages: list[Passage], evidence: str) -> int | None:
    return next((rank for rank, passage in enumerate(passages, 1) if evidence in passage.text), None)


def time_large(library: Library, count: int, folder: Path) -> dict[str, float]:
    """Search times in ms in a library grown to `count` passages: its own text shuffled by sentences, vectors near its own."""
    from phi3mobile.retrieval.index import _add_passage  # the index's own way of writing one

    path, rng = folder / "large.db", np.random.default_rng(0)
    path.write_bytes(library.path.read_bytes())
    db = sqlite3.connect(path)
    texts = [text for (text,) in db.execute("SELECT text FROM passages")]
    sentences = [part for text in texts for part in re.split(r"(?<=[.!?])\s+", text) if part]
    stored = np.frombuffer(b"".join(row[0] for row in db.execute("SELECT vector FROM vectors")), np.int8)
    stored = stored.reshape(len(texts), -1).astype(np.float32)
    for _ in range(count - len(texts)):
        text = " ".join(sentences[at] for at in rng.integers(len(sentences), size=6))[:1000]
        vector = stored[rng.integers(len(stored))] + rng.standard_normal(stored.shape[1]) * 30
        _add_passage(db, 1, "made up", "", text, (vector / np.linalg.norm(vector)).astype(np.float32))
    db.commit()
    db.close()
    questions = json.loads((TEXT / "questions.json").read_text("utf-8"))["answerable"]
    with open_library(path) as large:
        large._embedder = library.embedder()
        times = []
        for item in [*questions[:1], *questions]:
            start = time.perf_counter()
            large.search(item["question"], 5)
            times.append((time.perf_counter() - start) * 1e3)
        p50, p95 = np.percentile(times[1:], [50, 95])
        return {
            "passages": large.passages,
            "first_ms": round(times[0], 1),
            "p50_ms": round(p50, 1),
            "p95_ms": round(p95, 1),
            "bytes": path.stat().st_size,
        }


def main(argv: Sequence[str] | None = None) -> None:
    from phi3mobile.export.verbs.index import embedder_files
    from phi3mobile.quiet import quiet
    from phi3mobile.screen import print_json, progress_bar
    from phi3mobile.session.session import Session

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", help="who answers; without one only the search is measured")
    parser.add_argument("--documents", nargs="*", default=[], help="more files or folders to search through")
    parser.add_argument("--passages", type=int, default=0, metavar="N", help="also time a library of N passages")
    parser.add_argument("--collections", action="store_true", help="measure bench/text/collections on held-out questions")
    parser.add_argument("--calibrate", action="store_true", help="fit phi3mobile.retrieval.relevance on the other questions")
    parser.add_argument("-k", type=int, default=3, help="passages given to the model (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.collections or args.calibrate:
        if args.bundle or args.passages:
            raise InputError("--collections and --calibrate take no BUNDLE and no --passages: leave these out")
        return _collections(args.collections, args.calibrate, args.documents, args.k)
    with TemporaryDirectory() as folder, progress_bar("Retrieval") as report, quiet():
        path = Path(folder) / "library.db"
        index_documents(
            [TEXT / "jargon.txt", *args.documents], path, embedder_files=lambda: embedder_files(report), progress=report
        )
        session = Session(args.bundle) if args.bundle else None
        with open_library(path) as library:
            library.embedder().embed("warm")
            results = measure(library, session, args.k, report)
            counts = {"documents": library.documents, "passages": library.passages, "k": args.k}
            large = time_large(library, args.passages, Path(folder)) if args.passages else None
    names = list(dict.fromkeys(name for row in results.values() for name in row))
    print(f"{'':18}" + "".join(f"{name:>22}" for name in names))
    for method, row in results.items():
        print(f"{method:18}" + "".join(f"{row.get(name, '-'):>22}" for name in names))
    return print_json(counts | {"bundle": args.bundle, "methods": results, "large": large})


def _collections(measured: bool, calibrated: bool, more: Sequence[str], k: int) -> None:
    from phi3mobile.bench.collections import Remembering, calibrate, measure_collections, open_collections, show
    from phi3mobile.export.verbs.index import embedder_files
    from phi3mobile.quiet import quiet
    from phi3mobile.screen import print_json, progress_bar

    with TemporaryDirectory() as folder, progress_bar("Retrieval") as report, quiet():
        path = Path(folder) / "first.db"
        index_documents([TEXT / "README.md"], path, embedder_files=lambda: embedder_files(report))
        with open_library(path) as first:
            embedder = Remembering(first.embedder())
        with open_collections(Path(folder), embedder, more) as libraries:
            rows = measure_collections(libraries, k=k) if measured else None
            numbers = calibrate(libraries) if calibrated else None
    if rows:
        show(rows)
    for name, number in (numbers or {}).items():
        print(f"{name} = {number}")
    print_json({"collections": rows, "relevance": numbers})


if __name__ == "__main__":
    from phi3mobile.errors import InputError as Wrong

    try:
        main()
    except Wrong as error:
        print("phi3mobile:", error, file=sys.stderr)
        sys.exit(2)
