"""Where the constants lie in an .aimodel's main.mlirb: MLIR bytecode's own account of them, read without Apple's loader.

The format: mlir.llvm.org/docs/BytecodeFormat. A file is a row of sections; section 5 holds the constants' bytes, section 6
their names and sizes, section 0 the strings.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from phi3mobile.errors import InputError

_MAGIC = b"ML\xefR"
_STRINGS, _RESOURCES, _RESOURCE_OFFSETS = 0, 5, 6
_BLOB = 0  # kind of a resource that is bytes


class _Reader:
    def __init__(self, data: mmap.mmap | memoryview, position: int = 0) -> None:
        self.data, self.position = data, position

    def byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def number(self) -> int:
        """A varint: the zeros at the end of its first byte say how many bytes follow."""
        first = self.byte()
        if first & 1:
            return first >> 1
        if first == 0:
            return self.fixed(8)
        follow = (first & -first).bit_length() - 1
        rest = int.from_bytes(self.data[self.position : self.position + follow], "little")
        self.position += follow
        return ((rest << 8) | first) >> (follow + 1)

    def fixed(self, count: int) -> int:
        self.position += count
        return int.from_bytes(self.data[self.position - count : self.position], "little")

    def align(self, to: int) -> None:
        self.position += -self.position % to


def resources(path: Path) -> dict[str, tuple[int, int]]:
    """Name -> offset in the file and number of bytes, of every constant that is kept as bytes. InputError: another format."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return dict(_resources(data))
    except (IndexError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} is no MLIR bytecode as coreai-core 1.0.0b3 writes it ({error}); export it again") from None


def _resources(data: mmap.mmap) -> Iterator[tuple[str, tuple[int, int]]]:
    if data[:4] != _MAGIC:
        raise ValueError("it begins otherwise")
    sections = dict(_sections(data))
    if _RESOURCE_OFFSETS not in sections:
        return
    names, (at, _) = _strings(data, *sections[_STRINGS]), sections[_RESOURCES]
    begin, length = sections[_RESOURCE_OFFSETS]
    table = _Reader(data, begin)
    if table.number():  # groups of resources that are no dialect's
        raise ValueError("it has resources outside of its dialects")
    while table.position < begin + length:
        table.number()  # the dialect
        for _ in range(table.number()):
            name, size, kind = names[table.number()], table.number(), table.byte()
            if kind == _BLOB:
                entry = _Reader(data, at)
                alignment, count = entry.number(), entry.number()
                entry.align(alignment)
                yield name, (entry.position, count)
            at += size


def _sections(data: mmap.mmap) -> Iterator[tuple[int, tuple[int, int]]]:
    """Number of each section -> where it begins and how long it is."""
    reader = _Reader(data, len(_MAGIC))
    reader.number()  # version
    while reader.byte():  # producer
        pass
    while reader.position < len(data):
        kind, length = reader.byte(), reader.number()
        if kind & 0x80:
            reader.align(reader.number())
        yield kind & 0x7F, (reader.position, length)
        reader.position += length


def _strings(data: mmap.mmap, begin: int, length: int) -> list[str]:
    """Their sizes come first, the last one's first; the bytes lie in order at the end of the section."""
    reader = _Reader(data, begin)
    sizes = [reader.number() for _ in range(reader.number())][::-1]
    at, found = begin + length - sum(sizes), []
    for size in sizes:
        found.append(data[at : at + size - 1].decode())
        at += size
    return found
