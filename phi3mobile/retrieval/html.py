"""HTML and XHTML to blocks: the text that a reader of the page sees, in a tree as browsers build it (package selectolax)."""

from __future__ import annotations

import re
from html.entities import html5
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from phi3mobile.retrieval.charsets import markup
from phi3mobile.retrieval.document import Block, Document, row
from phi3mobile.retrieval.labels import need
from phi3mobile.unicode import valid

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode


def _tags(names: str) -> frozenset[str]:
    return frozenset(names.split())


_BLOCK = _tags(
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure footer "
    "form frameset header hgroup hr html legend li main menu ol p search section summary table tbody tfoot thead ul"
)
_PRE = _tags("pre listing plaintext xmp textarea")
_CELLS = _tags("td th")
# Not on the page, or ways through it: parts of programs, navigation, controls, drawings, what stands in for something else.
_SKIP = _tags(
    "audio button canvas datalist iframe math nav noembed noframes object rp script select style svg template title video"
)
_VOID = _tags("area base br col embed hr img input link meta param source track wbr")
_ENTITY = re.compile(r"&([A-Za-z][A-Za-z0-9]*;)")
_OF_XML = frozenset(("amp;", "lt;", "gt;", "quot;", "apos;"))
_EMPTY = re.compile(r"<([A-Za-z][\w:-]*)((?:\s[^<>]*)?)/>")
_NOSCRIPT = re.compile(r"<noscript\b.*?</noscript\s*>", re.IGNORECASE | re.DOTALL)  # browsers have scripts
_EPUB_CASE = "{http://www.idpf.org/2007/ops}case"
_HEAD = 1 << 14  # bytes in which a page may name its encoding


def read_html(data: bytes, xhtml: bool = False) -> Document:
    """A page from its bytes, whose encoding it may name in a mark, an XML declaration or a meta element.

    With `xhtml` it is XML, as is every page that starts with an XML declaration; what is no XML after all is read as HTML.
    Raises Unreadable: an encoding that can't be told, binary data, a package that is missing.
    """
    text = markup(data, _meta_label(data))
    return from_html(_as_html(text) if xhtml or text.lstrip().startswith("<?xml") else text)


def from_html(text: str) -> Document:
    """Blocks of a page, headings with their level. What no reader sees (programs, hidden elements) is left out; so are
    navigation and controls. Elements with aria-hidden are seen, so they are in. Of styles the style attribute counts.
    """
    tree = need("selectolax.lexbor").LexborHTMLParser(_NOSCRIPT.sub("", valid(text)))
    reader = _Reader()
    stack = [(tree.root, False)] if tree.root is not None else []
    while stack:  # no recursion: pages nest as deep as they like
        node, entered = stack.pop()
        if entered:
            reader.leave(node)
        elif reader.enter(node):
            stack.append((node, True))
            stack += [(child, False) for child in reversed(_children(node))]
    reader.flush()
    title = next((node.text() for node in tree.css("head > title")), "")
    first = next((block.text for block in reader.blocks if block.level == 1), "")
    return Document(" ".join(title.split()) or first, reader.blocks)


