"""A document to the passages that are indexed: whole paragraphs under their headings, of a length that an embedder reads."""

from __future__ import annotations

import re
from dataclasses import dataclass

from phi3mobile.retrieval.document import Block, Document

LONGEST = 1000  # characters: about 230 of MiniLM's 256 tokens
SHORT = 250  # a passage this short goes on past the next heading


@dataclass(frozen=True)
class Chunk:
    text: str
    location: str  # headings from the highest down, then the place: "Install > Linux, page 3"


def chunk(document: Document) -> list[Chunk]:
    """Passages in reading order; together they hold all text of all blocks. None is longer than LONGEST characters."""
    chunks: list[Chunk] = []
    path: list[Block] = []  # headings that the current position is under
    lines: list[str] = []
    location = ""

    def flush() -> None:
        if lines:
            chunks.append(Chunk("\n".join(lines), location))
            lines.clear()

    for block in document.blocks:
        if block.level:
            path = [*(heading for heading in path if heading.level < block.level), block]
        length = sum(map(len, lines)) + len(lines)
        for piece in _pieces(block.text.strip("\n")):
            if lines and (length + len(piece) > LONGEST or (block.level and length > SHORT)):
                flush()
            if not lines:
                location, length = _location(path, block.place), 0
            lines.append(piece)
            length += len(piece) + 1
    flush()
    return chunks


def _location(path: list[Block], place: str) -> str:
    headings = " > ".join(" ".join(heading.text.split())[:80] for heading in path)
    return ", ".join(part for part in (headings, place) if part)


def _pieces(text: str) -> list[str]:
    """`text` cut into pieces of at most LONGEST characters: at line ends, else sentence ends, else spaces, else anywhere."""
    if len(text) <= LONGEST:
        return [text]
    for cut in (r"(?<=\n)", r"(?<=[.!?;])\s+|(?<=[。！？；])", r"\s+"):
        parts = [part for part in re.split(cut, text) if part.strip()]
        if len(parts) > 1:
            break
    else:
        return [text[at : at + LONGEST] for at in range(0, len(text), LONGEST)]
    joint = "" if cut == r"(?<=\n)" else " "
    pieces: list[str] = []
    for part in parts:
        if pieces and len(pieces[-1]) + len(joint) + len(part) <= LONGEST:
            pieces[-1] += joint + part
        else:
            pieces += _pieces(part.rstrip("\n"))
    return pieces
