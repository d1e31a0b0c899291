"""Word documents (.docx) as their reader sees them: changes accepted, each text once, notes after what refers to them.

Left out are headers, footers and comments, deleted, moved-from and hidden text, what fields are calculated from, and what
stands in for text boxes in old programs. Text boxes follow their paragraph. Source: ECMA-376, parts 1 (17, 22.1) and 3.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

from phi3mobile.retrieval.archives import DC_TITLE, parsed, unpacker
from phi3mobile.retrieval.document import Block, Document, row
from phi3mobile.retrieval.symbols import symbol

# Namespaces, transitional and strict -> the prefix that the tags have below; what is in no other has "?:".
_PREFIXES = {
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main": "",
    "http://purl.oclc.org/ooxml/wordprocessingml/main": "",
    "http://schemas.openxmlformats.org/officeDocument/2006/math": "m:",
    "http://purl.oclc.org/ooxml/officeDocument/math": "m:",
    "http://schemas.openxmlformats.org/drawingml/2006/main": "a:",
    "http://purl.oclc.org/ooxml/drawingml/main": "a:",
    "http://schemas.openxmlformats.org/markup-compatibility/2006": "mc:",
}
_THROUGH = frozenset(("ins", "moveTo", "sdt", "sdtContent", "customXml", "smartTag", "hyperlink", "fldSimple", "bdo", "dir"))
_LEFT_OUT = frozenset(("del", "moveFrom", "delText", "instrText", "delInstrText"))
_TEXTS = frozenset(("t", "m:t", "a:t"))
_SIGNS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "a:br": "\n", "noBreakHyphen": "-"}
# What stands before a part of a formula: (tag of the whole, tag of the part).
_FORMULA = {
    ("m:f", "m:den"): "/",
    ("m:sSup", "m:sup"): "^",
    ("m:sSub", "m:sub"): "_",
    ("m:sSubSup", "m:sub"): "_",
    ("m:sSubSup", "m:sup"): "^",
    ("m:nary", "m:sub"): "_",
    ("m:nary", "m:sup"): "^",
    ("m:nary", "m:e"): " ",
    ("m:rad", "m:e"): "√",
    ("m:mr", "m:e"): " ",
    ("m:eqArr", "m:e"): "\n",
    ("m:limLow", "m:lim"): "_",
    ("m:limUpp", "m:lim"): "^",
}


def read_docx(path: Path) -> Document:
    """Title and blocks. Raises Unreadable: too large, XML with entities; anything for a damaged file."""
    with zipfile.ZipFile(path) as archive:
        read, names = unpacker(archive), frozenset(archive.namelist())
        main = _related("", read, names).get("officeDocument", "word/document.xml")
        body = next((node for node in parsed(read(main)) if _tag(node) == "body"), None)
        if body is None:
            raise ValueError(f"{main} has no body")
        parts = _related(main, read, names)
        levels, hidden = _styles(parsed(read(parts["styles"]))) if "styles" in parts else ({}, frozenset())
        notes = {
            (kind, node.get(_attribute(node, "id"), "")): node
            for kind in ("footnote", "endnote")
            if f"{kind}s" in parts
            for node in parsed(read(parts[f"{kind}s"]))
        }
        title = ""
        if "docProps/core.xml" in names:
            title = next((node.text or "" for node in parsed(read("docProps/core.xml")).iter(DC_TITLE)), "")
    blocks = list(_Story(levels, hidden, notes).read(body))
    return Document(title or next((block.text for block in blocks if block.level), ""), blocks)


@dataclass
class _Line:
    """A paragraph in the making."""

    parts: list[str] = field(default_factory=list)
    after: list[Block] = field(default_factory=list)  # text boxes
    raised: bool = False  # whether the run before is superscript

    def add(self, text: str, raised: bool) -> None:
        """Raised digits apart from what they are raised on: 10^6 is no 106, and a note's number no part of the word."""
        if raised and not self.raised and "".join(self.parts)[-1:].isalnum() and re.match(r"[-+−]?\d", text):
            self.parts.append("^")
        self.parts.append(text)
        self.raised = raised


