"""Documents that are ZIP archives of XML: their parts, and EPUB. Word has word.py."""

from __future__ import annotations

import contextlib
import posixpath
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from phi3mobile.retrieval.charsets import xml_text
from phi3mobile.retrieval.document import MAX_BYTES, Block, Document, Unreadable
from phi3mobile.retrieval.html import read_html

DC_TITLE = "{http://purl.org/dc/elements/1.1/}title"


def read_epub(path: Path) -> Document:
    with zipfile.ZipFile(path) as archive:
        read = unpacker(archive)
        container = parsed(read("META-INF/container.xml"))
        root_file = next(node.get("full-path", "") for node in container.iter() if node.tag.endswith("}rootfile"))
        package, folder = parsed(read(root_file)), posixpath.dirname(root_file)
        items = {node.get("id"): node.get("href", "") for node in package.iter() if node.tag.endswith("}item")}
        spine = [items[node.get("idref")] for node in package.iter() if node.tag.endswith("}itemref")]
        document = Document(next((node.text or "" for node in package.iter(DC_TITLE)), ""))
        for number, name in enumerate(dict.fromkeys(spine), 1):
            target = posixpath.normpath(posixpath.join(folder, unquote(name.partition("#")[0])))
            chapter = read_html(read(target), xhtml=True)
            document.blocks += [Block(block.text, block.level, f"section {number}") for block in chapter.blocks]
    return document


def unpacker(archive: zipfile.ZipFile) -> Callable[[str], bytes]:
    """read(name) that stops when all members together pass MAX_BYTES, whatever the archive's directory claims.

    A name in UTF-8 is found though the archive does not say that its names are, and in either form of its accents.
    """
    left = MAX_BYTES
    names = {_plain(info): info for info in archive.infolist()}

    def read(name: str) -> bytes:
        nonlocal left
        with archive.open(names.get(unicodedata.normalize("NFC", name), name)) as member:
            data = member.read(left + 1)
        left -= len(data)
        if left < 0:
            raise Unreadable(f"it unpacks to more than {MAX_BYTES >> 20} MB")
        return data

    return read


def _plain(member: zipfile.ZipInfo) -> str:
    """A member's name; without the flag for UTF-8 zipfile takes it for code page 437."""
    name = member.filename
    if not member.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return unicodedata.normalize("NFC", name)


def parsed(data: bytes) -> ElementTree.Element:
    """The root of an XML document in whatever encoding it names. Raises Unreadable: entities; ParseError: no XML."""
    text = xml_text(data)
    if "<!ENTITY" in text:
        raise Unreadable("its XML defines entities, which these formats do not need")
    return ElementTree.fromstring(text)
