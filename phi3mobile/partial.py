"""Hidden names for what is being written, each with a lock beside it, and the removal of those whose process is gone.

A lock file holds an flock as long as its process lives: the kernel lets go of it at any death, kill -9 included, ids that are
used again and containers of one kernel don't confuse it. What another kernel locked (a restart since, another computer on a
shared disk, where locks may not reach) is taken for left only when it lay untouched for a day.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

fcntl: Any = None
with contextlib.suppress(ImportError):  # Windows has none, and there nobody can delete a file that a process has open
    fcntl = importlib.import_module("fcntl")

_LOCK = ".lock"
_NAME = re.compile(r"\..+\.partial-(?:[0-9a-f]{12}|\d+)(?:\.lock)?", re.DOTALL)  # digits: of earlier versions
_UNTOUCHED_S = 24 * 3600


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A hidden name in the folder of `path`, which must be there; what is left under it goes when the block ends.

    What dead processes left in that folder, whatever they were writing, goes before. Raises OSError.
    """
    sweep(path.parent)
    partial, file = _claim(path)
    try:
        yield partial
    finally:
        remove(partial)
        _let_go(_lock_of(partial), file)


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """While the block runs no other process is in such a block for `path`; False: one is. `path` itself is left alone."""
    file = _take(_lock_of(path), os.O_CREAT)
    if file is None:
        yield False
        return
    try:
        yield True
    finally:
        _let_go(_lock_of(path), file)


def is_partial(path: Path) -> bool:
    """Whether this is such a hidden name, or its lock. After a sweep: of a process that lives, or may."""
    return _NAME.fullmatch(path.name) is not None


def sweep(folder: Path) -> None:
    """Remove what dead processes left in `folder`; what can't be removed stays."""
    try:
        found = {path.name.removesuffix(_LOCK) for path in folder.iterdir() if is_partial(path)}
    except OSError:
        return
    for name in found:
        with _dead(folder / name) as dead:
            if dead:
                remove(folder / name)


def remove(path: Path) -> None:
    """A file, or a folder with all in it, as far as it can be."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _claim(path: Path) -> tuple[Path, int]:
    """A new hidden name beside `path`, and its open lock. A sweep may hold a lock that is not locked yet: then another name."""
    stem = os.fsdecode(os.fsencode(path.name)[:200])  # names end at 255 bytes
    for _ in range(20):
        partial = path.with_name(f".{stem}.partial-{secrets.token_hex(6)}")
        file = _take(_lock_of(partial), os.O_CREAT | os.O_EXCL)
        if file is not None:
            return partial, file
    raise OSError(0, "another process is sweeping here without an end", str(path))


def _take(lock: Path, flags: int) -> int | None:
    """Open and lock; None: another process has it."""
    for _ in range(20):
        file = os.open(lock, os.O_RDWR | flags, 0o600)
        if os.fstat(file).st_size == 0:
            os.write(file, _kernel().encode())
        locked = flock(file)
        if locked is not False and _is(file, lock):
            return file
        os.close(file)
        if locked is False or flags & os.O_EXCL:
            return None
    return None  # who had it took it away, each time just before it was ours


def _let_go(lock: Path, file: int) -> None:
    if fcntl is None:
        os.close(file)
    with contextlib.suppress(OSError):
        lock.unlink()
    if fcntl is not None:  # after that: until now nobody else could take it for his
        os.close(file)


@contextmanager
def _dead(partial: Path) -> Iterator[bool]:
    """Whether the process that wrote `partial` is gone; its lock is then ours, and goes at the end."""
    lock = _lock_of(partial)
    try:
        file = os.open(lock, os.O_RDWR)
    except FileNotFoundError:  # of an earlier version, or taken away a moment ago
        yield _untouched(partial)
        return
    except OSError:
        yield False
        return
    if fcntl is None:
        os.close(file)
        try:
            lock.unlink()
        except OSError:
            yield False
        else:
            yield True
        return
    locked, dead = flock(file), False
    try:
        if locked is not False and _is(file, lock):
            ours = os.pread(file, 200, 0).decode(errors="replace") in (_kernel(), "")  # "": killed before it wrote anything
            dead = bool(locked and ours) or _untouched(partial, lock)
        yield dead
    finally:
        if dead:
            _let_go(lock, file)
        else:
            os.close(file)


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + _LOCK)


def flock(file: int) -> bool | None:
    """Lock an open file against other processes. False: one has it; None: this file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is(file: int, path: Path) -> bool:
    """Whether the open file is still what the name stands for."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def _untouched(*paths: Path) -> bool:
    """Whether nothing under these paths changed for a day."""
    newest = 0.0
    for path in paths:
        for one in (path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())):
            with contextlib.suppress(OSError):
                newest = max(newest, one.lstat().st_mtime)
    return newest < time.time() - _UNTOUCHED_S


@cache
def _kernel() -> str:
    """The same for all containers of one running kernel."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return platform.node()
