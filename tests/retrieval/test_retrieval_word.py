"""Word documents as their reader sees them: each text once, where it stands, apart from the next."""

import zipfile

import pytest
from documents import W, word_paragraph, word_table, write_docx
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.retrieval.read import read_document


def texts(path, body, **parts):
    return [block.text for block in read_document(write_docx(path / "a.docx", body, **parts)).blocks]


def run(inner, properties=""):
    return f"<w:r>{properties and f'<w:rPr>{properties}</w:rPr>'}{inner}</w:r>"


def t(text):
    return f'<w:t xml:space="preserve">{text}</w:t>'


def mark(kind):
    return run(f'<w:fldChar w:fldCharType="{kind}"/>')


def box(text):
    return f"<w:txbxContent>{word_paragraph(text)}</w:txbxContent>"


SHAPE = f"<w:drawing><wps:wsp><wps:txbx>{box('boxed')}</wps:txbx></wps:wsp></w:drawing>"
PICTURE = f"<w:pict><v:shape><v:textbox>{box('boxed')}</v:textbox></v:shape></w:pict>"
ALTERNATIVES = (
    f'<mc:AlternateContent><mc:Choice Requires="wps">{SHAPE}</mc:Choice><mc:Fallback>{PICTURE}</mc:Fallback>'
    "</mc:AlternateContent>"
)
DRAWN = "<w:drawing><a:p><a:r><a:t>drawn</a:t></a:r><a:br/><a:r><a:t>text</a:t></a:r></a:p></w:drawing>"
FRACTION = "<m:oMath><m:f><m:num><m:r><m:t>a</m:t></m:r></m:num><m:den><m:r><m:t>b</m:t></m:r></m:den></m:f></m:oMath>"
POWER = "<m:oMath><m:sSup><m:e><m:r><m:t>x</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup></m:oMath>"
NESTED = (
    mark("begin")
    + run("<w:instrText>IF </w:instrText>")
    + mark("begin")
    + run("<w:instrText>PAGE</w:instrText>")
    + mark("separate")
    + run(t("7"))
    + mark("end")
    + run('<w:instrText> = 7 "yes"</w:instrText>')
    + mark("separate")
    + run(t("yes"))
    + mark("end")
)
SUPERSCRIPT = '<w:vertAlign w:val="superscript"/>'


