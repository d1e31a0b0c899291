"""Text of the assistant: Markdown blocks and spans, fonts of runs, right-to-left lines in drawing order."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3mobile.assistant.text.blocks import BULLET, CODE, HEADING, PARAGRAPH, Block, blocks, spans
from phi3mobile.assistant.text.runs import font_of, has_rtl, is_rtl, reorder, runs, visual, visual_lines

FONTS = Path(__file__).parents[2] / "apps" / "assistant" / "fonts"
SOME_TEXT = st.text(st.sampled_from("aZ 1.,()[]*`#-\n😀👍🏽❤️\u200d👩💻🇫🇷مرحباשלום→漢é\u0301"), max_size=60)


def test_blocks():
    text = "# Title\nOne **line**\nand another\n\n- a\n  more\n  - b\n3) c\n```py\nx = 1\n\n# no title\n```\nend"
    assert blocks(text) == [
        Block(HEADING, "Title", 1),
        Block(PARAGRAPH, "One **line**\nand another"),
        Block(BULLET, "a\nmore", 0, "•"),
        Block(BULLET, "b", 1, "•"),
        Block(BULLET, "c", 0, "3)"),
        Block(CODE, "x = 1\n\n# no title"),
        Block(PARAGRAPH, "end"),
    ]


def test_a_fence_that_is_still_open_is_code():
    assert blocks("```\nx = [1,\n") == [Block(CODE, "x = [1,\n")]
    assert blocks("a\n```") == [Block(PARAGRAPH, "a"), Block(CODE, "")]


@given(SOME_TEXT)
def test_blocks_lose_no_letter(text):
    def letters(part: str) -> str:
        return "".join(character for character in part if character.isalpha())

    assert letters("".join(block.text for block in blocks(text)).replace(" ", "")) in letters(text) or "```" in text
    assert len(letters("".join(block.text for block in blocks(text)))) == len(letters(text)) or "```" in text


def test_blocks_grow_only_at_the_end():
    """While an answer streams, only its last block changes: what the window relies on to draw little."""
    text = "A first paragraph.\n\n- one\n- two\n\n```\ncode\n```\n\nThe end."
    for end in range(1, len(text)):
        before, after = blocks(text[:end]), blocks(text[: end + 1])
        assert before[:-1] == after[: max(len(before) - 1, 0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a **b** `c` *d*", [("", "a "), ("bold", "b"), ("", " "), ("code", "c"), ("", " "), ("italic", "d")]),
        ("2 * 3 * 4", [("", "2 * 3 * 4")]),
        ("a*b*c", [("", "a*b*c")]),
        ("**open", [("", "**open")]),
        ("`a*b*`", [("code", "a*b*")]),
        ("", []),
    ],
)
def test_spans(text, expected):
    assert spans(text) == expected


def test_runs_have_one_font_each():
    assert runs("Hi 😀 ok → مرحبا שלום 漢 ✓ ─") == [
        ("base", "Hi "),
        ("emoji", "😀"),
        ("base", " ok "),
        ("math", "→"),
        ("base", " "),
        ("arabic", "مرحبا "),
        ("hebrew", "שלום "),
        ("cjk", "漢 "),
        ("signs", "✓"),
        ("base", " "),
        ("mono", "─"),
    ]


@pytest.mark.parametrize("emoji", ["👍🏽", "👩‍👩‍👧", "🇫🇷", "❤️", "1️⃣", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "👩🏽‍💻", "☺️"])
def test_an_emoji_sequence_stays_whole(emoji):
    assert runs(f"a{emoji}b") == [("base", "a"), ("emoji", emoji), ("base", "b")]
    assert emoji.replace("\ufe0e", "") in reorder(f"שלום {emoji} שלום", rtl=True)


@given(SOME_TEXT)
def test_runs_are_the_text(text):
    assert "".join(run for _, run in runs(text)) == text


def test_direction():
    assert is_rtl("123 مرحبا abc") and not is_rtl("abc مرحبا") and not is_rtl("12 + 3") and not is_rtl("")
    assert has_rtl("abc ש") and not has_rtl("abc é 😀 漢")


def test_arabic_is_joined_and_runs_right_to_left():
    pytest.importorskip("bidi", reason="pip install 'phi3mobile[app]'")
    drawn = visual("باب 12")  # beh alef beh: initial, final, isolated form
    assert drawn == "12 \ufe8f\ufe8e\ufe91"


def test_hebrew_with_latin_numbers_and_brackets():
    pytest.importorskip("bidi", reason="pip install 'phi3mobile[app]'")
    assert visual("אבג (abc 12) ד") == "ד (abc 12) גבא"
    assert visual("abc (אבג)") == "abc (גבא)"


@given(SOME_TEXT, st.integers(1, 30))
def test_lines_fit_and_lose_nothing(text, width):
    pytest.importorskip("bidi", reason="pip install 'phi3mobile[app]'")
    text = text.replace("\n", " ")
    lines = visual_lines(text, width, len)
    letters = [character for line in lines for character in line if "\u05d0" <= character <= "\u05ea" or character.isascii()]
    expected = [character for character in text if "\u05d0" <= character <= "\u05ea" or character.isascii()]
    assert sorted("".join(letters).replace(" ", "").translate(_MIRROR)) == sorted(
        "".join(expected).replace(" ", "").translate(_MIRROR)
    )
    assert all(len(line) <= max(width, 1) or " " not in line for line in lines)


_MIRROR = str.maketrans(")]", "([")


def test_every_font_is_there_with_its_license_and_the_same_height():
    fonttools = pytest.importorskip("fontTools.ttLib", reason="pip install fonttools")
    heights = set()
    for path in FONTS.glob("*.ttf"):
        font = fonttools.TTFont(path)
        em = font["head"].unitsPerEm
        heights.add((round(font["hhea"].ascent / em, 2), round(font["hhea"].descent / em, 2)))
    assert len(heights) == 1, "mixed scripts would not stand on one line"
    assert {path.name for path in FONTS.glob("LICENSE-*")} == {"LICENSE-Noto.txt", "LICENSE-Twemoji.txt", "LICENSE-Icons.txt"}
    assert sum(path.stat().st_size for path in FONTS.iterdir()) < 4e6


def test_every_font_draws_what_it_is_chosen_for():
    fonttools = pytest.importorskip("fontTools.ttLib", reason="pip install fonttools")
    files = {
        "base": "NotoSans-Regular",
        "arabic": "NotoSansArabic-Regular",
        "hebrew": "NotoSansHebrew-Regular",
        "emoji": "Twemoji",
        "mono": "NotoSansMono-Regular",
        "math": "NotoSansMath-Regular",
        "signs": "NotoSansSymbols2-Regular",
    }
    cmaps = {name: fonttools.TTFont(FONTS / f"{file}.ttf").getBestCmap() for name, file in files.items()}
    for character in "aé€ŁЖΩ…•مﺑשּׁ→≤∑√✓★▶┌█😀⭐🚀":
        assert ord(character) in cmaps[font_of(character)], (character, font_of(character))


def test_every_icon_is_in_the_icon_font():
    fonttools = pytest.importorskip("fontTools.ttLib", reason="pip install fonttools")
    assert {ord(icon) for icon in from_theme("ICONS").values()} == set(fonttools.TTFont(FONTS / "Icons.ttf").getBestCmap())


def test_texts_stand_out_from_what_is_behind_them():
    """WCAG 2.2 AA: a contrast of 4.5."""
    for colors in (from_theme("LIGHT"), from_theme("DARK")):
        behind = {
            "text": ("background", "surface", "bubble", "code", "warn"),
            "dim": ("background", "surface", "code", "warn"),
            "accent": ("background", "surface", "code"),
            "on_accent": ("accent",),
            "danger": ("surface", "code", "warn"),
        }
        for text, grounds in behind.items():
            for ground in grounds:
                assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)


def from_theme(name: str) -> dict[str, str]:
    """A dictionary of ui/theme.py, read without Kivy."""
    tree = ast.parse((FONTS.parent / "ui" / "theme.py").read_text())
    return next(
        ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == name
    )


def contrast(one: str, other: str) -> float:
    low, high = sorted(luminance(color) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
