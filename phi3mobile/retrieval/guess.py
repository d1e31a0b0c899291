"""Text whose encoding nothing tells: what Firefox's detector says of it, held against the letters that languages write with.

No detector alone is right on texts of a sentence, and none says when it is not. Here what is not sure is refused: of spaCy's
example sentences in 18 encodings, one by one, 96 % are read, 3 % refused and 1 % read wrongly; three at a time 99, 1 and 0 %
(tests/retrieval/test_retrieval_charsets.py).
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache

from phi3mobile.retrieval.document import Unreadable
from phi3mobile.retrieval.labels import codec_of, need

_WEST = ("cp1252", "iso8859-15", "mac-roman", "cp850", "cp437")
_CENTRAL = ("cp1250", "iso8859-2", "cp852", "mac-latin2", "iso8859-16")
_BALTIC = ("cp1257", "iso8859-13", "cp775", "iso8859-4")
_TURKISH = ("cp1254", "cp857", "mac-turkish")
_VIETNAMESE = ("cp1258",)
_CYRILLIC = ("cp1251", "koi8-u", "koi8-r", "cp866", "iso8859-5", "mac-cyrillic")
_GREEK = ("cp1253", "iso8859-7", "cp737", "mac-greek")
_HEBREW = ("cp1255", "iso8859-8")
_ARABIC = ("cp1256", "iso8859-6")
_THAI = ("cp874",)

_ANY_WEST = "µàáâãäåæçèéêëìíîïðñòóôõöøœùúûüýÿþßªº"
_SLAVIC = "абвгдежзийклмнопрстуфхцчшщьюя"
_SOUTH = "ćčđšžáéóäöü"
_NORDIC = "åæøäöéèêàóòôü"
_FARSI = "ءآأؤئابپتثجچحخدذرزژسشصضطظعغفقکگلمنوهیيكةى"
# Codecs -> language, by the code that py3langid gives -> its letters beyond ASCII, common loans' too.
_LETTERS: dict[tuple[str, ...], dict[str, str]] = {
    _WEST: {
        "en": _ANY_WEST,
        "fr": "àâæçéèêëîïôœùûüÿñ",
        "de": "äöüßéàè",
        "es": "áéíñóúüïçªº",
        "pt": "áâãàçéêíóôõúüñªº",
        "it": "àèéìíîòóùúªº",
        "ca": "àéèíïòóúüçªº",
        "gl": "áéíñóúüïçªº",
        "oc": "àáèéíïòóúüç",
        "eu": "ñçüáéíóú",
        "nl": "éèëêïóöüáâçí",
        "af": "êëéèôöïîûáíóúü",
        "lb": "ëéèäöüôêà",
        "wa": "åéèêîôûçëüö",
        "br": "âêîôûùñüé",
        "ga": "áéíóú",
        "gd": "àèìòùáéó",
        "sv": _NORDIC,
        "da": _NORDIC,
        "nb": _NORDIC,
        "nn": _NORDIC,
        "no": _NORDIC,
        "fi": _NORDIC,
        "is": "áéíóúýðþæö",
        "fo": "áíóúýðæøå",
        "et": "äõöüé",
        "sq": "ëç",
        "la": "æœëéäöü",
        "id": "éè",
        "ms": "éè",
        "tl": "ñáéíóú",
    },
    _CENTRAL: {
        "pl": "ąćęłńóśźżé",
        "cs": "áčďéěíňóřšťúůýžöüä",
        "sk": "áäčďéíĺľňóôŕšťúýžöüě",
        "hu": "áéíóöőúüűä",
        "ro": "ăâîşţșțáéöü",
        "sl": _SOUTH,
        "hr": _SOUTH,
        "bs": _SOUTH,
        "sr": _SOUTH,
    },
    _BALTIC: {"lt": "ąčęėįšųūžéöüó", "lv": "āčēģīķļņšūžõŗōéöü", "et": "äõöüšžé"},
    _TURKISH: {"tr": "çğıiöşüâîûé\u0307", "az": "çğıiöşüə\u0307", "ku": "çşêîû"},
    _VIETNAMESE: {"vi": "àáâãèéêìíòóôõùúýăđĩũơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ"},
    _CYRILLIC: {
        "ru": _SLAVIC + "ъыэё",
        "uk": _SLAVIC + "ґєії",
        "be": _SLAVIC + "ыэёўі",
        "bg": _SLAVIC + "ъѝ",
        "sr": _SLAVIC + "ђјљњћџ",
        "mk": _SLAVIC + "ѓѕјљњќџѐѝ",
    },
    _GREEK: {"el": "αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋΐΰ"},
    _HEBREW: {"he": "אבגדהוזחטיךכלםמןנסעףפץצקרשת", "yi": "אבגדהוזחטיךכלםמןנסעףפץצקרשת"},
    _ARABIC: {"ar": "ءآأؤإئابةتثجحخدذرزسشصضطظعغفقكلمنهوىيـپچگ", "fa": _FARSI, "ps": _FARSI, "ur": _FARSI + "ٹڈڑںھہےۃ"},
    _THAI: {"th": "".join(map(chr, (*range(0xE01, 0xE3B), *range(0xE40, 0xE4F))))},
}
_LATIN = frozenset((_WEST, _CENTRAL, _BALTIC, _TURKISH, _VIETNAMESE))
_CHINESE = {"gb18030": (0xB0, 0xD7), "big5hkscs": (0xA4, 0xC6)}  # first bytes of the characters in common use
_EAST_ASIAN = (*_CHINESE, "cp932", "euc_jp", "cp949")

_UNTOLD = "its encoding is not UTF-8, and can't be told from so little or such text: save it as UTF-8"
_SAMPLE = 1 << 16  # bytes that are looked at, of lines with more than ASCII in them
_FEWEST = 6  # letters: with fewer, no choice is made at all
_FEW = 8  # bytes beyond ASCII: with fewer, no choice is made between scripts
_CUT = 1000  # bytes: a text so long may end within a character

# Shares of the words beyond ASCII, and what is added to them.
_OFF = 0.3  # at most so many may look wrong
_ALIKE = 0.02  # readings that differ by less are equals
_ANY = 0.12  # for Western text that fits no single language, but all together
_DOUBTFUL, _DOUBT = 0.2, 0.15  # probability of a language below which it is doubtful, and what that adds
# Among equals, on probabilities of their languages.
_BONUS = 0.15  # for the detector's choice, and for windows-1252
_MARGIN = 0.1  # that the best must have before the second
_SURER = 0.3  # by which another encoding of the same script rules out the detector's

# What stands within a word; what no text is written with; letters where their language never has them; more of them in a row
# than Latin script has beyond ASCII (Polish: żółć).
_JOINING = "’‘–—…·\u00ad\u2011\u200c\u200d"
_UNUSED = "¤¦¬¸¨´¯ˇ˘˙˛˝ˆ˜‡ƒ"
_INVISIBLE = "\u00ad\u200c\u200d\u200e\u200f"
_MISPLACED = re.compile("[ךםןףץ]\\w|ς[^\\W\\d_]|(?<!\\w)[ъьЪЬ]|[ةى][ء-ي]|(?<![\u0e01-\u0e4e])[\u0e30-\u0e3a\u0e47-\u0e4e]")

_TOO_MANY = re.compile(r"[^\W\d_\x00-\x7f]{5}")


def guess(data: bytes) -> str:
    """The text of `data`, which is neither UTF-8 nor binary. Raises Unreadable if its encoding can't be told from it."""
    sample = _telling(data)
    first = _detected(sample)
    if len(re.findall(rb"[A-Za-z\x80-\xff]", sample)) < _FEWEST:
        raise Unreadable(_UNTOLD)
    if first in _EAST_ASIAN:
        text = _truncated(data, first)
        if text is not None and _is_east_asian(text[:_SAMPLE], first):
            return text
        codec = None if text is not None and sum(char > "\x7f" for char in text) < 4 else _by_letters(sample, first)
    else:
        codec = _by_letters(sample, first)
    text = _truncated(data, codec) if codec else None
    if codec is None or text is None:
        raise Unreadable(_UNTOLD)
    return unicodedata.normalize("NFC", text) if codec in _VIETNAMESE else text


