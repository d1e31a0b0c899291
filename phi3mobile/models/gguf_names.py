"""What names and ids in GGUF files mean, before any file is opened: the parts of a split model, ids that no token has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf")
_NO_MODEL = re.compile(r"(^|/)(mmproj|imatrix)[^/]*$|[.-](mmproj|imatrix)[^/]*$", re.IGNORECASE)  # projectors, statistics
# Where a file of that vocabulary model gives no id, or one that no token has.
_USUAL = {"llama": {"bos": 1, "eos": 2}}


class Part(NamedTuple):
    """One file of a split model, by its name: number from 1 to total."""

    stem: str
    number: int
    total: int

    @property
    def names(self) -> list[str]:
        """Of all the parts."""
        return [f"{self.stem}-{number:05}-of-{self.total:05}.gguf" for number in range(1, self.total + 1)]


def part_of(name: str) -> Part | None:
    """What NAME-00002-of-00005.gguf says; None for a file that is not named so."""
    found = _PART.fullmatch(name)
    return Part(found["stem"], int(found["number"]), int(found["total"])) if found else None


def models_among(names: Iterable[str]) -> list[str]:
    """The GGUF models among file names, each by its file, or by the first of its parts that is there."""
    models: dict[str, str] = {}
    for name in sorted(name for name in names if name.endswith(".gguf") and not _NO_MODEL.search(name)):
        part = part_of(name)
        models.setdefault(name if part is None else part.names[0], name)
    return list(models.values())


def special_id(value: Any, model: str | None, which: str, count: int) -> int | None:
    """The id of the special token `which` ("bos", "eos", "padding" ...) in a vocabulary of `count` tokens, if it has one.

    As llama.cpp reads it: a value that no token has (2**32 - 1 is how -1 is stored) counts as none given, and without one a
    SentencePiece vocabulary has its usual ids.
    """
    if type(value) is int and 0 <= value < count:
        return value
    usual = _USUAL.get(model or "", {}).get(which)
    return usual if usual is not None and usual < count else None
