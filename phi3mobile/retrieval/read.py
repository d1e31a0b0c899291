"""A document to its title and blocks: text, Markdown, HTML, PDF, EPUB and Word, each read for its structure."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from phi3mobile.errors import InputError
from phi3mobile.retrieval.archives import read_epub
from phi3mobile.retrieval.charsets import decode
from phi3mobile.retrieval.document import MAX_BYTES, Block, Document, Unreadable
from phi3mobile.retrieval.html import read_html
from phi3mobile.retrieval.word import read_docx
from phi3mobile.unicode import printable

READERS = 3  # version of what read_document makes of a file: with another, a library's documents are read again


def readable(path: Path) -> bool:
    """Whether this kind of document is known, by its name."""
    return path.suffix.lower() in _READERS


def kinds() -> str:
    """The known suffixes, for people."""
    return " ".join(sorted(_READERS))


def read_document(path: Path) -> Document:
    """Title and blocks in reading order. Raises InputError: unknown kind, damaged, encrypted, too large, no text in it."""
    name = printable(path)
    if not readable(path):
        raise InputError(f"{name}: documents of this kind can't be read; allowed are {kinds()}: convert it to one of these")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Unreadable(f"it is larger than {MAX_BYTES >> 20} MB")
        document = _READERS[path.suffix.lower()](path)
    except Unreadable as error:
        raise InputError(f"{name} can't be read: {error}; repair it, or leave it out") from None
    except OSError as error:
        raise InputError(f"{name} can't be read: {error.strerror or error}; check the file") from None
    except Exception as error:  # parsers of damaged files raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InputError(f"{name} is damaged or not what its name says ({reason}); repair it, or leave it out") from None
    document = document.cleaned()
    if not document.blocks:
        raise InputError(f"{name} has no text (is it scanned?); run text recognition on it, or leave it out")
    document.title = _telling(document.title)[:200] or printable(path.stem)
    return document


# What programs call a document that nobody named; a number and the kind of file may follow.
_UNNAMED = re.compile(
    r"\W*(untitled|unnamed|no title|new|unbenannt(es)?|ohne titel|neues|sans titre|sin t[ií]tulo|senza titolo|sem t[ií]tulo|"
    r"naamloos|bez tytułu|без названия|без имени|无标题|無標題|無題|제목 없음)?[\W_]*"
    r"(document|dokument|documento|документ|presentation|slide|文档|文書|문서|null|none|title)?[\W\d_]*(\.\w{2,4})?",
    re.IGNORECASE,
)


def _telling(title: str) -> str:
    """The title, or "" where it is what a program put there: "Untitled-1", "Document2.docx"."""
    title = re.sub(r"^Microsoft (Word|PowerPoint|Excel) - ", "", title).strip()
    named = not _UNNAMED.fullmatch(title) or (title[:1].isdigit() and not re.search(r"[^\W\d_]", title))  # "2014-05" is a name
    return title if named else ""


def _text(path: Path) -> Document:
    lines = decode(path.read_bytes()).splitlines()
    document, start = Document(""), 0
    for end in range(len(lines) + 1):
        if end == len(lines) or not lines[end].strip():
            if paragraph := "\n".join(lines[start:end]).strip():
                level = _plain_heading(paragraph)
                document.blocks.append(Block(paragraph, level, f"line {start + 1}"))
            start = end + 1
    return document


def _plain_heading(paragraph: str) -> int:
    """Plain text has few signs of a heading: "Chapter 3. ...", "Appendix A. ...", "4.2 Title", or LETTERS ALL CAPITAL."""
    if "\n" in paragraph or len(paragraph) > 80 or paragraph[-1] in ".,;:" or not re.search(r"[^\W\d_]{2}", paragraph):
        return 0
    if re.match(r"(chapter|part|appendix|book)\s+\w+\b", paragraph, re.IGNORECASE):
        return 1
    if number := re.match(r"(\d+(?:\.\d+)*)\.?\s+[A-Z]", paragraph):
        return 1 + number[1].count(".")
    return 2 if paragraph.isupper() else 0


def _markdown(path: Path) -> Document:
    document, fence, start = Document(""), "", 0
    paragraph: list[str] = []
    lines = decode(path.read_bytes()).splitlines()
    if lines and lines[0] == "---" and "---" in lines[1:]:  # front matter
        end = lines.index("---", 1)
        title = next((line[6:].strip(" \"'") for line in lines[:end] if line.startswith("title:")), "")
        document.title, lines = title, [""] * (end + 1) + lines[end + 1 :]

    def flush() -> None:
        if paragraph:
            document.blocks.append(Block("\n".join(paragraph), 0, f"line {start + 1}"))
            paragraph.clear()

    for number, line in enumerate(lines):
        mark = re.match(r"\s*(```+|~~~+)", line)
        heading = re.match(r"(#{1,6})\s+(.*?)\s*#*\s*$", line)
        underline = re.fullmatch(r"(=+|-{2,})\s*", line) if len(paragraph) == 1 else None
        if fence or mark:
            if mark and not fence:
                flush()
                fence, start = mark[1], number
            elif mark and mark[1].startswith(fence):
                fence = ""
            else:
                paragraph.append(line)
            if not fence:
                flush()
        elif heading:
            flush()
            document.blocks.append(Block(heading[2], len(heading[1]), f"line {number + 1}"))
        elif underline:
            document.blocks.append(Block(paragraph.pop(), 1 if line[0] == "=" else 2, f"line {number}"))
        elif not line.strip() or re.match(r"\s*([-*+]|\d+[.)])\s", line):
            flush()
        if not fence and not mark and not heading and not underline and line.strip():
            start = start if paragraph else number
            paragraph.append(line.strip() if len(line) - len(line.lstrip()) < 4 else line)
    flush()
    first = next((block.text for block in document.blocks if block.level == 1), "")
    document.title = document.title or first
    return document


def _html(path: Path) -> Document:
    return read_html(path.read_bytes())


def _xhtml(path: Path) -> Document:
    return read_html(path.read_bytes(), xhtml=True)


def _pdf(path: Path) -> Document:
    try:
        from pypdf import PdfReader
    except ImportError:
        raise Unreadable('PDF needs the package pypdf (pip install "phi3mobile[library]")') from None
    reader = PdfReader(path)
    if reader.is_encrypted and not reader.decrypt(""):
        raise Unreadable("it is encrypted")
    document = Document(_pdf_title(reader))
    total = 0
    for number, page in enumerate(reader.pages, 1):
        text = page.extract_text() or ""
        total += len(text)
        if total > MAX_BYTES:
            raise Unreadable(f"its text is larger than {MAX_BYTES >> 20} MB")
        text = re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", text)  # a word cut at the line's end
        for paragraph in re.split(r"\n\s*\n", text):
            joined = " ".join(paragraph.split())
            document.blocks.append(Block(joined, _plain_heading(joined) if joined else 0, f"page {number}"))
    return document


def _pdf_title(reader) -> str:
    try:
        title = str((reader.metadata and reader.metadata.title) or "")
    except Exception:  # a document is not refused for its metadata
        return ""
    marked = title.startswith(("\xfe\xff", "\xff\xfe"))  # UTF-16 that is damaged, read as something else
    return title.encode("latin-1", "replace").decode("utf-16", "replace") if marked else title


_READERS: dict[str, Callable[[Path], Document]] = {
    ".txt": _text,
    ".text": _text,
    ".rst": _markdown,
    ".md": _markdown,
    ".markdown": _markdown,
    ".html": _html,
    ".htm": _html,
    ".xhtml": _xhtml,
    ".pdf": _pdf,
    ".epub": read_epub,
    ".docx": read_docx,
}
