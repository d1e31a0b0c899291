"""python make.py NOTO MDI TWEMOJI: makes this folder's fonts again (needs fonttools, brotli).

NOTO: folder with the .ttf files of Debian's fonts-noto-core and fonts-noto-mono; MDI: materialdesignicons-webfont.ttf of the
npm package @mdi/font; TWEMOJI: twemoji.woff2 of the npm package twemoji-colr-font.
"""

import sys
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

HERE = Path(__file__).resolve().parent
ASCENT, DESCENT = 1.069, 0.38  # of an em; the same for all, so that Kivy puts mixed scripts on one baseline
LATIN = [*range(0x20, 0x590), *range(0x1E00, 0x2100), *range(0x2100, 0x2190)]
SIGNS = [*range(0x2190, 0x2C00), 0xFFFD]
ICONS = [  # those of ui/theme.py
    0xF035C,
    0xF0415,
    0xF005D,
    0xF04DB,
    0xF018F,
    0xF0450,
    0xF03EB,
    0xF0156,
    0xF0A7A,
    0xF0493,
    0xF012A,
    0xF125F,
    0xF09EE,
    0xF0256,
    0xF061A,
    0xF05D6,
    0xF012C,
    0xF004D,
    0xF0365,
    0xF0045,
    0xF087C,
]


def write(source: Path, name: str, codes: list[int] | None) -> None:
    font = TTFont(source)
    font.flavor = None
    if codes:
        options = Options()
        options.layout_features = ["*"] if "Arabic" in name or "Hebrew" in name else ["kern", "mark", "mkmk", "liga"]
        options.hinting, options.name_IDs = False, ["*"]
        subsetter = Subsetter(options)
        subsetter.populate(unicodes=codes)
        subsetter.subset(font)
    em = font["head"].unitsPerEm
    font["hhea"].ascent, font["hhea"].descent, font["hhea"].lineGap = round(ASCENT * em), -round(DESCENT * em), 0
    os2 = font["OS/2"]
    os2.sTypoAscender, os2.sTypoDescender, os2.sTypoLineGap = round(ASCENT * em), -round(DESCENT * em), 0
    os2.usWinAscent, os2.usWinDescent = round(ASCENT * em), round(DESCENT * em)
    font.save(HERE / name)


def main(noto: str, mdi: str, twemoji: str) -> None:
    latin_only = {"Sans": LATIN, "SansMono": LATIN + SIGNS, "SansMath": SIGNS, "SansSymbols2": SIGNS}
    both, one = ("Sans", "SansArabic", "SansHebrew"), ("SansMono", "SansMath", "SansSymbols2")
    styles = [(family, weight) for family in both for weight in ("Regular", "Bold")] + [(family, "Regular") for family in one]
    for family, weight in (*styles, ("Sans", "Italic")):
        source = next(Path(noto).rglob(f"Noto{family}-{weight}.ttf"))
        codes = latin_only.get(family) or sorted(TTFont(source).getBestCmap())
        write(source, f"Noto{family}-{weight}.ttf", codes)
    write(Path(mdi), "Icons.ttf", ICONS)
    write(Path(twemoji), "Twemoji.ttf", None)


if __name__ == "__main__":
    main(*sys.argv[1:])
