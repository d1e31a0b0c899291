"""The sample read as files: both languages whole, no text or colour in the code, buttons told apart, screens off the bars."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

MAIN = Path(__file__).parents[3] / "apps" / "android" / "sample" / "src" / "main"
CODE = {path.name: path.read_text("utf-8") for path in sorted((MAIN / "kotlin").rglob("*.kt"))}
KOTLIN = "\n".join(CODE.values())
LANGUAGES = sorted(path.name for path in (MAIN / "res").glob("values*") if (path / "strings.xml").exists())
PLACE = re.compile(r"%(\d)\$(\.?\d*[dsf])")


def strings(folder: str) -> dict[str, str]:
    root = ET.parse(MAIN / "res" / folder / "strings.xml").getroot()
    return {entry.attrib["name"]: entry.text or "" for entry in root.iter("string")}


def test_every_language_has_every_text_with_its_places():
    assert LANGUAGES == ["values", "values-de"]
    first = strings("values")
    for folder in LANGUAGES[1:]:
        other = strings(folder)
        assert other.keys() == first.keys()
        assert {name: sorted(PLACE.findall(text)) for name, text in other.items()} == {
            name: sorted(PLACE.findall(text)) for name, text in first.items()
        }
        same = {name for name in first if first[name] == other[name]}
        assert same <= {"app", "progress"}, f"not translated: {same}"


def test_texts_are_used_and_used_ones_exist():
    used = set(re.findall(r"R\.string\.(\w+)", KOTLIN))
    manifest = set(re.findall(r"@string/(\w+)", (MAIN / "AndroidManifest.xml").read_text("utf-8")))
    assert used | manifest == strings("values").keys()


def test_getstring_fills_every_place():
    first = strings("values")
    calls = re.findall(r"getString\(R\.string\.(\w+)((?:, [^()]*(?:\([^()]*\)[^()]*)*)?)\)", KOTLIN)
    assert {name for name, _ in calls} >= {"statistics", "progress", "open_model"}
    for name, given in calls:
        depth, count = 0, 0
        for letter in given:
            depth += letter in "([{"
            depth -= letter in ")]}"
            count += letter == "," and depth == 0
        assert count == len({place for place, _ in PLACE.findall(first[name])}), name
    # Texts with places are never shown as they are.
    bare = set(re.findall(r"(?:text|button|field|setText|setHint)\(R\.string\.(\w+)", KOTLIN))
    assert not {name for name in bare if PLACE.search(first[name])}


def test_no_text_and_no_colour_is_in_the_code():
    shown = re.findall(r'(?:setText|setHint|setTitle|setContentDescription|views\.text|views\.heading)\("([^"]*)"', KOTLIN)
    assert [text for text in shown if re.search(r"[A-Za-z]", re.sub(r"\$\{[^}]*\}", "", text))] == []
    assert not re.search(r"setTextColor|setBackground|#[0-9a-fA-F]{6}|Color\.", KOTLIN)  # the theme's, light or dark


def test_dark_as_the_system_is():
    parents = {
        folder: ET.parse(MAIN / "res" / folder / "styles.xml").getroot().find("style").attrib["parent"]
        for folder in ("values", "values-v29")
    }
    assert parents == {
        "values": "@android:style/Theme.DeviceDefault.Light",  # DayNight is Android 10's
        "values-v29": "@android:style/Theme.DeviceDefault.DayNight",
    }
    assert 'android:theme="@style/App"' in (MAIN / "AndroidManifest.xml").read_text("utf-8")


def test_buttons_in_lists_say_what_they_are_of():
    """Several of one word on a screen: TalkBack reads the description, which names the model."""
    for word in ("open", "delete", "go_on"):
        buttons = re.findall(rf"button\(R\.string\.{word}\b([^)]*\))", KOTLIN)
        assert buttons and all(f"getString(R.string.{word}_model, " in given for given in buttons), word


def test_screens_are_inset():
    """Since Android 15 bars lie over the window: what is shown goes through Views.inset."""
    views = [name for name, text in CODE.items() if re.search(r"val view: View\b", text)]
    assert views and all("inset(" in CODE[name] for name in views)
    for shown in re.findall(r"setContentView\((.*)\)\n", KOTLIN):
        assert shown.endswith(".view") or "inset(" in shown, shown


@pytest.mark.parametrize("size", re.findall(r"setMinimumHeight\(pixels\((\d+)\)\)", KOTLIN))
def test_what_is_touched_is_large_enough(size):
    assert int(size) >= 48
