"""Files that are whole or absent: folders written beside and renamed, disk space asked for first, hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.partial import beside
from phi3mobile.unicode import printable


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A scratch folder beside `path` that becomes `path` when the block ends well, and vanishes when it does not.

    What killed processes left beside `path` is removed. Raises InputError if `path` exists or can't be made.
    """
    refuse_existing(path)
    path = path.absolute()
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = stack.enter_context(beside(path))
            partial.mkdir()
            with suppress(FileNotFoundError):
                path.lstat()  # a name that is too long
        except OSError as error:
            raise InputError(f"{path} can't be made ({error.filename}: {error.strerror}); write elsewhere") from None
        yield partial
        refuse_existing(path)  # another run was faster
        partial.rename(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to: what is there replaces `path` when the block ends well, and vanishes when it does not.

    Where `path` leads to a device, a pipe or a socket, the bytes are written into that. Raises OSError.
    """
    if is_special(path):
        with TemporaryDirectory(prefix="phi3mobile-") as folder:
            partial = Path(folder) / (path.name or "out")
            yield partial
            with partial.open("rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        return
    path = path.resolve() if path.is_symlink() else path.absolute()  # what a link leads to is replaced, not the link
    with beside(path) as partial:
        yield partial
        partial.replace(path)


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A hidden folder in `parent` that goes with the block; what killed processes left there goes before. Raises OSError."""
    with beside(parent / name) as folder:
        folder.mkdir()
        yield folder


def is_special(path: Path) -> bool:
    """Whether `path` leads to what is neither file nor folder, or a name of an open file such as /dev/stdout."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    named = path.absolute().parts[:2] in (("/", "dev"), ("/", "proc"))
    return not stat.S_ISDIR(mode) and (named or not stat.S_ISREG(mode))


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


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a checkpoint's file; empty if there is no such file. InputError for anything else."""
    try:
        value = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read ({error}); download the folder again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object; download the folder again")
    return value


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
