"""Which font draws which characters, and right-to-left text in the order in which it is drawn.

Kivy's text provider draws one font from left to right. So text is cut into runs of one font, and a right-to-left paragraph
is shaped (arabic_reshaper), broken into lines by measured widths, and each line reordered (python-bidi: Unicode UAX 9).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from itertools import groupby
from unicodedata import bidirectional, category

BASE, ARABIC, HEBREW, EMOJI, MONO, MATH, SIGNS, CJK = "base", "arabic", "hebrew", "emoji", "mono", "math", "signs", "cjk"
_FONTS = {
    ARABIC: ((0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE)),
    HEBREW: ((0x590, 0x5FF), (0xFB1D, 0xFB4F)),
    CJK: ((0x1100, 0x11FF), (0x2E80, 0xA4CF), (0xAC00, 0xD7FF), (0xF900, 0xFAFF), (0xFF00, 0xFFEF), (0x20000, 0x3FFFF)),
    MATH: ((0x2190, 0x22FF), (0x27C0, 0x2AFF)),
    SIGNS: ((0x2300, 0x23FF), (0x2440, 0x24FF), (0x25A0, 0x27BF), (0x2B00, 0x2BFF)),
    MONO: ((0x2500, 0x259F), (0xFFFD, 0xFFFD)),
    EMOJI: ((0x1F000, 0x1FAFF), (0xE0020, 0xE007F)),
}
_RANGES = sorted((first, last, font) for font, ranges in _FONTS.items() for first, last in ranges)
_STARTS = [first for first, _, _ in _RANGES]
# Below U+1F000, Unicode's Emoji_Presentation=Yes (emoji-data.txt); others are emoji only with U+FE0F after them.
_EMOJI = frozenset(
    "⌚⌛⏩⏪⏫⏬⏰⏳◽◾☔☕♈♉♊♋♌♍♎♏♐♑♒♓♿⚓⚡⚪⚫⚽⚾⛄⛅⛎⛔⛪⛲⛳⛵⛺⛽✅✊✋✨❌❎❓❔❕❗➕➖➗➰➿⬛⬜⭐⭕"
)
_SPACED = (ARABIC, HEBREW, CJK)
_JOINERS = "\u200d\ufe0f\u20e3"  # ZWJ, emoji style, keycap: they stay with the emoji before them
_HIDDEN = dict.fromkeys(map(ord, "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\ufe0e\u00ad"))


def font_of(character: str) -> str:
    code = ord(character)
    if code < 0x590:
        return BASE
    if character in _EMOJI:
        return EMOJI
    at = bisect_right(_STARTS, code) - 1
    if at >= 0 and code <= _RANGES[at][1]:
        return _RANGES[at][2]
    return BASE


def runs(text: str) -> list[tuple[str, str]]:
    """(font, text) in order; a space stays in the run before it if that font has one, an emoji sequence whole."""
    fonts: list[str] = []
    for index, character in enumerate(text):
        following = text[index + 1] if index + 1 < len(text) else ""
        before = fonts[-1] if fonts else BASE
        if character == " ":
            fonts.append(before if before in _SPACED else BASE)
        elif character in _JOINERS or category(character) in ("Mn", "Me"):
            fonts.append(before)
        elif (
            following == "\ufe0f"
            or (character in "0123456789#*" and text[index + 1 : index + 3] == "\ufe0f\u20e3")
            or (before == EMOJI and text[index - 1] == "\u200d")
        ):
            fonts.append(EMOJI)
        else:
            fonts.append(font_of(character))
    pairs = groupby(zip(fonts, text, strict=True), key=lambda pair: pair[0])
    return [(font, "".join(character for _, character in group)) for font, group in pairs]


def has_rtl(text: str) -> bool:
    """Whether anything in it runs right to left."""
    return any(character >= "\u0590" and bidirectional(character) in ("R", "AL", "AN") for character in text)


def is_rtl(text: str) -> bool:
    """Whether a paragraph runs right to left: its first strong character says so (UAX 9, P2 and P3)."""
    kinds = (bidirectional(character) for character in text)
    return next((kind != "L" for kind in kinds if kind in ("L", "R", "AL")), False)


def shown(text: str) -> str:
    """Without the characters that only steer direction or style: no font has a picture for them."""
    return text.translate(_HIDDEN)


def visual_lines(paragraph: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """A paragraph with right-to-left text as lines in drawing order, none wider than `width` unless one word is.

    `measure` gives the width of text in drawing order. Words are broken between, and a word that is wider than a line inside.
    """
    reshaped, rtl = _reshape(paragraph), is_rtl(paragraph)
    lines, line = [], ""
    for word in reshaped.split(" "):
        candidate = f"{line} {word}" if line else word
        if line and measure(candidate) > width:
            lines.append(line)
            candidate = word
        while len(candidate) > 1 and " " not in candidate and measure(candidate) > width:
            fits = next((n for n in range(len(candidate) - 1, 0, -1) if measure(candidate[:n]) <= width), 1)
            lines.append(candidate[:fits])
            candidate = candidate[fits:]
        line = candidate
    lines.append(line)
    return [reorder(line, rtl) for line in lines]


def reorder(line: str, rtl: bool) -> str:
    """One shaped line in drawing order."""
    from bidi.algorithm import get_display  # the pure-Python one, which phones have too

    if not has_rtl(line):
        return shown(line)
    kept, emoji = _stand_ins(line)
    drawn = get_display(kept, base_dir="R" if rtl else "L")
    return shown("".join(emoji.get(character, character) for character in drawn))


def visual(line: str) -> str:
    """One line, shaped and in drawing order."""
    return reorder(_reshape(line), is_rtl(line)) if has_rtl(line) else line


@lru_cache(maxsize=256)
def _reshape(text: str) -> str:
    from arabic_reshaper import reshape

    return reshape(text)


def _stand_ins(line: str) -> tuple[str, dict[str, str]]:
    """The line with one neutral character for each emoji sequence, whose characters must not be reordered, and what it is."""
    parts, emoji = [], {}
    for font, text in runs(line):
        for piece in _sequences(text) if font == EMOJI else [text]:
            if len(piece) > 1 and font == EMOJI and len(emoji) < _STAND_INS:
                stand_in = chr(_STAND_IN + len(emoji))
                emoji[stand_in] = piece
                piece = stand_in
            parts.append(piece)
    return "".join(parts), emoji


_STAND_IN, _STAND_INS = 0x4DC0, 64  # Yijing hexagrams: direction-neutral, and next to never in a chat


def _sequences(text: str) -> list[str]:
    """Emoji text cut into what is drawn as one: ZWJ sequences, skin tones, flags, keycaps."""
    found: list[str] = []
    flags = 0  # regional indicators at the end: two make a flag
    for character in text:
        regional = "\U0001f1e6" <= character <= "\U0001f1ff"
        joins = found and (
            character in _JOINERS
            or found[-1].endswith("\u200d")
            or "\U0001f3fb" <= character <= "\U0001f3ff"
            or "\U000e0020" <= character <= "\U000e007f"
            or (regional and flags % 2 == 1)
        )
        flags = flags + 1 if regional else 0
        if joins:
            found[-1] += character
        else:
            found.append(character)
    return found
