"""HTML to blocks: the text that a reader of the page sees."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from phi3mobile.retrieval.document import Block, Document

_BLOCK = frozenset(
    (
        "p",
        "div",
        "section",
        "article",
        "li",
        "dt",
        "dd",
        "tr",
        "table",
        "ul",
        "ol",
        "dl",
        "blockquote",
        "figcaption",
        "main",
        "header",
        "body",
        "br",
        "hr",
        "caption",
    )
)
_SKIP = frozenset(("script", "style", "template", "nav", "noscript", "svg", "math", "select", "button"))
_VOID = frozenset(("br", "hr", "img", "input", "meta", "link", "source", "wbr", "col", "area", "base", "embed", "track"))


def from_html(text: str) -> Document:
    parser = _Blocks()
    parser.feed(text)
    parser.close()
    parser.flush()
    first = next((block.text for block in parser.blocks if block.level == 1), "")
    return Document(" ".join(parser.title.split()) or first, parser.blocks)


class _Blocks(HTMLParser):
    """Text of block elements; what no reader sees (scripts, styles, hidden elements, navigation) is left out."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.blocks: list[Block] = []
        self._parts: list[str] = []
        self._level = self._pre = 0
        self._hidden: list[str] = []  # open elements inside the outermost one that is left out
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        style = (given.get("style") or "").replace(" ", "").lower()
        hidden = tag in _SKIP or "hidden" in given or "display:none" in style or "visibility:hidden" in style
        if (self._hidden or hidden) and tag not in _VOID:
            self._hidden.append(tag)
        if self._hidden:
            return
        self._in_title |= tag == "title"
        if re.fullmatch("h[1-6]", tag):
            self.flush()
            self._level = int(tag[1])
        elif tag == "pre":
            self.flush()
            self._pre += 1
        elif tag in ("td", "th"):
            self._parts.append(" | " if "".join(self._parts).strip() else "")
        elif tag == "br" and self._pre:
            self._parts.append("\n")
        elif tag in _BLOCK:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        if self._hidden:
            if tag in self._hidden:  # closes it and whatever was left open inside
                del self._hidden[len(self._hidden) - 1 - self._hidden[::-1].index(tag) :]
            return
        if tag == "title":
            self._in_title = False
        if re.fullmatch("h[1-6]", tag) or tag in _BLOCK or tag == "pre":
            self.flush()
            self._pre = max(0, self._pre - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._hidden:
            self._parts.append(data if self._pre else re.sub(r"\s+", " ", data))

    def flush(self) -> None:
        text = "".join(self._parts).strip("\n" if self._pre else None)
        self._parts.clear()
        if text.strip():
            self.blocks.append(Block(text if self._pre else re.sub(" {2,}", " ", text), self._level))
        self._level = 0
