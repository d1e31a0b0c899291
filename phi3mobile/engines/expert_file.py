"""A bundle's file of experts: its header, its packed form in the user's cache, what the runner counts. No torch.

The layout stands in core/src/expert_file.h: a header of 64 bytes, two checksums a record, then one record for each layer and
expert, [w13][w2], both at multiples of ALIGN. In the bundle parts are plain; XNNPACK's packed form, which depends on the
machine, is made in the cache at the first start and read from there: all of it mapped, or experts as they are needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.files import cache_root, require_space

ALIGN = 16384
SUFFIX = ".experts"
LIMIT = 64 << 30  # bytes all packed files together may take; the longest unused go first
HEADER = struct.Struct("<4s9I3Q")
MAGIC, VERSION = b"P3ME", 1


@dataclass(frozen=True)
class ExpertShape:
    """Sizes of a file of experts: w13 is [2 * inner, hidden], w2 [hidden, inner]; groups: columns of a scale."""

    layers: int
    experts: int
    hidden: int
    inner: int
    group13: int
    group2: int

    @property
    def bytes13(self) -> int:
        return 2 * self.inner * (self.hidden // 2 + self.hidden // self.group13 * 2)

    @property
    def bytes2(self) -> int:
        return self.hidden * (self.inner // 2 + self.inner // self.group2 * 2)

    @property
    def record(self) -> int:
        """Bytes of one expert."""
        return padded(self.bytes13) + padded(self.bytes2)

    @property
    def data_at(self) -> int:
        return padded(HEADER.size + 16 * self.layers * self.experts)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.data_at + self.layers * self.experts * self.record

    def header(self, check: int = 0) -> bytes:
        shape = (self.layers, self.experts, self.hidden, self.inner, self.group13, self.group2)
        return HEADER.pack(MAGIC, VERSION, 0, *shape, 0, self.bytes13, self.bytes2, check)


def padded(size: int) -> int:
    """Up to the next multiple of ALIGN."""
    return -(-size // ALIGN) * ALIGN


def packed_path(sha256: str, runtime_version: str) -> Path:
    """Where the packed form of a bundle's file with that hash lies; it may not exist yet."""
    runtime = "".join(c if c.isalnum() or c in ".-" else "-" for c in runtime_version)
    return cache_root() / "packed" / f"{sha256[:32]}-{runtime}{SUFFIX}"


def packed_file(library: ctypes.CDLL, plain: Path, sha256: str, runtime_version: str, threads: int = 0) -> Path:
    """The packed form of `plain`, made if it is not there. InputError: no disk, or a damaged file, by name."""
    path = packed_path(sha256, runtime_version)
    if path.is_file():
        with contextlib.suppress(OSError):
            os.utime(path)
        return path
    size = plain.stat().st_size
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _evict(path.parent, size)
        require_space(path, size + size // 16 + (64 << 20))
    except OSError as error:
        raise InputError(f"{path.parent} can't be written ({error.strerror}): packed experts lie there") from None
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        said = ctypes.create_string_buffer(2000)
        if library.p3m_pack_experts(bytes(plain), bytes(partial), threads, said, len(said)):
            raise InputError(said.value.decode(errors="replace"))
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _evict(folder: Path, needed: int) -> None:
    """Deletes the longest unused packed files until `needed` bytes fit the limit. Open ones keep their bytes until closed."""
    files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob(f"*{SUFFIX}"))
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total + needed <= LIMIT:
            break
        path.unlink(missing_ok=True)
        total -= size


_COUNTS = ("hits", "misses", "bytes_read", "stall_us", "slots", "mapped", "bytes", "bytes_of_one")


def statistics(library: ctypes.CDLL, model: int) -> dict[str, Any] | None:
    """What the runner counted since the model was opened: experts found in memory (hits) and not, bytes read, seconds waited
    for reads, slots, whether all are mapped, bytes of all experts and of one. None: a model without experts."""
    values = (ctypes.c_int64 * len(_COUNTS))()
    if not library.p3m_expert_statistics(model, values, len(values)):
        return None
    found: dict[str, Any] = dict(zip(_COUNTS, values, strict=True))
    asked = found["hits"] + found["misses"]
    found["stall_s"] = found.pop("stall_us") / 1e6
    found["mapped"] = bool(found["mapped"])
    return found | {"hit_rate": round(found["hits"] / asked, 4) if asked else None}
