"""What every reader of documents makes: a title and blocks; and how it says that it can't."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_BYTES = 256 << 20  # of one document, unpacked: an archive can't fill the memory


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


class Unreadable(Exception):
    """Why a document can't be read."""


def decode(data: bytes) -> str:
    """UTF-8 or UTF-16 with a mark, UTF-8, else Windows-1252. Raises Unreadable for binary data."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    if b"\0" in data:
        raise Unreadable("it is binary data, not text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")