def _telling(data: bytes) -> bytes:
    """The lines of `data` with bytes beyond ASCII, as far as _SAMPLE."""
    lines, size = [], 0
    for line in re.finditer(rb"[^\r\n]*[\x80-\xff][^\r\n]*", data):
        lines.append(line[0][:_SAMPLE])
        size += len(lines[-1])
        if size > _SAMPLE:
            break
    return b"\n".join(lines)


def _detected(sample: bytes) -> str | None:
    """The codec that chardetng, Firefox's detector, takes it for."""
    detector = need("chardetng_py").EncodingDetector()
    detector.feed(sample, last=len(sample) < _CUT)  # it may end within a character
    return codec_of(detector.guess(tld=None, allow_utf8=False))


def _truncated(data: bytes, codec: str) -> str | None:
    """The text of `data`, with U+FFFD if it ends within a character; None if it is damaged elsewhere."""
    decoder = codecs.getincrementaldecoder(codec)()
    try:
        text = decoder.decode(data)
    except UnicodeDecodeError:
        return None
    if not decoder.getstate()[0]:
        return text
    return text + "\ufffd" if len(data) >= _CUT else None


def _is_east_asian(text: str, codec: str) -> bool:
    """Whether it has its characters in runs, not one by one between Latin letters, and they are of those in use."""
    runs = re.findall(r"[^\x00-\x7f]+", text)
    total = sum(map(len, runs))
    if total < 4 or sum(len(run) for run in runs if len(run) > 1) < 0.8 * total:
        return False
    if codec not in _CHINESE:
        return True
    low, high = _CHINESE[codec]
    first = [char.encode(codec)[0] for run in runs for char in run if "\u4e00" <= char <= "\u9fff"]
    return 2 * sum(low <= byte <= high for byte in first) >= len(first)


