"""What every reader of documents makes: a title and blocks; and how it says that it can't."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from phi3mobile.unicode import valid

MAX_BYTES = 256 << 20  # of one document, unpacked: an archive can't fill the memory
LONGEST_ROW = 600  # characters of a table row that is read as one line


@dataclass(frozen=True)
class Block:
    """A paragraph, list item, table row or code block; or a heading, which has a level (1 is the highest)."""

    text: str
    level: int = 0  # 0: not a heading
    place: str = ""  # where the document itself says so: "page 3", "line 120"


@dataclass
class Document:
    title: str
    blocks: list[Block] = field(default_factory=list)

    def cleaned(self) -> Document:
        """The same with valid, visible text (see `clean`), without the blocks that have none."""
        blocks = (Block(clean(block.text), block.level, clean(block.place)) for block in self.blocks)
        return Document(" ".join(clean(self.title).split()), [block for block in blocks if block.text.strip()])


class Unreadable(Exception):
    """Why a document can't be read."""


def clean(text: str) -> str:
    """`text` as valid Unicode, with one kind of line end, without controls and what no reader sees (soft hyphens, marks)."""
    return valid(text).translate(_CLEAN)


_CLEAN: dict[int, str | None] = dict.fromkeys((*range(32), *range(127, 160), 0xAD, 0xFEFF), None)
_CLEAN |= {ord(char): char for char in "\t\n"} | dict.fromkeys(map(ord, "\r\v\f\x85\u2028\u2029"), "\n")


def row(cells: Sequence[list[Block]]) -> Iterator[Block]:
    """A table's row, given each cell's blocks: one line "May | 700" of cells that are not empty.

    A row that lays out a page, with headings, tables or much text in its cells, is its cells' blocks, one after the other.
    """
    full = [cell for cell in cells if any(block.text.strip() for block in cell)]
    blocks = [block for cell in full for block in cell]
    long = sum(len(block.text) for block in blocks) > LONGEST_ROW and any(len(cell) > 1 for cell in full)
    if long or any(block.level or isinstance(block, Row) for block in blocks):
        yield from blocks
    elif full:
        yield Row(" | ".join(" ".join(line for block in cell for line in _lines(block)) for cell in full))


class Row(Block):
    """A block that is a table's row."""


def _lines(block: Block) -> Iterable[str]:
    return filter(None, map(str.strip, block.text.split("\n")))
