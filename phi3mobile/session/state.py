"""A session's KV cache in a file, so that what was prefilled is not prefilled again after the process ended.

The file is that of phi3mobile/core/src/state.h, with a JSON text that says whose cache it is; the core's sessions read and
write the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from phi3mobile.bundle import Bundle
from phi3mobile.errors import InputError
from phi3mobile.session.decoding import Rows

FORMAT = "phi3mobile-state"


@runtime_checkable
class KeepsState(Protocol):
    """An engine whose KV cache can go to a file and come back."""

    def save_state(self, path: Path, about: str) -> int: ...  # bytes written
    def load_state(self, path: Path) -> None: ...
    def state_about(self, path: Path) -> str: ...
    def state_runtime(self) -> str: ...


def save_state(rows: Rows, parts: Any, path: Path) -> int:
    """Write what the KV cache holds to `path`, whole or not at all; bytes of the file. Raises InputError.

    Rows from a picture on are left out: a later process gives its pictures other numbers.
    """
    engine, program = _checked(rows, parts)
    known = next((i for i, token in enumerate(rows.tokens) if token < 0), len(rows.tokens))
    about = {
        "format": FORMAT,
        "program": program,
        "runtime": engine.state_runtime(),
        "long": rows.long,
        "farthest": rows.farthest,
        "tokens": rows.tokens[:known],
    }
    return engine.save_state(path, json.dumps(about))


def restore_state(rows: Rows, parts: Any, path: Path) -> int:
    """Fill the KV cache with what save_state wrote; how many tokens it holds.

    Raises InputError: no such file, a damaged one, another bundle's or runtime's. The cache is empty then.
    """
    engine, program = _checked(rows, parts)
    rows.tokens.clear()
    try:
        about = json.loads(engine.state_about(path))
        tokens, long, farthest = about["tokens"], about["long"], about["farthest"]
        ours = about["format"] == FORMAT and type(farthest) is int and all(type(token) is int for token in tokens)
    except (ValueError, TypeError, KeyError):
        ours = False
    if not ours or len(tokens) > rows.engine.info.max_context:
        raise InputError(f"{path} is no state of a session; give a file that Session.save wrote")
    if about["program"] != program:
        raise InputError(f"{path} was saved with another bundle: prefill again")
    if about["runtime"] != engine.state_runtime():
        raise InputError(f"{path} was saved with another runtime: prefill again")
    engine.load_state(path)
    rows.tokens[:], rows.long, rows.farthest = tokens, bool(long), farthest
    return len(tokens)


def _checked(rows: Rows, parts: Any) -> tuple[KeepsState, str]:
    """The engine, and the hash of the bundle's program."""
    if not isinstance(rows.engine, KeepsState) or not isinstance(parts, Bundle):
        raise InputError(f"{type(rows.engine).__name__} can't keep its KV cache in a file: bundles of the native engine can")
    return rows.engine, parts.manifest["files"][parts.manifest["runtime"]["program"]]["sha256"]