class _Story:
    """Reads one part's text; `notes` are its footnotes and endnotes, each taken once."""

    def __init__(self, levels: dict[str, int], hidden: frozenset[str], notes: dict[tuple[str, str], Element]) -> None:
        self._levels, self._hidden, self._notes = levels, hidden, notes
        self._fields: list[bool] = []  # of each open field: whether its result has begun
        self._balanced = True  # whether every field ends: one that does not hides no text
        self._waiting: list[Block] = []  # notes

    def read(self, part: Element) -> Iterator[Block]:
        self._balanced = _is_balanced(_field_marks(part))
        for node in _children(part):
            yield from self._block(node)
            yield from self._waiting
            self._waiting.clear()

    def _block(self, node: Element) -> Iterator[Block]:
        tag = _tag(node)
        if tag == "p":
            style, line = _value(node, "pPr", "pStyle"), _Line()
            self._inline(node, line, style in self._hidden)
            outline = _value(node, "pPr", "outlineLvl")
            level = int(outline) + 1 if outline.isdigit() and int(outline) < 9 else self._levels.get(style, 0)
            text = "".join(line.parts).strip()
            yield Block(" ".join(text.split()) if level else text, level)
            yield from line.after
        elif tag == "tbl":
            for line_ in _children(node):
                if _tag(line_) == "tr" and not _has(line_, "trPr", "del"):
                    yield from row([list(self._blocks(cell)) for cell in _children(line_) if _is_cell(cell)])

    def _blocks(self, parent: Element) -> Iterator[Block]:
        for node in _children(parent):
            yield from self._block(node)

    def _inline(self, parent: Element, line: _Line, hidden: bool, raised: bool = False, whole: str = "") -> None:
        """Add what is in a paragraph, a run or anything in them."""
        for node in _children(parent):
            tag = _tag(node)
            shown = not hidden and all(self._fields)
            if tag in _TEXTS:
                if shown:
                    line.add(node.text or "", raised)
            elif tag in _SIGNS or tag == "sym":
                if shown:
                    line.add(_SIGNS.get(tag) or symbol(_own(node, "font"), _own(node, "char")), raised)
            elif tag == "fldChar":
                self._mark(_own(node, "fldCharType"))
            elif tag == "r":
                vanish = _on(node, "rPr", "vanish") or _value(node, "rPr", "rStyle") in self._hidden
                self._inline(node, line, hidden or vanish, _value(node, "rPr", "vertAlign") == "superscript")
            elif tag == "txbxContent":
                line.after += self._blocks(node) if shown else ()
            elif tag == "a:p":
                box = _Line()
                self._inline(node, box, not shown)
                line.after.append(Block("".join(box.parts)))
            elif tag in ("footnoteReference", "endnoteReference"):
                note = self._notes.pop((tag.removesuffix("Reference"), _own(node, "id")), None)
                if note is not None and shown:
                    self._waiting += _Story(self._levels, self._hidden, {}).read(note)
            elif tag == "ruby":
                for part in ("rubyBase", "rt"):
                    inner = _Line()
                    for found in (child for child in node if _tag(child) == part):
                        self._inline(found, inner, hidden)
                    text = "".join(inner.parts)
                    line.add(f"({text})" if part == "rt" and text else text, raised)
            elif not tag.endswith("Pr"):
                line.add(_FORMULA.get((whole, tag), "") if shown and _has_text(node) else "", raised)
                self._inline(node, line, hidden, raised, tag)

    def _mark(self, kind: str) -> None:
        if kind == "begin" and self._balanced:
            self._fields.append(False)
        elif self._fields and kind == "separate":
            self._fields[-1] = True
        elif self._fields:
            self._fields.pop()


