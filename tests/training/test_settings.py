"""Reading TOML into dataclasses: what fits is converted, what does not is named in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from phi3mobile.errors import InputError
from phi3mobile.training.settings import from_table, read_settings


@dataclass(frozen=True)
class Part:
    path: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    held: dict[str, Path] = field(default_factory=dict)
    kind: Literal["a", "b"] = "a"
    stage: Literal[1, 2] = 1
    other: Part | None = None
    free: dict[str, Any] | None = None
    count: int = 0
    on: bool = False
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 0:
            raise InputError(f"whole: count {self.count}; it must be 0 or more")


def test_values_are_converted(tmp_path):
    (tmp_path / "t.toml").write_text(
        'parts = [{path = "x", weight = 2}]\nheld = {a = "b"}\nother = {path = "y"}\nfree = {z = [1]}\nwords = ["u", "v"]\n'
    )
    whole = Whole((Part(Path("x"), 2.0),), {"a": Path("b")}, other=Part(Path("y")), free={"z": [1]}, words=("u", "v"))
    found = read_settings(tmp_path / "t.toml", Whole)
    assert found == whole and isinstance(found.parts[0].weight, float)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"parts": [{"path": "x"}, {"path": 3}]}, "t: parts[1]: path is 3; it must be path (text)"),
        ({"parts": [], "held": {"a": "b", "c": 3}}, "t: held.c is 3; it must be path (text)"),
        ({"parts": [], "kind": "c"}, "t: kind is 'c'; it must be 'a' or 'b'"),
        ({"parts": [], "stage": "x"}, "t: stage is 'x'; it must be 1 or 2"),
        ({"parts": [], "stage": True}, "t: stage is True; it must be 1 or 2"),
        ({"parts": [], "other": {"path": "x", "weight": "1"}}, "t: other: weight is '1'; it must be float"),
        ({"parts": [], "other": {"q": 1}}, "t: other: unknown key q; allowed: path, weight"),
        ({"parts": [], "other": 3}, "t: other is 3; it must be a table of path, weight"),
        ({"parts": [], "knd": "a"}, "t: unknown key knd; did you mean kind"),
        ({"parts": [3]}, "t: parts[0] is 3; it must be a table of path, weight"),
        ({"parts": [], "count": True}, "t: count is True; it must be int"),
        ({"parts": [], "count": 1.0}, "t: count is 1.0; it must be int"),
        ({"parts": [], "on": 1}, "t: on is 1; it must be bool"),
        ({"parts": [], "words": ["a", 3]}, "t: words[1] is 3; it must be str"),
        ({"parts": [], "words": "a"}, "t: words is 'a'; it must be array"),
        ({"parts": [], "free": 3}, "t: free is 3; it must be table"),
        ({"parts": [], "count": -1}, "whole: count -1; it must be 0 or more"),
        ({"count": 1}, "t: parts missing; add it"),
    ],
)
def test_what_does_not_fit_is_named(table, message):
    with pytest.raises(InputError) as raised:
        from_table(table, Whole, "t")
    assert str(raised.value) == message