@dataclass(frozen=True)
class _Reading:
    """A text as one codec reads it."""

    text: str
    family: tuple[str, ...]
    off: float  # share of its words that are not as its language writes them
    sure: float  # probability of that language


def _by_letters(sample: bytes, first: str | None) -> str | None:
    """The codec whose text looks right in the language that it then is in; `first` and habit choose among equals."""
    readings = {codec: reading for family in _LETTERS for codec in family if (reading := _reading(sample, codec, family))}
    least = min((reading.off for reading in readings.values()), default=1.0)
    equals = {codec: reading for codec, reading in readings.items() if reading.off <= least + _ALIKE}
    if least > _OFF:
        return None
    text = (first and _truncated(sample, first)) or ""
    few = sum(byte > 127 for byte in sample) < _FEW
    if len({reading.text for reading in equals.values()}) == 1:
        best = min(equals, key=lambda codec: equals[codec].off)
        return None if few and equals[best].family not in _LATIN and equals[best].text != text else best
    if all(reading.family in _LATIN for reading in equals.values()):
        return _likeliest(equals, text)
    mine = [reading for reading in equals.values() if reading.text == text]
    if few or not mine:
        return None
    rivals = [reading.sure for reading in equals.values() if reading.family == mine[0].family]
    return first if mine[0].sure + _SURER >= max(rivals) else None


def _likeliest(equals: dict[str, _Reading], text: str) -> str | None:
    """The codec of the text with the likeliest language; what counts besides: `text` is the detector's, most use cp1252."""
    scores: dict[str, float] = {}
    for codec, reading in equals.items():
        score = reading.sure + _BONUS * (reading.text == text) + _BONUS * (codec == "cp1252")
        scores[reading.text] = max(score, scores.get(reading.text, 0.0))
    second, best = sorted(scores.values())[-2:]
    chosen = next(codec for codec, reading in equals.items() if scores[reading.text] == best)
    return chosen if best - second >= _MARGIN else None


def _reading(sample: bytes, codec: str, family: tuple[str, ...]) -> _Reading | None:
    """None if this codec can't be it."""
    text, latin = _truncated(sample, codec), family in _LATIN
    if text is None or not (latin or re.search(r"[^\W\d_\x00-\x7f]{2}", text)):
        return None
    text = unicodedata.normalize("NFC", text) if family is _VIETNAMESE else text
    language, sure = _language(text if latin else re.sub("[A-Za-z]+", " ", text))  # of other scripts the script's own words
    letters = _LETTERS[family].get(language)
    if codec != "cp1252" and letters is None:
        return None
    off = 1.0 if letters is None else _share_off(text, letters, latin) + _DOUBT * (latin and sure < _DOUBTFUL)
    if family is _WEST:
        off = min(off, _ANY + _share_off(text, _ANY_WEST, True))
    return _Reading(text, family, off, sure)


def _language(text: str) -> tuple[str, float]:
    """Its two-letter code and the probability of that."""
    return _identifier().classify(text[:20000])


@cache
def _identifier():
    langid = need("py3langid.langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def _share_off(text: str, letters: str, latin: bool) -> float:
    """Share of the words beyond ASCII that are not as the language writes them."""
    words = Counter(word for word in text.split() if not word.isascii())
    known = frozenset(letters)
    off = sum(count for word, count in words.items() if _is_off(word, known, latin))
    return off / max(1, words.total())


def _is_off(word: str, letters: frozenset[str], latin: bool) -> bool:
    if (_TOO_MANY if latin else _MISPLACED).search(word):
        return True
    padded = f" {word} "
    return any(char > "\x7f" and _is_strange(*padded[at : at + 3], letters, latin) for at, char in enumerate(word))


@lru_cache(1 << 16)
def _is_strange(before: str, char: str, after: str, letters: frozenset[str], latin: bool) -> bool:
    """Whether a character beyond ASCII can't stand between these two in a language of these letters."""
    kind, beside = unicodedata.category(char), before.isalpha() and after.isalpha()
    if kind[0] in "LM":
        foreign = not latin and any(other.isascii() and other.isalpha() for other in (before, after))
        case = (before.islower() and char.isupper()) or (char.islower() and after.isupper())
        return foreign or case or before == char == after or (char.lower() not in letters and kind != "Mn")
    if kind[0] == "C":
        return char not in _INVISIBLE
    box = "\u2500" <= char <= "\u25ff" and (before.isalnum() or after.isalnum())
    quote = char in "‚„“" and before.isalpha()  # these open
    dash = char in "–—" and before.isalpha() and after.isspace()
    return char in _UNUSED or box or dash or quote or (beside and char not in _JOINING)