class _Reader:
    """Makes blocks of the nodes of a page, each entered in order and left after its children."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._outer: list[list[Block]] = []  # blocks around each open cell
        self._rows: list[list[list[Block]]] = []  # cells of each open row
        self._parts: list[str] = []
        self._level = self._pre = 0
        self._unseen: list[bool] = []  # of each open element that says so: whether its text is hidden
        self._raised: list[int] = []  # where each open <sup> starts in the parts
        self._bases: list[list[str]] = []  # parts around each open <rt>
        self._notes: list[list[str]] = []  # readings in each open <ruby>

    def enter(self, node: LexborNode) -> bool:
        """Whether to go on into the node, and then leave it."""
        tag = node.tag or ""
        if tag == "-text":
            self._text(node.text_content or "")
        if tag[:1] in ("-", "!"):  # text, comment, doctype
            return False
        style = _style(node)
        if tag in _SKIP or _is_hidden(tag, node.attributes, style):
            return False
        if "visibility" in style:
            self._unseen.append(style["visibility"] in ("hidden", "collapse"))
        if tag == "br":
            self._parts.append("\n")
        elif tag == "sup":
            self._raised.append(len(self._parts))
        elif tag == "ruby":
            self._notes.append([])
        elif tag == "rt" and self._notes:
            self._bases.append(self._parts)
            self._parts = []
        elif _is_apart(tag, style):
            self.flush()
            self._pre += tag in _PRE
            if re.fullmatch("h[1-6]", tag):
                self._level = int(tag[1])
            elif tag == "tr":
                self._rows.append([])
            elif tag in _CELLS:
                self._outer.append(self.blocks)
                self.blocks = []
        return True

    def leave(self, node: LexborNode) -> None:
        tag, style = node.tag or "", _style(node)
        if "visibility" in style:
            self._unseen.pop()
        if tag == "sup":
            self._power(self._raised.pop())
        elif tag == "ruby" and (notes := "".join(self._notes.pop())):
            self._parts.append(f"({notes})")
        elif tag == "rt" and self._bases:
            note, self._parts = "".join(self._parts).strip(), self._bases.pop()
            self._notes[-1].append(note)
        elif _is_apart(tag, style):
            self.flush()
            self._pre -= tag in _PRE
            self._level = 0
            if tag in _CELLS:
                cell, self.blocks = self.blocks, self._outer.pop()
                self._rows[-1].append(cell) if self._rows else self.blocks.extend(cell)
            elif tag == "tr":
                self.blocks += row(self._rows.pop())

    def flush(self) -> None:
        text = "".join(self._parts)
        self._parts.clear()
        if self._pre:
            paragraphs = [text.strip("\n")]
        else:
            lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
            paragraphs = re.split(r"\n{2,}", "\n".join(lines).strip("\n"))
        if self._level:
            paragraphs = [" ".join(" ".join(paragraphs).split())]
        self.blocks += [Block(paragraph, self._level) for paragraph in paragraphs if paragraph.strip()]

    def _text(self, text: str) -> None:
        if not (self._unseen and self._unseen[-1]):
            self._parts.append(text if self._pre else re.sub(r"\s+", " ", text))

    def _power(self, start: int) -> None:
        """Raised digits apart from what they are raised on: 10^6 is no 106, and a note's number no part of the word."""
        before, raised = "".join(self._parts[:start]), "".join(self._parts[start:])
        if before[-1:].isalnum() and re.match(r"[-+−]?\d", raised):
            self._parts.insert(start, "^")


def _children(node: LexborNode) -> list[LexborNode]:
    child, found = node.child, []
    while child is not None:
        found.append(child)
        child = child.next
    return found


def _style(node: LexborNode) -> dict[str, str]:
    """What the style attribute declares: property -> value, in lower case; what is important, or said last, counts."""
    text = (node.attributes.get("style") or "").lower()
    declared = [part.partition(":") for part in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL).split(";")]
    declared.sort(key=lambda part: "!important" in part[2].replace(" ", ""))
    return {name.strip(): value.partition("!")[0].strip() for name, _, value in declared}


def _is_hidden(tag: str, attributes: dict[str, str | None], style: dict[str, str]) -> bool:
    """Whether nothing of the element is on the page until some program runs. What a search may show is on it."""
    if "display" in style:
        closed = style["display"] == "none"
    else:
        closed = ("hidden" in attributes and attributes["hidden"] != "until-found") or "popover" in attributes
        closed |= tag == "dialog" and "open" not in attributes
    zero = any(re.fullmatch(r"0*\.?0+(%|[a-z]+)?", style.get(name, "")) for name in ("opacity", "font-size"))
    return closed or zero or style.get("content-visibility") == "hidden"


def _is_apart(tag: str, style: dict[str, str]) -> bool:
    """Whether the element's text stands apart from what is before and after it."""
    inline = style.get("display", "inline").startswith(("inline", "contents"))
    return tag in _BLOCK or tag in _PRE or tag in _CELLS or tag == "tr" or re.fullmatch("h[1-6]", tag) is not None or not inline


def _meta_label(data: bytes) -> str:
    """The encoding that a meta element names, or ""."""
    head = need("selectolax.lexbor").LexborHTMLParser(data[:_HEAD].decode("latin-1"))
    for meta in head.css("meta"):
        attributes = {name: value or "" for name, value in meta.attributes.items()}
        if charset := attributes.get("charset"):
            return charset.strip()
        found = re.search(r"charset\s*=\s*[\"']?([^\s;\"']+)", attributes.get("content", ""), re.IGNORECASE)
        if found and attributes.get("http-equiv", "").strip().lower() == "content-type":
            return found[1]
    return ""


def _as_html(text: str) -> str:
    """An XHTML page as HTML, be it damaged."""
    named = _ENTITY.sub(lambda name: name[0] if name[1] in _OF_XML else html5.get(name[1], name[0]), text)
    try:
        if "<!ENTITY" in text:
            raise ValueError("entities may grow without end")
        root = ElementTree.fromstring(named.lstrip())
        for element in root.iter():
            # Of an EPUB's alternatives the one that every reader can show.
            element.tag = "template" if element.tag == _EPUB_CASE else element.tag.rpartition("}")[2]
        return ElementTree.tostring(root, "unicode", method="html")
    except (ElementTree.ParseError, ValueError, AttributeError, RecursionError):
        return _EMPTY.sub(lambda tag: tag[0] if tag[1].lower() in _VOID else f"<{tag[1]}{tag[2]}></{tag[1]}>", text)
