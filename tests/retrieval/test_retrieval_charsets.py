"""Plain text in every encoding that people have: read right, or refused by name; never letters that nobody wrote."""

import importlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.errors import InputError
from phi3mobile.retrieval.charsets import decode
from phi3mobile.retrieval.document import Unreadable, clean
from phi3mobile.retrieval.read import read_document

for package in ("webencodings", "chardetng_py", "py3langid"):
    pytest.importorskip(package, reason=f'detection needs {package}: pip install "phi3mobile[library]"')

CHINESE = "租金在每月三号支付，请按时转账。"
JAPANESE = "家賃は毎月三日に支払います。"
RUSSIAN = "Квартплата вносится третьего числа каждого месяца."
CASES = [
    (CHINESE, "gbk gb18030 hz"),
    ("租金在每月3号支付，\n请按时转账。", "gbk utf-16-le utf-16-be"),
    ("租金每月三號支付，請準時轉帳。", "big5 big5hkscs gbk"),
    (JAPANESE, "shift_jis cp932 euc_jp iso2022_jp"),
    ("집세는 매달 삼일에 냅니다.", "euc_kr cp949 iso2022_kr"),
    (RUSSIAN, "cp1251 koi8_r cp866 iso8859_5 mac_cyrillic utf-16-le"),
    (RUSSIAN.upper(), "cp1251 koi8_r cp866 iso8859_5"),
    ("Орендна плата сплачується третього числа, її не можна затримувати.", "cp1251 koi8_u"),
    ("Το ενοίκιο πληρώνεται την τρίτη ημέρα κάθε μήνα.", "cp1253 iso8859_7 cp737"),
    ("שכר הדירה משולם בשלישי לכל חודש.", "cp1255 iso8859_8"),
    ("يدفع الإيجار في اليوم الثالث من كل شهر.", "cp1256 iso8859_6"),
    ("ค่าเช่าต้องชำระในวันที่สามของทุกเดือน", "cp874"),
    ("Kira her ayın üçüncü gününde ödenir, gecikmez.", "cp1254 cp857 mac_turkish"),
    ("Czynsz płaci się trzeciego dnia każdego miesiąca, bez opóźnień.", "cp1250 iso8859_2 cp852"),
    ("Nájem se platí třetího dne každého měsíce, bez zpoždění.", "cp1250 iso8859_2 cp852"),
    ("A bérleti díjat minden hónap harmadik napján kell fizetni, későn nem.", "cp1250 cp852"),
    ("Nuomos mokestis mokamas trečią kiekvieno mėnesio dieną, nevėluojant.", "cp1257 iso8859_13"),
    ("Die Miete ist am dritten Tag fällig, auch für März: 700 €, größer geht’s nicht.", "cp1252"),
    ("Übergrößen für Mädchen: die Straße ist länger.", "iso8859_1 cp850 cp437 mac_roman"),
    ("Le loyer est dû le trois de chaque mois, payé à l’avance: 700 € où ça.", "cp1252 mac_roman"),
    ("El alquiler se paga el día tres, ¿también en año nuevo? Sí, señor.", "cp1252 cp850 mac_roman"),
    ("Hyran betalas på den tredje, även för småhus.", "cp1252"),
    ("naïve – “x”", "cp1252 utf-8-sig utf-16 utf-32"),
    ("It’s the tenant’s duty – “always”.", "cp1252"),
    ("The résumé of José is late, says Zoë.", "cp1252 iso8859_1"),
    ("25 °C outside, ½ cup, 5 × 3 mm", "cp1252"),
    ("Plain text with emoji 😀 and 中文", "utf-8 utf-16 utf-16-le utf-32"),
]


@pytest.mark.parametrize(("text", "codec"), [(text, codec) for text, codecs in CASES for codec in codecs.split()])
def test_text_is_read_in_its_encoding(tmp_path, text, codec):
    (tmp_path / "a.txt").write_bytes(text.encode(codec))
    assert [block.text for block in read_document(tmp_path / "a.txt").blocks] == [text]


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("é", "cp1252"),
        ("é", "cp850"),
        ("ü ö", "mac_roman"),
        ("租", "gbk"),
        ("租", "big5"),
        ("賃", "shift_jis"),
        ("я", "cp1251"),
    ],
)
def test_too_little_text_is_refused_by_name(tmp_path, text, codec):
    (tmp_path / "short.txt").write_bytes(text.encode(codec))
    with pytest.raises(InputError, match=r"short\.txt can't be read: its encoding is not UTF-8, and can't be told .* UTF-8"):
        read_document(tmp_path / "short.txt")


