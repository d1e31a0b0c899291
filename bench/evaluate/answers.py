"""What a model answered before, in one SQLite file: a run that was cut off goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError


class Answers:
    """Request -> answer of one model (`identity`: what it is computed from). Requests and answers are JSON values."""

    def __init__(self, path: Path, identity: str) -> None:
        """Raises InputError if `path` can't be written or is no such file."""
        self._identity = identity
        self.fresh = 0  # answers put since the opening
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, isolation_level=None)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")  # a crash of the machine may lose the last ones, no more
            self._file.execute("CREATE TABLE IF NOT EXISTS answer (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{path} can't hold answers ({error}); give another --answers file") from None

    def get(self, request: Any) -> Any:
        """The answer, or None."""
        found = self._file.execute("SELECT value FROM answer WHERE key = ?", (self._key(request),)).fetchone()
        return None if found is None else json.loads(found[0])

    def put(self, request: Any, answer: Any) -> None:
        """On disk when this returns."""
        self.fresh += 1
        self._file.execute("INSERT OR REPLACE INTO answer VALUES (?, ?)", (self._key(request), json.dumps(answer)))

    def close(self) -> None:
        self._file.close()

    def _key(self, request: Any) -> bytes:
        return hashlib.sha256(json.dumps([self._identity, request]).encode()).digest()[:16]