@pytest.mark.parametrize(
    ("inner", "right"),
    [
        pytest.param(run(t("before ") + ALTERNATIVES) + run(t("after")), ["before after", "boxed"], id="alternatives"),
        pytest.param(run(SHAPE), ["boxed"], id="shape"),
        pytest.param(run(PICTURE), ["boxed"], id="vml"),
        pytest.param(
            f"<mc:AlternateContent><mc:Choice/><mc:Fallback>{run(t('old'))}</mc:Fallback></mc:AlternateContent>", ["old"]
        ),
        pytest.param(run(DRAWN), ["drawn\ntext"], id="drawingml"),
        pytest.param(
            f"<w:del>{run('<w:delText>gone</w:delText>')}</w:del><w:ins>{run(t('new'))}</w:ins>", ["new"], id="changes"
        ),
        pytest.param(f"<w:ins><w:del>{run(t('gone'))}</w:del>{run(t('kept'))}</w:ins>", ["kept"], id="deleted insertion"),
        pytest.param(f"<w:moveFrom>{run(t('moved'))}</w:moveFrom>{run(t('x'))}", ["x"], id="moved from"),
        pytest.param(f"<w:moveTo>{run(t('moved'))}</w:moveTo>", ["moved"], id="moved to"),
        pytest.param(run(t("a") + "<w:tab/>" + t("b") + "<w:br/>" + t("c") + "<w:cr/>" + t("d")), ["a\tb\nc\nd"], id="breaks"),
        pytest.param(run(t("a") + '<w:ptab w:alignment="right"/>' + t("b")), ["a\tb"], id="ptab"),
        pytest.param(
            run(t("co") + "<w:noBreakHyphen/>" + t("op un") + "<w:softHyphen/>" + t("it")), ["co-op unit"], id="hyphens"
        ),
        pytest.param(run('<w:sym w:font="Wingdings" w:char="F0FC"/>' + t(" done")), ["✓ done"], id="wingdings"),
        pytest.param(run(t("angle ") + '<w:sym w:font="Symbol" w:char="F061"/>'), ["angle α"], id="symbol"),
        pytest.param(run('<w:sym w:font="Arial" w:char="20AC"/>' + t("5")), ["€5"], id="sym with a code point"),
        pytest.param(run('<w:sym w:font="Odd" w:char="F0FF"/>' + t("5")), ["\ufffd5"], id="sym unknown"),
        pytest.param(NESTED, ["yes"], id="nested fields"),
        pytest.param(mark("begin") + run("<w:instrText>DATE</w:instrText>") + run(t("stays")), ["stays"], id="endless field"),
        pytest.param(
            f'<w:fldSimple w:instr="PAGE">{run(t("3"))}</w:fldSimple>{run(t(" of 9"))}', ["3 of 9"], id="simple field"
        ),
        pytest.param(f"<w:hyperlink>{run(t('link'))}</w:hyperlink>{run(t(' text'))}", ["link text"], id="link"),
        pytest.param(
            f"<w:sdt><w:sdtPr><w:alias/></w:sdtPr><w:sdtContent>{run(t('chosen'))}</w:sdtContent></w:sdt>",
            ["chosen"],
            id="inline sdt",
        ),
        pytest.param(f"<w:smartTag><w:smartTagPr/>{run(t('Rome'))}</w:smartTag>", ["Rome"], id="smart tag"),
        pytest.param(run(t("seen")) + run(t("unseen"), "<w:vanish/>"), ["seen"], id="hidden"),
        pytest.param(run(t("seen"), '<w:vanish w:val="0"/>'), ["seen"], id="not hidden"),
        pytest.param(run(t("10")) + run(t("6"), SUPERSCRIPT) + run(t(" units")), ["10^6 units"], id="power"),
        pytest.param(run(t("1")) + run(t("st"), SUPERSCRIPT), ["1st"], id="ordinal"),
        pytest.param(
            "<w:r><w:ruby><w:rubyPr/><w:rt><w:r><w:t>かんじ</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>漢字</w:t></w:r></w:rubyBase></w:ruby></w:r>",
            ["漢字(かんじ)"],
            id="ruby",
        ),
        pytest.param(FRACTION, ["a/b"], id="fraction"),
        pytest.param(POWER, ["x^2"], id="formula"),
    ],
)
def test_a_paragraph_has_each_text_once(tmp_path, inner, right):
    assert texts(tmp_path, f"<w:p>{inner}</w:p>") == right


def test_moved_paragraphs_are_where_they_went(tmp_path):
    moved = "<w:p><w:moveFrom>{0}</w:moveFrom></w:p><w:p>{1}</w:p><w:p><w:moveTo>{0}</w:moveTo></w:p>"
    assert texts(tmp_path, moved.format(run(t("moved")), run(t("between")))) == ["between", "moved"]


def test_cells_and_their_paragraphs_are_apart(tmp_path):
    body = word_table([word_paragraph("Monday") + word_paragraph("Tuesday"), word_paragraph("open")], [word_paragraph(""), ""])
    assert texts(tmp_path, body) == ["Monday Tuesday | open"]


def test_a_table_in_a_cell_is_read_once_in_its_place(tmp_path):
    inner = word_table([word_paragraph("one"), word_paragraph("two")], [word_paragraph("three"), word_paragraph("four")])
    outer = word_table([word_paragraph("left") + inner + word_paragraph("under"), word_paragraph("right")])
    assert texts(tmp_path, outer) == ["left", "one | two", "three | four", "under", "right"]
    deeper = word_table([word_table([word_table([word_paragraph("deep")])])])
    assert texts(tmp_path, deeper) == ["deep"]


