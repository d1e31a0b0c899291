"""Files of packed weights: where they are, which may be trusted, how much disk they may take.

XNNPACK packs a model's weights at load into a memory-mapped file instead of the heap, so that they are clean pages
and the next start maps them instead of packing. It takes any file whose index is consistent, also one left by a load
that was killed halfway, and falls back to the heap without an error. So beside each file lies a mark, `<file>.json`,
written after a load that went through; a file that does not match its mark is deleted. The mark is also the lock of
whoever is opening.

File format (read from ExecuTorch 1.5's files), little-endian: regions, then entries (u32 length, name, u64 offset,
u64 size, u32 seed), then u64 start of the entries, u32 count, u32 magic "XPWC", u32 version 2.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from phi3mobile.files import cache_root
from phi3mobile.partial import flock

SUFFIX = ".packed"
HELD = "another process has this model open"
LIMIT = 16 << 30  # bytes all files together may take; the longest unused go first
LONGEST_PATH = 255  # bytes; XNNPACK cuts a longer path silently
_MARGIN = 64 << 20  # bytes to leave free: the file is written through a mapping, where a full disk kills the process
_FOOTER = struct.Struct("<QIII")
_MAGIC, _VERSION = 0x58505743, 2
_SAMPLES, _PAGE = 256, 4096  # how much of a file its mark's checksum reads


def folder() -> Path:
    """This user's folder for packed weights; it may not exist yet."""
    return cache_root() / "packed"


def file_for(bundle_hash: str, runtime_version: str) -> Path:
    """The file of one bundle under one runtime, whichever; the longest unused others go while all are over LIMIT.

    bundle_hash: hexadecimal; the first 32 digits name the file.
    """
    runtime = "".join(c if c.isalnum() or c in ".-" else "-" for c in runtime_version)
    file = folder() / f"{bundle_hash[:32]}-{runtime}{SUFFIX}"
    with contextlib.suppress(OSError):  # a folder that can't be read: whoever writes to it says so
        _evict(file, _size(file), LIMIT)
    return file


def read_index(file: Path) -> list[tuple[str, int, int]]:
    """Name, offset and size in bytes of every packed weight. Raises ValueError for a damaged or foreign file."""
    size = file.stat().st_size
    with file.open("rb") as f:
        if size < _FOOTER.size:
            raise ValueError(f"{file.name} has only {size} bytes")
        f.seek(size - _FOOTER.size)
        start, count, magic, version = _FOOTER.unpack(f.read(_FOOTER.size))
        if (magic, version) != (_MAGIC, _VERSION):
            raise ValueError(f"{file.name} does not end like packed weights of version {_VERSION}")
        if start > size - _FOOTER.size:
            raise ValueError(f"{file.name} is cut off")
        f.seek(start)
        rest = f.read(size - _FOOTER.size - start)
    entries = []
    at = 0
    for _ in range(count):
        if at + 4 > len(rest):
            raise ValueError(f"the index of {file.name} is cut off")
        (length,) = struct.unpack_from("<I", rest, at)
        if at + 4 + length + 20 > len(rest):
            raise ValueError(f"the index of {file.name} is cut off")
        name = rest[at + 4 : at + 4 + length].decode("ascii", "replace")
        offset, size, _seed = struct.unpack_from("<QQI", rest, at + 4 + length)
        if offset + size > start:
            raise ValueError(f"{file.name}: {name} lies outside the file")
        entries.append((name, offset, size))
        at += 4 + length + 20
    if at != len(rest) or not entries:
        raise ValueError(f"the index of {file.name} does not fit its length")
    return entries


@dataclass
class Slot:
    """Leave to use a file: `file` for the runtime, or None and the reason why the weights go to the heap."""

    file: Path | None
    reason: str = ""
    _mark: BinaryIO | None = None

    def keep(self) -> None:
        """The load that made the file went through: trust it from now on."""
        assert self.file is not None and self._mark is not None
        _write(self._mark, json.dumps(_mark_of(self.file)).encode())


