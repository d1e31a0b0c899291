"""Bytes to text: by the mark they start with, by the encoding that they name, as UTF-8, else by what their letters tell.

Names of encodings mean what browsers take them for (gb2312 is gb18030, iso-8859-1 is windows-1252): package webencodings.
"""

from __future__ import annotations

import codecs
import re

from phi3mobile.retrieval.document import Unreadable
from phi3mobile.retrieval.guess import guess
from phi3mobile.retrieval.labels import codec_of
from phi3mobile.unicode import valid

BINARY = "it is binary data, not text"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Encodings in seven bits, which would pass as ASCII: what they switch with, and the codec.
_ESCAPES = ((rb"\x1b\$\)C", "iso2022_kr"), (rb"\x1b\$[@B(]|\x1b\([IJ]", "iso2022_jp_ext"))
_HZ = re.compile(rb"~\{(?:[!-w][!-~])+~\}")
_FEW = 50  # of so many characters beyond ASCII one may be damaged
_FEWER = 10  # ... of UTF-8, which no other text is like
_SEVERAL = 6  # bytes beyond ASCII that are UTF-8 by no accident
_BINARY = re.compile(rb"[\0-\x08\x0e-\x19\x1c-\x1f]")


def decode(data: bytes, label: str = "") -> str:
    """The text of `data`, which names its encoding as `label` if it does; bytes that are damaged become U+FFFD.

    Raises Unreadable: binary data, or an encoding that can't be told, with what to do. Nothing is decoded by guess alone.
    """
    for mark, codec in _MARKS:
        if data.startswith(mark):
            return _strict(data[len(mark) :], codec) or data[len(mark) :].decode(codec, "replace")
    if b"\0" in data:
        return _wide(data)
    named = codec_of(label)
    utf8 = _strict(data, "utf-8")
    if utf8 is not None and data.isascii() and named is None:
        return _seven_bits(data) or utf8
    beyond = len(re.findall(rb"[\x80-\xff]", data[: 1 << 20]))
    if utf8 is not None and (named is None or (beyond and named in _SINGLE) or beyond >= _SEVERAL):
        return utf8  # whatever it names: it was converted since
    if named is not None and (strict := _strict(data, named)) is not None:
        return strict
    for codec, few in ((named or "utf-8", _FEW), ("utf-8", _FEWER)):
        text = data.decode(codec, "replace")
        if text.count("\ufffd") * few <= len(text) - len(text.encode("ascii", "ignore")):
            return text
    if _BINARY.search(data):
        raise Unreadable(BINARY)
    return guess(data)


def xml_label(data: bytes) -> str:
    """The encoding that an XML declaration names, or ""."""
    found = re.match(rb"""\s*<\?xml[^>]{0,200}?\sencoding\s*=\s*["']([\w.:-]{1,40})["']""", data.removeprefix(codecs.BOM_UTF8))
    return found[1].decode("ascii") if found else ""


def markup(data: bytes, label: str = "") -> str:
    """The text of a page or an XML document; its references to halves of characters are joined, or U+FFFD, as are others to
    what is no character. `label` is its encoding where no XML declaration names one.
    """
    return valid(_REFERENCE.sub(_referred, decode(data, xml_label(data) or label)))


def xml_text(data: bytes) -> str:
    """The text of an XML document without its declaration, which names an encoding, and what XML can't have."""
    return _NO_XML.sub("\ufffd", re.sub(r"^\s*<\?xml.*?\?>", "", markup(data, "utf-8"), flags=re.DOTALL))


_REFERENCE = re.compile(r"&#(?:[xX]0*([0-9A-Fa-f]{1,8})|0*(\d{1,8}));")
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def _referred(found: re.Match[str]) -> str:
    code = int(found[1], 16) if found[1] else int(found[2])
    if 0xD800 <= code <= 0xDFFF:  # written as in UTF-16: a pair is one character
        return chr(code)
    return "\ufffd" if code > 0x10FFFF or _NO_XML.match(chr(code)) else found[0]


_SINGLE = frozenset(
    codecs.lookup(name).name
    for name in [f"cp{page}" for page in (866, 874, *range(1250, 1259))]
    + [f"iso8859-{part}" for part in (*range(1, 12), *range(13, 17))]
    + ["koi8-r", "koi8-u", "mac-roman", "mac-cyrillic"]
)


def _strict(data: bytes, codec: str) -> str | None:
    """None if there are damaged bytes. Halves of characters, which old programs write as UTF-8, are joined or U+FFFD."""
    try:
        return valid(data.decode(codec, "surrogatepass" if codec.startswith("utf") else "strict"))
    except UnicodeDecodeError:
        return None


def _seven_bits(data: bytes) -> str | None:
    """The text if it is in an encoding that switches from ASCII and back."""
    for escape, codec in _ESCAPES:
        if re.search(escape, data) and (text := _strict(data, codec)) is not None:
            return text
    if b"~{" in data and len(_HZ.findall(data)) == data.count(b"~{"):
        return _strict(data, "hz")
    return None


def _wide(data: bytes) -> str:
    """UTF-16 without a mark: what it writes of ASCII has its zero bytes on one side. Raises Unreadable if it is not that."""
    sample = data[: 1 << 16]
    zeros, ascii_ = sample.count(0), sum(32 <= byte < 127 for byte in sample)
    if 5 * zeros < len(sample) and ascii_ > 0.85 * (len(sample) - zeros):  # text with some zero bytes in it
        raise Unreadable(BINARY)
    big = 2 * sample[::2].count(0) > zeros
    text = data.decode("utf-16-be" if big else "utf-16-le", "replace")
    strange = sum(char == "\ufffd" or (not char.isprintable() and not char.isspace()) for char in text)
    if strange * _FEW > len(text):
        raise Unreadable(BINARY)
    return text