def test_a_table_that_lays_out_a_page_keeps_its_headings(tmp_path):
    cell = word_paragraph("Rent", "U1") + word_paragraph("Due on the third.")
    body = word_table([cell, word_paragraph("Aside")])
    got = read_document(write_docx(tmp_path / "a.docx", body))
    assert [(b.text, b.level) for b in got.blocks] == [("Rent", 1), ("Due on the third.", 0), ("Aside", 0)]
    long = word_paragraph("x" * 400) + word_paragraph("y" * 400)
    assert texts(tmp_path, word_table([long, word_paragraph("z")])) == ["x" * 400, "y" * 400, "z"]


def test_deleted_rows_and_covered_cells_are_not_read(tmp_path):
    cell = "<w:tc>{}" + word_paragraph("{}") + "</w:tc>"
    rows = (
        "<w:tr>" + cell.format("", "a") + cell.format('<w:tcPr><w:vMerge w:val="restart"/></w:tcPr>', "both") + "</w:tr>",
        "<w:tr>" + cell.format("", "b") + cell.format("<w:tcPr><w:vMerge/></w:tcPr>", "both") + "</w:tr>",
        "<w:tr><w:trPr><w:del/></w:trPr>" + cell.format("", "gone") + "</w:tr>",
        "<w:sdt><w:sdtContent><w:tr>" + cell.format("", "c") + "</w:tr></w:sdtContent></w:sdt>",
    )
    assert texts(tmp_path, f"<w:tbl>{''.join(rows)}</w:tbl>") == ["a | both", "b", "c"]


def test_blocks_in_containers_are_read_once(tmp_path):
    inner = word_paragraph("one") + word_table([word_paragraph("two")])
    assert texts(tmp_path, f"<w:sdt><w:sdtPr/><w:sdtContent>{inner}</w:sdtContent></w:sdt>") == ["one", "two"]
    assert texts(tmp_path, f"<w:customXml><w:customXmlPr/>{inner}</w:customXml>") == ["one", "two"]


def p(*inner):
    return f"<w:p>{''.join(inner)}</w:p>"


def test_a_field_over_paragraphs_shows_its_result(tmp_path):
    start = p(mark("begin"), run("<w:instrText>TOC</w:instrText>"))
    middle = p(run(t("no")), mark("separate"), run(t("yes")))
    assert texts(tmp_path, start + middle + p(run(t("too")), mark("end"))) == ["yes", "too"]


def test_notes_stand_after_what_refers_to_them(tmp_path):
    separator = '<w:footnote w:type="separator" w:id="-1"><w:p><w:r><w:separator/></w:r></w:p></w:footnote>'
    note = f'<w:footnote w:id="2">{p(run("<w:footnoteRef/>"), run(t("Since May.")))}</w:footnote>'
    unused = f'<w:footnote w:id="9">{word_paragraph("never referred to")}</w:footnote>'
    end = f'<w:endnote w:id="2">{word_paragraph("At the end.")}</w:endnote>'
    rent = p(run(t("The rent")), run('<w:footnoteReference w:id="2"/>'), run(t(" is due.")))
    body = word_table([rent, word_paragraph("700")]) + p(run(t("x") + '<w:endnoteReference w:id="2"/>'))
    got = texts(tmp_path, body, footnotes=separator + note + unused, endnotes=end)
    assert got == ["The rent is due. | 700", "Since May.", "x", "At the end."]


