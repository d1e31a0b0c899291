"""phi3mobile index DOCS -o library.db: make a library of documents, or bring one up to date."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("documents", nargs="+", help="files, or folders with all below: text, Markdown, HTML, PDF, EPUB, Word")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the library; only what changed is indexed again")
    parser.add_argument("--words-only", action="store_true", help="a new library without vectors: smaller, finds words only")
    parser.add_argument("--skip-damaged", action="store_true", help="leave out what can't be read, and list it")


def run(args: argparse.Namespace) -> None:
    import time
    from dataclasses import asdict

    from phi3mobile.quiet import quiet
    from phi3mobile.retrieval.index import find_documents, index_documents
    from phi3mobile.screen import print_card, print_json, progress_bar, size
    from phi3mobile.unicode import printable

    find_documents(args.documents)  # a typo is told before the embedder is made
    start = time.perf_counter()
    with progress_bar("Library") as report, quiet():
        files = None if args.words_only else lambda: embedder_files(report)
        done = index_documents(
            args.documents, args.output, embedder_files=files, skip_damaged=args.skip_damaged, progress=report
        )
    seconds, bytes_ = time.perf_counter() - start, args.output.stat().st_size
    print_card(
        str(args.output),
        {
            "documents": f"{done.added} added, {done.changed} changed, {done.removed} removed, {done.unchanged} as they were",
            "passages": f"{done.passages:,}",
            "file": size(bytes_),
            "time": f"{seconds:.1f} s",
        }
        | ({"left out": "\n".join(done.damaged)} if done.damaged else {}),
    )
    print_json({"library": printable(args.output), "bytes": bytes_, "seconds": round(seconds, 2)} | asdict(done))


def embedder_files(report) -> tuple[bytes, bytes]:
    """Program and vocabulary of the installed sentence embedder; exported once, then kept in the user's cache."""
    from importlib.metadata import version

    from phi3mobile.files import cache_folder
    from phi3mobile.retrieval.embed import embedder_folder

    folder = embedder_folder()
    pte = cache_folder() / f"minilm-{version('phi3mobile')}-et{version('executorch')}.pte"
    if not pte.is_file():
        report("embedder", 0, 1)
        from phi3mobile.export.embedder import export_embedder

        export_embedder(folder, pte)
    return pte.read_bytes(), (folder / "vocab.txt").read_bytes().removesuffix(b"\n")
