"""HTML pages as their reader sees them: optional tags, hidden elements, encodings that the page names, XHTML."""

import pytest
from documents import write_epub
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.retrieval.read import read_document

pytest.importorskip("selectolax", reason='HTML needs selectolax: pip install "phi3mobile[library]"')
pytest.importorskip("webencodings", reason='HTML needs webencodings: pip install "phi3mobile[library]"')

from phi3mobile.retrieval.html import from_html, read_html


def texts(html, **rest):
    return [block.text for block in read_html(html if isinstance(html, bytes) else html.encode(), **rest).blocks]


@pytest.mark.parametrize(
    ("html", "right"),
    [
        ("<p hidden>no<p>shown", ["shown"]),
        ('<li style="display:none">no<li>shown', ["shown"]),
        ("<div><nav>menu</div><p>shown", ["shown"]),
        ("<nav><ul><li>menu<li>more</nav><p>shown", ["shown"]),
        ("<dl><dt>Term<dd>Means<dt hidden>no<dd>Else</dl>", ["Term", "Means", "Else"]),
        ("<table><tr><td>Mon<td hidden>no<td>Tue<tr hidden><td>no<tr><th>b<td>c</table>", ["Mon | Tue", "b | c"]),
        ("<p>one<div hidden>no</div>two<h2>Three</h2>four", ["one", "two", "Three", "four"]),
        ("<select><option>no<option>no</select>shown", ["shown"]),
        ("<p hidden><b>no<p>shown</b> too", ["shown too"]),
        ("<b><p>one</b>two", ["onetwo"]),
        ("<div hidden><p>no</div></section></p>shown", ["shown"]),
        ("<p>a<script>if (a < b) '</p>'</script>b<style>p{}</style><template><p>no</template>", ["ab"]),
        ("<head><noscript>no</noscript></head><noscript><p>no</noscript>shown", ["shown"]),
        ("<svg><text>no</svg><math><mi>no</math><p>shown", ["shown"]),
        ("<video>no</video><iframe>no</iframe><object>no</object>shown", ["shown"]),
        ("<dialog>no</dialog><dialog open>one</dialog><div popover>no</div>two", ["one", "two"]),
        ("<details><summary>One</summary>two</details>", ["One", "two"]),
        ("<p aria-hidden=true>shown", ["shown"]),
        ("<p hidden=until-found>shown<p hidden=hidden>no<p hidden style='display:block'>too", ["shown", "too"]),
        ("<p style='DISPLAY : None !important; display: block'>no<p style='display:none;display:block'>shown", ["shown"]),
        ("<p style='/*display:none*/'>shown<p style='display/**/:none'>no", ["shown"]),
        ("<div style='visibility:hidden'>no <i style='visibility:visible'>shown</i> no</div>", ["shown"]),
        ("<p style='opacity:0'>no<p style='font-size:0px'>no<p style='opacity:0.5;font-size:10px'>shown", ["shown"]),
        ("<p style='content-visibility:hidden'>no<p>shown<!-- <p>no -->", ["shown"]),
        ("<p>one<br>two<br><br>three", ["one\ntwo", "three"]),
        ("<span style='display:block'>one</span><span>two</span><span>three</span>", ["one", "twothree"]),
        ("<address>one</address>two<fieldset><legend>three</legend>four</fieldset>", ["one", "two", "three", "four"]),
        ("<pre>\n  a <b>b</b>\n   c</pre>", ["  a b\n   c"]),
        ("<ruby>漢<rp>(</rp><rt>かん</rt><rp>)</rp>字<rt>じ</rt></ruby>だ", ["漢字(かんじ)だ"]),
        ("10<sup>6</sup> m<sup>2</sup>, 1<sup>st</sup>, rent<sup><a href=#n>1</a></sup>", ["10^6 m^2, 1st, rent^1"]),
        ("co&shy;operate&nbsp;now &amp; then", ["cooperate now & then"]),
        ("a&#xD83D;b&#0;c", ["a\ufffdb\ufffdc"]),
        ("<table><tr><td><p>Monday</p><p>Tuesday</p><td>open</table>", ["Monday Tuesday | open"]),
        ("<table><tr><td>out<table><tr><td>in<td>side</table>er<td>right</table>", ["out", "in | side", "er", "right"]),
        ("<table><tr><td></td><td> </td></tr></table>shown", ["shown"]),
        ("<table><tr><td><h2>Rent</h2><p>Due.<td>aside</table>", ["Rent", "Due.", "aside"]),
    ],
)
def test_what_a_reader_sees(tmp_path, html, right):
    (tmp_path / "a.html").write_text(html, "utf-8")
    assert [block.text for block in read_document(tmp_path / "a.html").blocks] == right