def test_headings_come_from_styles_and_outlines(tmp_path):
    styles = '<w:style w:styleId="Own"><w:name w:val="Own"/><w:basedOn w:val="U1"/></w:style>'
    styles += '<w:style w:styleId="Ghost"><w:name w:val="Ghost"/><w:rPr><w:vanish/></w:rPr></w:style>'
    outline = '<w:p><w:pPr><w:outlineLvl w:val="2"/></w:pPr><w:r><w:t>Third</w:t></w:r></w:p>'
    body = word_paragraph("First", "Own") + outline + word_paragraph("unseen", "Ghost") + word_paragraph("text")
    got = read_document(write_docx(tmp_path / "a.docx", body, styles))
    assert [(b.text, b.level) for b in got.blocks] == [("First", 1), ("Third", 3), ("text", 0)]


def test_the_strict_format_and_other_part_names_are_read(tmp_path):
    strict = "http://purl.oclc.org/ooxml/wordprocessingml/main"
    relation = '<Relationships><Relationship Type="{}/{}" Target="{}"/></Relationships>'
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as archive:
        archive.writestr("_rels/.rels", relation.format("http://purl.oclc.org/x", "officeDocument", "/doc/main.xml"))
        archive.writestr("doc/_rels/main.xml.rels", relation.format("http://purl.oclc.org/x", "styles", "look.xml"))
        archive.writestr(
            "doc/main.xml", f'<w:document xmlns:w="{strict}"><w:body>{word_paragraph("Hi", "U1")}</w:body></w:document>'
        )
        style = '<w:style w:styleId="U1"><w:name w:val="heading 2"/></w:style>'
        archive.writestr("doc/look.xml", f'<w:styles xmlns:w="{strict}">{style}</w:styles>')
    assert [(b.text, b.level) for b in read_document(tmp_path / "a.docx").blocks] == [("Hi", 2)]


def test_halves_of_characters_become_valid(tmp_path):
    assert texts(tmp_path, word_paragraph("a&#xD83D;&#xDE00;b&#xD83D;c&#1;d")) == ["a😀b\ufffdc\ufffdd"]


def test_a_part_may_be_in_any_encoding_that_it_names(tmp_path):
    pytest.importorskip("webencodings", reason='names of encodings need webencodings: pip install "phi3mobile[library]"')
    declared = f'<?xml version="1.0" encoding="shift_jis"?><w:document xmlns:w="{W}">'
    with zipfile.ZipFile(tmp_path / "b.docx", "w") as archive:
        xml = f"{declared}<w:body>{word_paragraph('日本')}</w:body></w:document>"
        archive.writestr("word/document.xml", xml.encode("shift_jis"))
    assert [b.text for b in read_document(tmp_path / "b.docx").blocks] == ["日本"]


pieces = st.recursive(
    st.sampled_from(["p", "box", "del", "ins", "moveTo", "moveFrom"]),
    lambda inner: st.tuples(st.sampled_from(["tbl", "sdt", "cell2"]), st.lists(inner, min_size=1, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(pieces, min_size=1, max_size=4))
def test_every_text_that_is_seen_is_read_once_in_order(tmp_path_factory, parts):
    seen, count = [], iter(range(1000))

    def xml(part):
        if isinstance(part, str):
            word = f"w{next(count)}x"
            if part not in ("del", "moveFrom"):
                seen.append(word)
            inner = run(t(word)) if part != "box" else run(ALTERNATIVES.replace("boxed", word))
            return f"<w:p>{inner}</w:p>" if part in ("p", "box") else f"<w:p><w:{part}>{inner}</w:{part}></w:p>"
        kind, children = part
        made = [xml(child) for child in children]
        if kind == "sdt":
            return f"<w:sdt><w:sdtContent>{''.join(made)}</w:sdtContent></w:sdt>"
        return word_table(made) if kind == "tbl" else word_table(["".join(made), word_paragraph("")])

    body = "".join(map(xml, parts)) + word_paragraph("end")
    got = texts(tmp_path_factory.mktemp("word"), body)
    words = " ".join(got).replace("|", " ").split()
    assert words == [*seen, "end"]
