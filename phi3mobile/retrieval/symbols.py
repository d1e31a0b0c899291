"""Characters of the fonts Symbol and Wingdings, which documents name by their place in the font, in Unicode.

Source: the Unicode consortium's table for Adobe's Symbol encoding (VENDORS/ADOBE/symbol.txt); Wingdings by the names of its
glyphs, those that stand in texts: ticks, crosses, boxes, arrows, bullets.
"""

from __future__ import annotations

_SYMBOL = dict(zip(range(0x41, 0x5B), "ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ", strict=True))
_SYMBOL |= dict(zip(range(0x61, 0x7B), "αβχδεφγηιϕκλμνοπθρστυϖωξψζ", strict=True))
_SYMBOL |= dict(zip(range(0xA0, 0xB0), "€ϒ′≤⁄∞ƒ♣♦♥♠↔←↑→↓", strict=True))
_SYMBOL |= dict(zip(range(0xB0, 0xC0), "°±″≥×∝∂•÷≠≡≈…⏐⎯↵", strict=True))
_SYMBOL |= dict(zip(range(0xC0, 0xD0), "ℵℑℜ℘⊗⊕∅∩∪⊃⊇⊄⊂⊆∈∉", strict=True))
_SYMBOL |= dict(zip(range(0xD0, 0xE0), "∠∇®©™∏√⋅¬∧∨⇔⇐⇑⇒⇓", strict=True))
_SYMBOL |= {0x22: "∀", 0x24: "∃", 0x27: "∋", 0x2A: "∗", 0x2D: "−", 0x40: "≅", 0x5C: "∴", 0x5E: "⊥", 0x7E: "∼"}
_SYMBOL |= {0xE0: "◊", 0xE1: "〈", 0xE2: "®", 0xE3: "©", 0xE4: "™", 0xE5: "∑", 0xF1: "〉", 0xF2: "∫"}
_WINGDINGS = dict(zip(bytes.fromhex("4a4c6c6e6f7172769fa7a8d8dfe0e1e2e8f0fbfcfdfe"), "☺☹●■□❑❒❖•▪◻➢←→↑↓➔⇨✗✓☒☑", strict=True))


def symbol(font: str, code: str) -> str:
    """The character with the hexadecimal `code` in a font; U+FFFD where it is not known what the reader sees."""
    try:
        place = int(code, 16)
    except ValueError:
        return "\ufffd"
    if not 0xF000 <= place <= 0xF0FF and place > 0xFF:
        return chr(place) if place <= 0x10FFFF else "\ufffd"
    place &= 0xFF
    name = font.strip().lower()
    table = _SYMBOL if name == "symbol" else _WINGDINGS if name.startswith("wingdings") else None
    if table is not None and place in table:
        return table[place]
    return chr(place) if table is not _WINGDINGS and 0x20 <= place < 0x7F else "\ufffd"
