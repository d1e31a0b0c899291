"""Documents to a library, or a library brought up to date: only what changed is read and embedded again."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from phi3mobile.errors import InputError
from phi3mobile.files import is_special, sha256
from phi3mobile.partial import beside
from phi3mobile.retrieval.chunk import Chunk, chunk
from phi3mobile.retrieval.embed import Embedder
from phi3mobile.retrieval.library import APPLICATION, PROGRAM, SCHEMA, VERSION, VOCAB, check_format, pack_signs, unpack_embedder
from phi3mobile.retrieval.read import READERS, kinds, read_document, readable
from phi3mobile.retrieval.terms import spaced
from phi3mobile.unicode import printable


@dataclass
class Report:
    """What an index run did, in documents."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    passages: int = 0  # in the library now
    damaged: list[str] = field(default_factory=list)  # left out, with skip_damaged


def index_documents(
    sources: Sequence[str | Path],
    path: str | Path,
    *,
    embedder_files: Callable[[], tuple[bytes, bytes]] | None = None,
    embedder: Embedder | None = None,
    skip_damaged: bool = False,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Report:
    """Index the documents in `sources` (files, or folders with all below) into the library `path`, made or brought up to date.

    A document that is no longer there is removed; one that is as it was, and would be read as it was, is left alone.
    `embedder_files` gives the program and vocabulary of a new library's embedder (None: no vectors); `embedder` stands in for
    running them. The library is written beside and renamed: it is whole, the old or the new.
    Raises InputError: nothing to index, a document that can't be read (unless skip_damaged), a file that is no library.
    """
    path, found = Path(path), find_documents(sources)
    if is_special(path):
        raise InputError(f"{path} is no file, and a library is one; write elsewhere")
    path = path.resolve() if path.is_symlink() else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path) as partial, closing(_open(path, partial, embedder_files)) as db:
            if embedder is None and db.execute("SELECT 1 FROM files").fetchone():
                embedder = unpack_embedder(db)
            report = _bring_up_to_date(db, found, embedder, skip_damaged, progress)
            db.commit()
            if path.exists() and not (report.added or report.changed or report.removed):
                return report
            db.execute("INSERT INTO words(words) VALUES('optimize')")
            db.commit()
            db.execute("VACUUM")
            db.close()
            partial.replace(path)
    except sqlite3.DatabaseError as error:
        raise InputError(f"{printable(path)} is damaged or can't be written ({error}); remove it and index anew") from None
    except OSError as error:
        raise InputError(f"{printable(path)} can't be written ({error.strerror}); write elsewhere") from None
    return report


def find_documents(sources: Sequence[str | Path]) -> dict[str, Path]:
    """Name in the library, which is printable (see phi3mobile.unicode) and has / for every system -> file.

    Raises InputError: a source that is not there or of an unknown kind, two of one name, no documents.
    """
    found: dict[str, Path] = {}
    for source in map(Path, sources):
        if source.is_dir():
            files = sorted(file for file in source.rglob("*") if file.is_file() and readable(file))
            named = [(printable(file.relative_to(source).as_posix()), file) for file in files]
        elif source.is_file():
            if not readable(source):
                raise InputError(f"{printable(source)}: documents of this kind can't be read; allowed are {kinds()}")
            named = [(printable(source.name), source)]
        else:
            raise InputError(f"{printable(source)} does not exist; give files or folders of documents")
        for name, file in named:
            if name in found:
                both = f"{printable(found[name])} and {printable(file)}"
                todo = "index the folder above both" if found[name].name == file.name else "rename one of them"
                raise InputError(f"{both} would have one name; {todo}")
            found[name] = file
    if not found:
        given = ", ".join(map(printable, sources))
        raise InputError(f"there are no documents in {given}; allowed are {kinds()}")
    return found