def _children(parent: Element) -> Iterator[Element]:
    """The children that count, those of elements that only wrap in their place; of alternatives the first with text."""
    for node in parent:
        tag = _tag(node)
        if tag == "mc:AlternateContent":
            chosen = next((branch for branch in node if _has_text(branch)), None)
            yield from () if chosen is None else _children(chosen)
        elif tag in _THROUGH:
            yield from _children(node)
        elif tag not in _LEFT_OUT:
            yield node


def _tag(node: Element) -> str:
    uri, _, name = node.tag[1:].rpartition("}")
    return _PREFIXES.get(uri, "?:") + name


def _has_text(node: Element) -> bool:
    return any(_tag(inner) in _TEXTS or _tag(inner) == "sym" for inner in node.iter())


def _attribute(node: Element, name: str) -> str:
    """The full name of the attribute `name` of an element, which is in the element's namespace."""
    return f"{node.tag.rpartition('}')[0]}}}{name}"


def _own(node: Element, name: str) -> str:
    return node.get(_attribute(node, name), "")


def _find(node: Element, *path: str) -> Element | None:
    found: Element | None = node
    for name in path:
        found = next((child for child in found if _tag(child) == name), None) if found is not None else None
    return found


def _value(node: Element, *path: str) -> str:
    found = _find(node, *path)
    return "" if found is None else _own(found, "val")


def _has(node: Element, *path: str) -> bool:
    return _find(node, *path) is not None


def _on(node: Element, *path: str) -> bool:
    """Whether a property is there and not switched off."""
    return _has(node, *path) and _value(node, *path) not in ("0", "false", "off")


def _is_cell(node: Element) -> bool:
    """Whether it is a cell with a text of its own: not deleted, not covered by the one above."""
    covered = _has(node, "tcPr", "vMerge") and _value(node, "tcPr", "vMerge") != "restart"
    return _tag(node) == "tc" and not covered and not _has(node, "tcPr", "cellDel")


def _field_marks(node: Element) -> Iterator[str]:
    for child in _children(node):
        if _tag(child) == "fldChar":
            yield _own(child, "fldCharType")
        yield from _field_marks(child)


def _is_balanced(marks: Iterator[str]) -> bool:
    depth = 0
    for mark in marks:
        depth += (mark == "begin") - (mark == "end")
        if depth < 0:
            return False
    return depth == 0


def _related(part: str, read: Callable[[str], bytes], names: frozenset[str]) -> dict[str, str]:
    """What a part ("": the package) refers to: last word of the relation's type -> name of a part that is there."""
    folder, name = posixpath.split(part)
    relations = posixpath.join(folder, "_rels", f"{name}.rels")
    found = {}
    for node in parsed(read(relations)) if relations in names else ():
        target = posixpath.normpath(posixpath.join("/", folder, node.get("Target", "")))[1:]
        if target in names:
            found[node.get("Type", "").rpartition("/")[2]] = target
    if part and not found:  # written without relations: where Word itself puts them
        found = {kind: f"word/{kind}.xml" for kind in ("styles", "footnotes", "endnotes") if f"word/{kind}.xml" in names}
    return found


def _styles(root: Element) -> tuple[dict[str, int], frozenset[str]]:
    """Style id -> heading level, and the styles of hidden text. The built-in names "heading 1" and "Title" are the same in
    every language of Word; what is based on them is like them.
    """
    levels, hidden, based = {}, set(), {}
    for style in (node for node in root if _tag(node) == "style"):
        identity = _own(style, "styleId")
        based[identity] = _value(style, "basedOn")
        found = re.fullmatch(r"heading (\d)|title", _value(style, "name").lower())
        if found:
            levels[identity] = int(found[1] or 1)
        if _on(style, "rPr", "vanish"):
            hidden.add(identity)
    for identity in based:
        above, seen = identity, set()
        while above and above not in levels and above not in seen:
            seen.add(above)
            above = based.get(above, "")
        if above in levels:
            levels[identity] = levels[above]
    return levels, frozenset(hidden)
