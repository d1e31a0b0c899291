"""Conversations on disk: one SQLite file in WAL mode, where a committed message survives a killed process."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from phi3mobile.assistant.pictures import Album, Picture
from phi3mobile.errors import InputError

VERSION = 2
PICTURES = ".pictures"  # after the store's name: the folder beside it
MEMORY = ":memory:"
# streaming: being written now, or when the process died; stopped: by the person; failed: by an error.
STATES = ("done", "streaming", "interrupted", "stopped", "failed")
_TABLES = """
CREATE TABLE chat (id INTEGER PRIMARY KEY, title TEXT NOT NULL, updated REAL NOT NULL);
CREATE TABLE message (
    id INTEGER PRIMARY KEY, chat INTEGER NOT NULL REFERENCES chat(id) ON DELETE CASCADE, role TEXT NOT NULL,
    content TEXT NOT NULL, state TEXT NOT NULL, sources TEXT NOT NULL, numbers TEXT NOT NULL,
    replaced INTEGER NOT NULL DEFAULT 0, pictures TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX message_chat ON message(chat, replaced, id);
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
# What makes a store of each earlier version one of the next.
_MIGRATIONS = {1: "ALTER TABLE message ADD COLUMN pictures TEXT NOT NULL DEFAULT '[]';"}


@dataclass(frozen=True)
class Chat:
    id: int
    title: str  # "" until the first question
    updated: float  # seconds since the epoch


@dataclass(frozen=True)
class Message:
    id: int
    role: str  # user, assistant
    content: str
    state: str = "done"
    sources: tuple[dict[str, Any], ...] = ()  # passages that the answer was given: text, title, source, location, score
    numbers: dict[str, Any] | None = None  # the answer's statistics
    pictures: tuple[Picture, ...] = ()  # that the person showed


class Store:
    """Use from one thread. Raises InputError on opening what is no store, or a newer one.

    `album` holds the messages' pictures, in a folder beside the file (of a store in memory, in a temporary one).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._scratch = TemporaryDirectory(prefix="phi3mobile-") if str(path) == MEMORY else None
        beside = self.path.with_name(self.path.name + PICTURES)
        self.album = Album(Path(self._scratch.name) if self._scratch else beside)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._open()
            self.album.tidy(self._pictures())
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"the conversations in {self.path} can't be read ({error}); move that file away") from None

    def _open(self) -> None:
        # WAL + NORMAL: a commit needs no disk flush (the window stays smooth), and only a power cut can undo the last ones.
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=3000"):
            self._db.execute(f"PRAGMA {pragma}")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise InputError(f"{self.path} was written by a newer version of this app; update the app")
        if version == 0:
            self._db.executescript(f"BEGIN;{_TABLES}PRAGMA user_version={VERSION};COMMIT;")
        for old in range(version or VERSION, VERSION):
            self._db.executescript(f"BEGIN;{_MIGRATIONS[old]}PRAGMA user_version={old + 1};COMMIT;")
        self._db.execute("UPDATE message SET state='interrupted' WHERE state='streaming'")

    def close(self) -> None:
        self._db.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def chats(self) -> list[Chat]:
        """Newest first."""
        return [Chat(*row) for row in self._db.execute("SELECT id, title, updated FROM chat ORDER BY updated DESC, id DESC")]

    def new_chat(self, title: str = "") -> int:
        return self._db.execute("INSERT INTO chat (title, updated) VALUES (?, ?)", (title, time.time())).lastrowid

    def rename(self, chat: int, title: str) -> None:
        self._db.execute("UPDATE chat SET title=? WHERE id=?", (title, chat))

    def delete(self, chat: int, keep: Collection[str] = ()) -> None:
        """With its messages, and the pictures that are in no other message; `keep`: names of pictures that stay."""
        its = self._pictures(chat)
        self._db.execute("DELETE FROM chat WHERE id=?", (chat,))
        self.album.remove(its - self._pictures() - set(keep))

    def messages(self, chat: int) -> list[Message]:
        """The conversation as it stands, in order; what was replaced by an edit or another try is left out."""
        rows = self._db.execute(
            "SELECT id, role, content, state, sources, numbers, pictures FROM message WHERE chat=? AND replaced=0 ORDER BY id",
            (chat,),
        )
        return [self._message(*row) for row in rows]

    def add(self, chat: int, role: str, content: str, state: str = "done", pictures: tuple[Picture, ...] = ()) -> Message:
        """Append; on disk when this returns. pictures: of this store's album."""
        shown = json.dumps([{"name": p.name, "width": p.width, "height": p.height} for p in pictures])
        values = (chat, role, content, state, "[]", "null", shown)
        with self._transaction():
            sql = "INSERT INTO message (chat, role, content, state, sources, numbers, pictures) VALUES (?, ?, ?, ?, ?, ?, ?)"
            number = self._db.execute(sql, values).lastrowid
            self._db.execute("UPDATE chat SET updated=? WHERE id=?", (time.time(), chat))
        return Message(number, role, content, state, pictures=pictures)

    def write(self, message: Message) -> None:
        """Store a message's new content, state, sources and numbers."""
        values = (message.content, message.state, json.dumps(message.sources), json.dumps(message.numbers), message.id)
        self._db.execute("UPDATE message SET content=?, state=?, sources=?, numbers=? WHERE id=?", values)

    def replace_from(self, chat: int, first: int) -> None:
        """Take message `first` and what follows it out of the conversation; the rows stay in the file."""
        self._db.execute("UPDATE message SET replaced=1 WHERE chat=? AND id>=?", (chat, first))

    def setting(self, name: str, default: Any = None) -> Any:
        row = self._db.execute("SELECT value FROM setting WHERE name=?", (name,)).fetchone()
        return json.loads(row[0]) if row else default

    def put_setting(self, name: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, json.dumps(value)))

    def _pictures(self, chat: int | None = None) -> set[str]:
        """Names of the pictures of all messages, or of one chat's; also of those that were replaced."""
        sql, values = ("", ()) if chat is None else (" AND chat=?", (chat,))
        rows = self._db.execute(f"SELECT pictures FROM message WHERE pictures != '[]'{sql}", values)
        return {picture["name"] for (shown,) in rows for picture in json.loads(shown)}

    def _message(self, number: int, role: str, content: str, state: str, sources: str, numbers: str, pictures: str) -> Message:
        shown = (Picture(self.album.folder / p["name"], p["width"], p["height"]) for p in json.loads(pictures))
        return Message(number, role, content, state, tuple(json.loads(sources)), json.loads(numbers), tuple(shown))

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._db.execute("ROLLBACK" if kind else "COMMIT")


def set_aside(path: str | Path) -> Path:
    """Rename a store that can't be read, with its journal and pictures, so that a new one can start; where it is now."""
    path = Path(path)
    new = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    for suffix in ("", "-wal", "-shm", PICTURES):
        old = path.with_name(path.name + suffix)
        if old.exists():
            old.rename(new.with_name(new.name + suffix))
    return new
