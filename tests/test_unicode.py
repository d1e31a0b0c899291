"""Text and names from outside: valid Unicode, and nothing that a terminal would obey."""

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3mobile.errors import InputError
from phi3mobile.files import refuse_existing
from phi3mobile.hub import resolve
from phi3mobile.unicode import printable, valid, valid_values

anything = st.text(st.characters(), max_size=30) | st.text(st.sampled_from("a\ud83d\ude00\udcff\n\x1b"), max_size=12)


@given(anything)
def test_valid_text_can_be_encoded_and_stays(text):
    made = valid(text)
    made.encode()
    assert valid(made) == made
    assert made == text or any("\ud800" <= char <= "\udfff" for char in text)


def test_pairs_are_joined_and_halves_replaced():
    assert valid("a\ud83d\ude00b\ude00\ud83dc") == "a😀b\ufffd\ufffdc"
    assert valid_values({"\ud83d": ["\ude00", {"x": "\ud83d\ude00"}, 1, None]}) == {"\ufffd": ["\ufffd", {"x": "😀"}, 1, None]}


@given(st.binary(max_size=20).filter(lambda data: b"\0" not in data))
def test_every_name_is_printable(data):
    shown = printable(os.fsdecode(data))
    shown.encode()
    assert all(unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp") for char in shown)


def test_names_stay_as_they_are_but_for_what_is_spelled():
    assert printable("Ünïcode 中文 \U0001f468\u200d\U0001f469.txt") == "Ünïcode 中文 \U0001f468\u200d\U0001f469.txt"
    assert printable(os.fsdecode(b"caf\xe9\x1b\n")) == "caf\\xe9\\x1b\\x0a"
    assert printable("a\u202eb\u2028\x85\ud83d") == "a\\u202eb\\u2028\\x85\\ud83d"


def test_folders_that_the_libraries_cannot_open_are_refused_by_name(tmp_path):
    bad = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(InputError, match=r"caf\\xe9 is not UTF-8; .*: rename it"):
        refuse_existing(bad)
    try:
        bad.mkdir()
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system has no such names")
    with pytest.raises(InputError, match=r"caf\\xe9 is not UTF-8"):
        resolve(bad)