def test_text_that_no_language_has_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(0x80, 0x100)) * 3)
    with pytest.raises(InputError, match="can't be told"):
        read_document(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "data",
    [
        b"text\0with zero bytes in it, which is no text",
        b"\0\1binary",
        b"\x7fELF" + bytes(range(256)),
        bytes(range(200)),
        b"\0" * 9,
    ],
)
def test_binary_data_is_refused(data):
    with pytest.raises(Unreadable, match="binary data"):
        decode(data)


def test_ascii_is_no_encoding_with_escapes():
    for text in ("Fig.~{12} and ~{x~} here", "~/home ~{ab~} ~{cd}", "\x1b[31mred\x1b[0m", "+AOk- is no UTF-7"):
        assert decode(text.encode()) == text


def test_damage_in_utf8_stays_where_it_is():
    text = "naïve café, façade, déjà vu, Zoë, piñata, über, señor, crème brûlée. " * 3
    data = text.encode()
    assert decode(data[:-1] + b"\xe2\x82") == text[:-1] + "\ufffd"
    assert decode(data.replace("ï".encode(), b"\xef", 1)) == text.replace("ï", "\ufffd", 1)


def test_halves_of_characters_in_utf8_are_joined_or_replaced():
    """As Java and MySQL wrote emoji: each half as three bytes."""
    assert decode("a \ud83d\ude00 b \ud83d c".encode("utf-8", "surrogatepass")) == "a 😀 b \ufffd c"
    assert decode(b"\xff\xfe" + "a\ud83d b".encode("utf-16-le", "surrogatepass")) == "a\ufffd b"


def test_a_long_text_may_end_within_a_character():
    text = CHINESE * 60
    assert decode(text.encode("gbk")[:-1]) == text[:-1] + "\ufffd"


def test_the_lines_that_tell_may_come_late():
    text = "plain line\n" * 30000 + RUSSIAN
    assert decode(text.encode("cp1251")) == text


def test_a_missing_detector_is_named(monkeypatch):
    real = importlib.import_module

    def without(name, *rest):
        if name == "chardetng_py":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(Unreadable, match=r"chardetng-py \(pip install "):
        decode(RUSSIAN.encode("cp1251"))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_valid_text_or_refused(data):
    try:
        text = decode(data)
    except Unreadable:
        return
    clean(text).encode()


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60).filter(lambda text: "\0" not in text and not text.startswith("\ufeff")))
def test_utf8_is_always_read(text):
    if text.isascii() and ("\x1b" in text or "~{" in text):
        return
    assert decode(text.encode()) == text


SPOKEN = {
    "gbk": "zh",
    "shift_jis": "ja",
    "euc_jp": "ja",
    "euc_kr": "ko",
    "cp1250": "pl cs hu sk sl hr",
    "cp1251": "ru uk bg sr",
    "cp1252": "fr de es pt it sv da nb fi ca lb",
    "cp1253": "el",
    "cp1254": "tr",
    "cp1255": "he",
    "cp1256": "ar",
    "cp1257": "lt lv et",
    "cp850": "fr de",
    "cp866": "ru",
    "iso8859_2": "pl cs",
    "iso8859_5": "ru",
    "koi8_r": "ru",
    "mac_roman": "fr es",
}


@pytest.mark.slow
def test_sentences_of_many_languages_are_read_or_refused():
    """spaCy's examples, each sentence alone: at least 92 % right, at most 3 % wrong; three by three none wrong."""
    pytest.importorskip("spacy", reason="the sentences are spaCy's")
    counts = {1: [0, 0, 0], 3: [0, 0, 0]}
    for codec, languages in SPOKEN.items():
        for language in languages.split():
            try:
                sentences = importlib.import_module(f"spacy.lang.{language}.examples").sentences
            except ModuleNotFoundError:  # not every language has some
                continue
            fit = [text for text in sentences if text.encode(codec, "replace").decode(codec) == text]
            for size, count in counts.items():
                for at in range(0, len(fit) - size + 1, size):
                    text = "\n".join(fit[at : at + size])
                    if text.isascii():
                        continue
                    try:
                        count[0 if decode(text.encode(codec)) == text else 2] += 1
                    except Unreadable:
                        count[1] += 1
    print(counts)
    right, _, wrong = counts[1]
    assert right > 0.92 * sum(counts[1]) and wrong < 0.03 * sum(counts[1]) and counts[3][2] == 0 and sum(counts[3]) > 50
