"""Every kind of document to blocks, blocks to passages; damaged and hostile files to one sentence."""

import io
import json
import unicodedata
import zipfile
from importlib.util import find_spec
from urllib.parse import quote

import pytest
from documents import HTML, write_docx, write_epub, write_mapped_pdf, write_pdf
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.cli import main
from phi3mobile.errors import InputError
from phi3mobile.retrieval import archives, document, open_library
from phi3mobile.retrieval.chunk import LONGEST, chunk
from phi3mobile.retrieval.document import Block, Document
from phi3mobile.retrieval.read import read_document

needs_html = pytest.mark.skipif(
    find_spec("selectolax") is None, reason='HTML needs selectolax: pip install "phi3mobile[library]"'
)
detects = pytest.mark.skipif(
    not all(map(find_spec, ("webencodings", "chardetng_py", "py3langid"))),
    reason='encodings are detected with chardetng-py: pip install "phi3mobile[library]"',
)


def blocks_of(path):
    return [(block.text, block.level) for block in read_document(path).blocks]


def test_text_has_paragraphs_headings_and_lines(tmp_path):
    (tmp_path / "a.txt").write_text("Chapter 1. Start\n\nOne line\nand two.\n\n\nNOTES\n\nmore\n")
    got = read_document(tmp_path / "a.txt")
    assert got.title == "a"
    assert [(b.text, b.level, b.place) for b in got.blocks] == [
        ("Chapter 1. Start", 1, "line 1"),
        ("One line\nand two.", 0, "line 3"),
        ("NOTES", 2, "line 7"),
        ("more", 0, "line 9"),
    ]


def test_markdown_keeps_its_structure(tmp_path):
    (tmp_path / "a.md").write_text(
        "---\nlang: en\n---\n# Top #\ntext\ngoes on\n\n- one\n- two\n\nUnder\n-----\n```\n# no heading\n\n- no item\n```\nend\n"
    )
    assert blocks_of(tmp_path / "a.md") == [
        ("Top", 1),
        ("text\ngoes on", 0),
        ("- one", 0),
        ("- two", 0),
        ("Under", 2),
        ("# no heading\n\n- no item", 0),
        ("end", 0),
    ]
    assert read_document(tmp_path / "a.md").title == "Top"


@needs_html
def test_html_is_what_a_reader_sees(tmp_path):
    (tmp_path / "a.html").write_text(HTML)
    assert read_document(tmp_path / "a.html").title == "House & Rules"
    assert blocks_of(tmp_path / "a.html") == [
        ("Rules", 1),
        ("Quiet after ten o'clock.", 0),
        ("Rent", 2),
        ("Due on the third.", 0),
        ("Paid by transfer.", 0),
        ("May | 700", 0),
        ("  code\n    stays", 0),
    ]


@needs_html
def test_epub_is_read_in_the_order_of_its_spine(tmp_path):
    got = read_document(write_epub(tmp_path / "a.epub"))
    assert got.title == "A Book"
    assert [(b.text, b.place) for b in got.blocks][:3] == [
        ("First", "section 1"),
        ("Alpha.", "section 1"),
        ("Rules", "section 2"),
    ]


@needs_html
@pytest.mark.parametrize("name", ["kapitel-ä.xhtml", "kapitel-ä.xhtml", "章.xhtml"])
@pytest.mark.parametrize("flagged", [True, False])
def test_chapters_are_found_whatever_the_archive_says_of_their_names(tmp_path, name, flagged):
    data = write_epub(tmp_path / "a.epub").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.epub", "w") as archive, zipfile.ZipFile(io.BytesIO(data)) as source:
        for part in ("META-INF/container.xml", "OPS/book.opf", "OPS/text/two.xhtml"):
            text = source.read(part).decode()
            archive.writestr(part, text.replace("one%20x.xhtml", quote(unicodedata.normalize("NFC", name)) + "#start"))
        archive.writestr(f"OPS/{name}", "<html><body><p>Alpha.</p></body></html>")
    if not flagged:  # as old programs write it: UTF-8 that does not say so
        raw = bytearray((tmp_path / "a.epub").read_bytes())
        for mark, at in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
            start = -1
            while (start := raw.find(mark, start + 1)) >= 0:
                raw[start + at] &= 0xF7
        (tmp_path / "a.epub").write_bytes(raw)
    assert blocks_of(tmp_path / "a.epub")[0] == ("Alpha.", 0)


def test_word_documents_have_headings_and_tables(tmp_path):
    assert blocks_of(write_docx(tmp_path / "a.docx")) == [("Furniture", 1), ("A table and a lamp.", 0), ("Bed | two", 0)]


def test_pdf_has_pages(tmp_path):
    pytest.importorskip("pypdf", reason='PDF needs pypdf: pip install "phi3mobile[library]"')
    got = read_document(write_pdf(tmp_path / "a.pdf", [["The rent is due", "on the third."], ["Second page."]]))
    assert [(b.text, b.place) for b in got.blocks] == [("The rent is due on the third.", "page 1"), ("Second page.", "page 2")]


PLAIN = {char: f"{ord(char):04X}" for char in "The rent is due."}


