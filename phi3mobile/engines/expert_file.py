"""A bundle's file of experts: its header, its tiles, what the runner counts. No torch.

The layout stands in core/src/expert_format.h: a header of 64 bytes, two checksums a record, then one
record for each layer and expert, [w13][w2], both at multiples of ALIGN. It is used as it lies: all of it mapped, or experts
read as they are needed.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import Any

from phi3mobile.engines.tiles import TileForm

ALIGN = 16384
HEADER = struct.Struct("<4s9I3Q")
MAGIC, VERSION = b"P3ME", 3


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
    def form13(self) -> TileForm:
        return TileForm(self.hidden, self.group13)

    @property
    def form2(self) -> TileForm:
        return TileForm(self.inner, self.group2)

    @property
    def bytes13(self) -> int:
        return 2 * self.form13.matrix_bytes(self.inner)

    @property
    def bytes2(self) -> int:
        return self.form2.matrix_bytes(self.hidden)

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
        return HEADER.pack(MAGIC, VERSION, *shape, 0, 0, self.bytes13, self.bytes2, check)


def padded(size: int) -> int:
    """Up to the next multiple of ALIGN."""
    return -(-size // ALIGN) * ALIGN


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
