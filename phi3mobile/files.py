"""Files that are whole or absent: folders written beside and renamed, disk space asked for first, hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from phi3mobile.errors import InputError
from phi3mobile.unicode import printable


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A scratch folder beside `path` that becomes `path` when the block ends well, and vanishes when it does not.

    What a killed process left of an earlier try is removed. Raises InputError if `path` exists or can't be made.
    """
    refuse_existing(path)
    partial = path.absolute().with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        for old in partial.parent.glob(f".{escape(path.name)}.partial-*"):
            if old == partial or not _alive(old.name.rpartition("-")[2]):  # its id may be ours by now
                shutil.rmtree(old, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise InputError(f"{path} can't be made ({error.filename}: {error.strerror}); write elsewhere") from None
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to: it replaces `path` when the block ends well, and vanishes when it does not."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def refuse_existing(path: Path) -> None:
    """InputError if there is something at `path`, be it a broken link, or if it could not be written (see require_utf8)."""
    require_utf8(path)
    if os.path.lexists(path):
        raise InputError(f"{path} exists; give another name or remove it")


def require_utf8(path: Path) -> None:
    """InputError if a path is not UTF-8: tokenizers, safetensors and ExecuTorch take no other."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        todo = "the libraries that read and write models can't open it: rename it"
        raise InputError(f"{printable(path.absolute())} is not UTF-8; {todo}") from None


def _alive(pid: str) -> bool:
    import psutil

    return pid.isdigit() and psutil.pid_exists(int(pid))


def require_space(path: Path, needed: int) -> None:
    """InputError with both numbers if the disk of `path` (which need not exist yet) has less than `needed` bytes free."""
    parent = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise InputError(
            f"{path} needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; make room or write elsewhere"
        )


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_root() -> Path:
    """The one folder of this user's caches of phi3mobile, which need not exist: XDG_CACHE_HOME's, else the platform's."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "phi3mobile"
    try:
        from platformdirs import user_cache_path
    except ImportError:  # on a phone, where the home is the app's own
        return Path.home() / ".cache" / "phi3mobile"
    return user_cache_path("phi3mobile", appauthor=False)


def cache_folder() -> Path:
    """cache_root(), made on demand. Raises InputError if it can't be."""
    folder = cache_root()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} can't be made ({error.strerror}); set XDG_CACHE_HOME to a folder of yours") from None
    return folder