@pytest.mark.parametrize(
    ("odd", "right"),
    [
        ({"1": "D83D"}, "The rent\ufffd is due."),
        ({"1": "DE00"}, "The rent\ufffd is due."),
        ({"1": "D83DDE00"}, "The rent😀 is due."),
        ({"1": "D83D", "2": "DE00"}, "The rent😀 is due."),
        ({"1": "DE00", "2": "D83D"}, "The rent\ufffd\ufffd is due."),
        ({"1": "0000", "2": "001B"}, "The rent is due."),
    ],
)
def test_halves_of_characters_in_a_pdf_become_valid(tmp_path, capsys, odd, right):
    pytest.importorskip("pypdf", reason="PDF needs pypdf")
    path = write_mapped_pdf(tmp_path / "a.pdf", PLAIN | odd, f"The rent{''.join(odd)} is due.", "<FEFFD83D0041>")
    got = read_document(path)
    assert ([block.text for block in got.blocks], got.title) == ([right], "\ufffdA")
    assert main(["index", str(path), "-o", str(tmp_path / "library.db"), "--words-only"]) == 0
    with open_library(tmp_path / "library.db") as library:
        assert library.search("rent due", always=True)[0].text == right
    json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    "title", ["", "   ", "untitled", "Untitled-1", "(Untitled Document)", "Document2.docx", "---", "Unbenannt"]
)
def test_a_title_that_says_nothing_is_the_files_name(tmp_path, title):
    pytest.importorskip("pypdf", reason="PDF needs pypdf")
    hexadecimal = title.encode("utf-16-be").hex()
    path = write_mapped_pdf(tmp_path / "rent 2024.pdf", {"a": "0041"}, "a", f"<FEFF{hexadecimal}>")
    assert read_document(path).title == "rent 2024"
    for name, text in (("a.html", f"<title>{title}</title><p>Text"), ("a.md", f"---\ntitle: {title}\n---\nText")):
        (tmp_path / name).write_text(text)
        assert read_document(tmp_path / name).title == "a"


@pytest.mark.parametrize("title", ["The untitled", "1984", "2014-05", "Document management", "Newton"])
def test_a_title_that_says_something_stays(tmp_path, title):
    (tmp_path / "a.html").write_text(f"<title>{title}</title><p>Text")
    assert read_document(tmp_path / "a.html").title == title


def test_a_pdf_is_not_refused_for_its_title(tmp_path, monkeypatch):
    pypdf = pytest.importorskip("pypdf", reason="PDF needs pypdf")

    def broken(reader):
        raise ValueError("no metadata")

    monkeypatch.setattr(pypdf.PdfReader, "metadata", property(broken))
    assert read_document(write_pdf(tmp_path / "a.pdf", [["Text."]])).title == "a"


@pytest.mark.parametrize(
    "data",
    [
        "naïve – “x”".encode(),
        "naïve – “x”".encode("utf-16"),
        pytest.param("naïve – “x”".encode("cp1252"), marks=detects),
        "naïve – “x”".encode("utf-8-sig"),
    ],
)
def test_encodings(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    assert blocks_of(tmp_path / "a.txt") == [("naïve – “x”", 0)]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.xls", b"x", "documents of this kind can't be read; allowed are .docx .epub"),
        ("a.txt", b"\0\1binary", "it is binary data, not text"),
        ("a.txt", b" \n\n", "has no text"),
        ("a.epub", b"no archive", "damaged or not what its name says"),
        ("a.docx", b"PK\5\6" + bytes(18), "damaged or not what its name says"),
        ("a.pdf", b"%PDF-1.4 broken", "damaged or not what its name says|has no text"),
    ],
)
def test_unreadable_documents_are_said_in_a_sentence(tmp_path, name, data, message):
    if name.endswith("pdf"):
        pytest.importorskip("pypdf", reason="PDF needs pypdf")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_document(tmp_path / name)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="can't be read: No such file"):
        read_document(tmp_path / "none.txt")


def test_hostile_archives_are_refused(tmp_path, monkeypatch):
    bomb = tmp_path / "bomb.docx"
    write_docx(bomb)
    monkeypatch.setattr(archives, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="it unpacks to more than"):
        read_document(bomb)
    monkeypatch.undo()
    with zipfile.ZipFile(tmp_path / "entity.docx", "w") as archive:
        archive.writestr("word/document.xml", '<!DOCTYPE d [<!ENTITY a "aaa">]><d>&a;</d>')
    with pytest.raises(InputError, match="its XML defines entities"):
        read_document(tmp_path / "entity.docx")
    assert document.MAX_BYTES > 1 << 20


@needs_html
@settings(max_examples=150, deadline=None)
@given(st.text("<>/=\"' ahpdivscript!-&;\n", max_size=120))
def test_any_html_is_read_without_a_traceback(text):
    from phi3mobile.retrieval.html import from_html

    assert all(block.text.strip() for block in from_html(text).blocks)


lengths = st.lists(st.tuples(st.integers(1, 2500), st.integers(0, 3), st.booleans()), max_size=12)


@settings(max_examples=150, deadline=None)
@given(lengths)
def test_passages_hold_all_words_in_order_and_fit(parts):
    def words(count, level, spaced):
        return Block((f"w{count} " if spaced else f"w{count}") * (1 if level else max(1, count // 5)), level)

    source = Document("t", [words(*part) for part in parts])
    chunks = chunk(source)
    assert all(0 < len(part.text) <= LONGEST for part in chunks)
    joined = "".join("".join(part.text.split()) for part in chunks)
    assert joined == "".join("".join(block.text.split()) for block in source.blocks)


def test_a_passage_says_under_which_headings_it_starts():
    source = Document(
        "t",
        [
            Block("One", 1),
            Block("a" * 300),
            Block("Deep", 2, "page 2"),
            Block("b" * 900, 0, "page 2"),
            Block("Two", 1),
            Block("c"),
        ],
    )
    assert [part.location for part in chunk(source)] == ["One", "One > Deep, page 2", "Two"]
