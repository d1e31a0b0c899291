"""Documents that are ZIP archives of XML: EPUB and Word."""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from phi3mobile.retrieval.document import MAX_BYTES, Block, Document, Unreadable, decode
from phi3mobile.retrieval.html import from_html

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_DC_TITLE = "{http://purl.org/dc/elements/1.1/}title"


def read_epub(path: Path) -> Document:
    with zipfile.ZipFile(path) as archive:
        read = _unpacker(archive)
        container = _xml(read("META-INF/container.xml"))
        root_file = next(node.get("full-path", "") for node in container.iter() if node.tag.endswith("}rootfile"))
        package, folder = _xml(read(root_file)), posixpath.dirname(root_file)
        items = {node.get("id"): node.get("href", "") for node in package.iter() if node.tag.endswith("}item")}
        spine = [items[node.get("idref")] for node in package.iter() if node.tag.endswith("}itemref")]
        document = Document(next((node.text or "" for node in package.iter(_DC_TITLE)), ""))
        for number, name in enumerate(spine, 1):
            chapter = from_html(decode(read(posixpath.normpath(posixpath.join(folder, unquote(name))))))
            document.blocks += [Block(block.text, block.level, f"section {number}") for block in chapter.blocks]
    return document


def read_docx(path: Path) -> Document:
    with zipfile.ZipFile(path) as archive:
        read = _unpacker(archive)
        body = _xml(read("word/document.xml")).find(f"{_W}body")
        if body is None:
            raise ValueError("word/document.xml has no body")
        levels = _heading_styles(read("word/styles.xml")) if "word/styles.xml" in archive.namelist() else {}
        title = ""
        if "docProps/core.xml" in archive.namelist():
            title = next((node.text or "" for node in _xml(read("docProps/core.xml")).iter(_DC_TITLE)), "")
    document = Document(title, list(_word_blocks(body, levels)))
    first = next((block.text for block in document.blocks if block.level), "")
    document.title = document.title or first
    return document


def _word_blocks(body: ElementTree.Element, levels: dict[str, int]) -> Iterator[Block]:
    for node in body:
        if node.tag == f"{_W}p":
            style = node.find(f"{_W}pPr/{_W}pStyle")
            yield Block(_word_text(node), levels.get(style.get(f"{_W}val", ""), 0) if style is not None else 0)
        elif node.tag == f"{_W}tbl":
            for row in node.iter(f"{_W}tr"):
                yield Block(" | ".join(_word_text(cell) for cell in row.iter(f"{_W}tc")))
        elif node.tag == f"{_W}sdt" and (inner := node.find(f"{_W}sdtContent")) is not None:
            yield from _word_blocks(inner, levels)


def _word_text(node: ElementTree.Element) -> str:
    breaks = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n"}
    return "".join(n.text or "" if n.tag == f"{_W}t" else breaks.get(n.tag, "") for n in node.iter()).strip()


def _heading_styles(styles: bytes) -> dict[str, int]:
    """Style id -> heading level; the built-in names "heading 1", "Title" are the same in every language of Word."""
    levels = {}
    for style in _xml(styles).iter(f"{_W}style"):
        name = style.find(f"{_W}name")
        found = re.fullmatch(r"heading (\d)|title", (name.get(f"{_W}val") or "").lower()) if name is not None else None
        if found:
            levels[style.get(f"{_W}styleId", "")] = int(found[1] or 1)
    return levels


def _unpacker(archive: zipfile.ZipFile) -> Callable[[str], bytes]:
    """read(name) that stops when all members together pass MAX_BYTES, whatever the archive's directory claims."""
    left = MAX_BYTES

    def read(name: str) -> bytes:
        nonlocal left
        with archive.open(name) as member:
            data = member.read(left + 1)
        left -= len(data)
        if left < 0:
            raise Unreadable(f"it unpacks to more than {MAX_BYTES >> 20} MB")
        return data

    return read


def _xml(data: bytes) -> ElementTree.Element:
    if b"<!ENTITY" in data:
        raise Unreadable("its XML defines entities, which these formats do not need")
    return ElementTree.fromstring(data)