@pytest.mark.parametrize(
    ("label", "codec", "text"),
    [
        ("shift_jis", "shift_jis", "家賃"),
        ("x-sjis", "cp932", "①家賃"),
        ("EUC-JP", "euc_jp", "家賃"),
        ("iso-2022-jp", "iso2022_jp", "家賃"),
        ("gb2312", "gb18030", "租金镕"),
        ("big5", "big5", "租金"),
        ("ks_c_5601-1987", "cp949", "월세똠"),
        ("windows-1251", "cp1251", "Да"),
        ("koi8-r", "koi8_r", "Да"),
        ("iso-8859-1", "cp1252", "“é”"),
        ("iso-8859-9", "cp1254", "ğ"),
        ("utf-8", "utf-8", "é"),
        ("utf-16", "utf-8", "é"),
        ("windows-1252", "utf-8", "é"),
    ],
)
@pytest.mark.parametrize(
    "page",
    [
        '<meta charset="{}">',
        "<META HTTP-EQUIV='Content-Type' CONTENT='text/html; charset={}'>",
        '<meta content="text/html;charset={}" http-equiv=content-type>',
        '<?xml version="1.0" encoding="{}"?>',
        '<!-- <meta charset="ascii"> --><meta name=description content="charset=utf-7"><meta charset={}>',
        "<script>'<meta charset=ascii>'</script><meta charset={}>",
    ],
)
def test_a_page_is_read_in_the_encoding_that_it_names(page, label, codec, text):
    data = (page.format(label) + f"<title>{text}</title><p>{text}").encode(codec)
    got = read_html(data)
    assert (got.title, [block.text for block in got.blocks]) == (text, [text])


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_marks_go_before_names(codec):
    assert texts('<meta charset="shift_jis"><p>née, 租金 and more'.encode(codec)) == ["née, 租金 and more"]


def test_a_page_that_names_no_encoding_is_detected():
    pytest.importorskip("chardetng_py", reason="detection needs chardetng-py")
    pytest.importorskip("py3langid", reason="detection needs py3langid")
    page = "<html><body><p>Квартплата вносится третьего числа каждого месяца.</p></body></html>"
    assert texts(page.encode("cp1251")) == ["Квартплата вносится третьего числа каждого месяца."]
    assert texts(('<meta charset="utf-8">' + page).encode("cp1251")) == texts(page)  # it says so, and isn't
    assert texts(('<meta charset="no-such">' + page).encode("koi8_r")) == texts(page)


XHTML = '<html xmlns="http://www.w3.org/1999/xhtml"><head><title/><script src="x"/></head><body>{}</body></html>'


@pytest.mark.parametrize(
    ("body", "right"),
    [
        ('<a id="top"/><div/><p>one</p>', ["one"]),
        ('<p hidden="hidden"/><p>one&nbsp;two &eacute; &lt;b&gt;</p>', ["one two é <b>"]),
        ("<p><![CDATA[a < b]]></p>", ["a < b"]),
        ("<p>&#xD83D;&#xDE00;</p>", ["😀"]),
        ("<p>damaged<br></p><div/>too", ["damaged", "too"]),
        (
            '<switch xmlns="http://www.idpf.org/2007/ops"><case required-namespace="m"><b xmlns="http://www.w3.org/1999/xhtml">no</b>'
            '</case><default><i xmlns="http://www.w3.org/1999/xhtml">one</i></default></switch>',
            ["one"],
        ),
    ],
)
def test_empty_elements_of_xhtml_hold_nothing(tmp_path, body, right):
    page = XHTML.format(body)
    (tmp_path / "a.xhtml").write_text(page, "utf-8")
    (tmp_path / "a.html").write_text(f'<?xml version="1.0"?>{page}', "utf-8")
    for name in ("a.xhtml", "a.html"):
        assert [block.text for block in read_document(tmp_path / name).blocks] == right
    chapters = read_document(write_epub(tmp_path / "a.epub", page)).blocks
    assert [block.text for block in chapters if block.place == "section 2"] == right


def test_entities_of_a_page_do_not_grow():
    bomb = '<!DOCTYPE html [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><html><body><p>&b;</p>x</body></html>'
    assert "x" in " ".join(texts(bomb, xhtml=True)) and len("".join(texts(bomb, xhtml=True))) < len(bomb)


def test_pages_nest_as_deep_as_they_like():
    assert texts("<div>" * 3000 + "deep") == ["deep"]
    assert texts(XHTML.format("<div>" * 3000 + "deep" + "</div>" * 3000), xhtml=True) == ["deep"]


OPTIONAL = ["<p>", "</p>", "<li>", "<div>", "</div>", "<td>", "<tr>", "<table>", "</table>", "<dt>", "<b>", "</b>", "<h2>"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(OPTIONAL), st.booleans()), max_size=12))
def test_no_text_is_lost_or_doubled_whatever_is_left_open(parts):
    """Hidden elements are closed here; all else must be on the page once."""
    html, count = "", 0
    for tag, hidden in parts:
        html += f"{tag} w{count}x <span hidden>no</span> " if hidden else f"{tag} w{count}x "
        count += 1
    words = " ".join(texts(html)).replace("|", " ").split()
    assert sorted(words) == sorted(f"w{at}x" for at in range(count))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_page_or_refused(data):
    from phi3mobile.retrieval.document import Unreadable

    try:
        got = read_html(b"<p>" + data).cleaned()
    except Unreadable:
        return
    "".join(block.text for block in got.blocks).encode()


def test_titles_are_the_pages_own():
    assert from_html("<body><svg><title>no</title></svg><h1>Yes</h1>").title == "Yes"