def _open(path: Path, partial: Path, embedder_files: Callable[[], tuple[bytes, bytes]] | None) -> sqlite3.Connection:
    """A copy of the library at `path`, or a new one, at `partial`, without a journal beside it: it is renamed when whole."""
    if path.exists():
        shutil.copyfile(path, partial)
        db = sqlite3.connect(partial)
        db.execute("PRAGMA journal_mode=MEMORY")
        check_format(db, path)
        return db
    db = sqlite3.connect(partial)
    db.execute("PRAGMA journal_mode=MEMORY")
    db.executescript(f"PRAGMA application_id={APPLICATION}; PRAGMA user_version={VERSION};{SCHEMA}")
    if embedder_files:
        rows = zip((PROGRAM, VOCAB), embedder_files(), strict=True)
        db.executemany(
            "INSERT INTO files VALUES(?, ?, ?)", [(name, hashlib.sha256(data).hexdigest(), data) for name, data in rows]
        )
    return db


def _bring_up_to_date(
    db: sqlite3.Connection,
    found: dict[str, Path],
    embedder: Embedder | None,
    skip_damaged: bool,
    progress: Callable[[str, int, int], None],
) -> Report:
    known = {source: (identity, sha) for identity, source, sha in db.execute("SELECT id, source, sha256 FROM documents")}
    report = Report()
    for source in known.keys() - found.keys():
        _remove(db, known[source][0])
        report.removed += 1
    for done, (source, file) in enumerate(found.items()):
        progress("index documents", done, len(found))
        identity, old = known.get(source, (None, None))
        try:
            if (digest := _digest(file)) == old:
                report.unchanged += 1
                continue
            document = read_document(file)
        except InputError as error:
            if not skip_damaged:
                raise
            report.damaged.append(str(error))
            document = None
        if identity is not None:
            _remove(db, identity)
        if document is not None:
            _add(db, source, digest, document.title, chunk(document), embedder)
            report.added, report.changed = report.added + (identity is None), report.changed + (identity is not None)
    report.passages = db.execute("SELECT count(*) FROM passages").fetchone()[0]
    return report


def _digest(file: Path) -> str:
    """Differs where what is read of the file may differ: its SHA-256 and the version of the readers."""
    try:
        return f"{sha256(file)}.{READERS}"
    except OSError as error:
        raise InputError(f"{printable(file)} can't be read: {error.strerror or error}; check the file") from None


def _add(db: sqlite3.Connection, source: str, digest: str, title: str, chunks: list[Chunk], embedder: Embedder | None) -> None:
    insert = "INSERT INTO documents(source, title, sha256) VALUES(?, ?, ?)"
    document = db.execute(insert, (source, title, digest)).lastrowid
    assert document is not None  # an INSERT has one
    for part in chunks:
        titled = part.text if part.text.startswith(title) else f"{title}\n{part.text}"  # says what "it" is in a later passage
        _add_passage(db, document, title, part.location, part.text, embedder.embed(titled) if embedder else None)


def _add_passage(
    db: sqlite3.Connection, document: int, title: str, location: str, text: str, vector: np.ndarray | None
) -> None:
    row = db.execute("INSERT INTO passages(document, location, text) VALUES(?, ?, ?)", (document, location, text)).lastrowid
    searched = _searched(title, Chunk(text, location))
    db.execute("INSERT INTO words(rowid, place, text) VALUES(?, ?, ?)", (row, *searched))
    if vector is not None:
        codes = (vector * (127 / np.abs(vector).max())).round().astype(np.int8)
        db.execute("INSERT INTO signs VALUES(?, ?)", (row, pack_signs(vector).tobytes()))
        db.execute("INSERT INTO vectors VALUES(?, ?)", (row, codes.tobytes()))


def _remove(db: sqlite3.Connection, document: int) -> None:
    title = db.execute("SELECT title FROM documents WHERE id = ?", (document,)).fetchone()[0]
    rows = db.execute("SELECT id, location, text FROM passages WHERE document = ?", (document,)).fetchall()
    for identity, location, text in rows:
        old = _searched(title, Chunk(text, location))  # FTS5 without its own copy of the text must be told what to forget
        db.execute("INSERT INTO words(words, rowid, place, text) VALUES('delete', ?, ?, ?)", (identity, *old))
        for table in ("signs", "vectors"):
            db.execute(f"DELETE FROM {table} WHERE passage = ?", (identity,))
    db.execute("DELETE FROM passages WHERE document = ?", (document,))
    db.execute("DELETE FROM documents WHERE id = ?", (document,))


def _searched(title: str, part: Chunk) -> tuple[str, str]:
    return spaced(f"{title} {part.location}"), spaced(part.text)