@contextmanager
def reserve(file: Path, needed: int, limit: int = LIMIT) -> Iterator[Slot]:
    """While a model is being opened: checks or makes room for its file. needed: expected bytes of packed weights."""
    mark, reason = _lock(file)
    if mark is None:
        yield Slot(None, reason)
        return
    with mark:
        reason = "" if _is_whole(file, mark) else _clear(file, mark) or _make_room(file, needed, limit)
        yield Slot(None, reason) if reason else Slot(file, "", mark)


def _mark_path(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _lock(file: Path) -> tuple[BinaryIO | None, str]:
    if sys.platform == "win32":
        return None, "packed weights can't be mapped from a file on Windows"
    if len(os.fsencode(file)) > LONGEST_PATH:
        return None, f"the path {file} is longer than {LONGEST_PATH} bytes"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        mark = os.fdopen(os.open(_mark_path(file), os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    except OSError as error:
        return None, f"can't write in {file.parent}: {error.strerror}"
    if not flock(mark.fileno()):
        mark.close()
        return None, "another process is opening this model"
    return mark, ""


def is_locked(file: Path) -> bool:
    """Whether a running process has the file mapped by XNNPACK, which locks it."""
    if sys.platform == "win32":
        return False
    try:
        with file.open("rb") as f:
            return not flock(f.fileno())
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _mark_of(file: Path) -> dict:
    """What a whole file looks like. The checksum reads the index and pages spread over the file, not gigabytes."""
    size = file.stat().st_size
    entries = read_index(file)
    index_start = max(offset + length for _, offset, length in entries)
    check = 0
    with file.open("rb") as f:
        for i in range(_SAMPLES):
            f.seek(index_start * i // _SAMPLES)
            check = zlib.crc32(f.read(_PAGE), check)
        f.seek(index_start)
        check = zlib.crc32(f.read(), check)
    return {"file": file.name, "bytes": size, "entries": len(entries), "crc32": check}


def _is_whole(file: Path, mark: BinaryIO) -> bool:
    mark.seek(0)
    try:
        if json.loads(mark.read()) != _mark_of(file):
            return False
    except (OSError, ValueError):
        return False
    os.utime(mark.fileno())  # used now: the eviction's order
    return True


def _write(mark: BinaryIO, text: bytes) -> None:
    mark.seek(0)
    mark.truncate()
    mark.write(text)
    mark.flush()
    os.fsync(mark.fileno())


def _clear(file: Path, mark: BinaryIO) -> str:
    """Deletes a file that can't be trusted; the reason if that can't be done."""
    if is_locked(file):
        return HELD
    try:
        file.unlink(missing_ok=True)
        _write(mark, b"")
    except OSError as error:
        return f"can't replace {file.name}: {error.strerror}"
    return ""


def _make_room(file: Path, needed: int, limit: int) -> str:
    """Deletes the longest unused files until `needed` bytes fit; the reason if they don't."""
    if not os.access(file.parent, os.W_OK):
        return f"can't write in {file.parent}"
    if needed > limit:
        return f"{needed >> 20} MiB of packed weights are over the limit of {limit >> 20} MiB"
    total = _evict(file, needed, limit)
    if total + needed > limit:
        return f"other models in use hold {total >> 20} MiB of the {limit >> 20} MiB for packed weights"
    free = shutil.disk_usage(file.parent).free
    if free < needed + _MARGIN:
        return f"the disk has {free >> 20} MiB free, {(needed + _MARGIN) >> 20} MiB are needed"
    return ""


def _evict(file: Path, needed: int, limit: int) -> int:
    """Deletes the longest unused files but `file` until `needed` bytes fit; returns the bytes of those that are left."""
    others = [(_used(f), _size(f), f) for f in file.parent.glob(f"*{SUFFIX}") if f != file]
    total = sum(size for _, size, _ in others)
    for _, size, old in sorted(others):
        if total + needed <= limit:
            break
        if not is_locked(old):
            old.unlink(missing_ok=True)
            _mark_path(old).unlink(missing_ok=True)
            total -= size
    return total


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _used(file: Path) -> float:
    """When a file was last used: its mark says; of LiteRT's, which has none, the file."""
    for path in (_mark_path(file), file):
        with contextlib.suppress(OSError):
            status = path.stat()
            return max(status.st_mtime, status.st_atime if path == file else 0)
    return 0.0
