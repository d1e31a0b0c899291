"""jsonl: one JSON object a line. Read with errors that name the line, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.files import whole_file
from phi3mobile.unicode import valid_values


def json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object, its texts valid Unicode, of every line that is not blank.

    Raises InputError: no such file, a line that is no object.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").split("\n")  # not splitlines: U+2028 may stand in a JSON string
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read ({error}); give a jsonl file") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                entry = valid_values(json.loads(line))
            except ValueError as error:
                raise InputError(f"{path} line {number} is not JSON ({error}); give one object a line") from None
            if not isinstance(entry, dict):
                raise InputError(f"{path} line {number} is {line:.40}; give one JSON object a line")
            yield number, entry


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The objects of `json_lines`. Raises InputError too if there is none."""
    entries = [entry for _, entry in json_lines(path)]
    if not entries:
        raise InputError(f"{path} has no lines; give at least one JSON object")
    return entries


def read_texts(path: str | Path, *keys: str) -> list[dict[str, Any]]:
    """As read_jsonl; InputError if a line lacks one of `keys` as a text that is not blank."""
    entries = read_jsonl(path)
    for number, entry in enumerate(entries, 1):
        missing = [key for key in keys if not isinstance(entry.get(key), str) or not entry[key].strip()]
        if missing:
            raise InputError(f"{path}, object {number}, lacks {' and '.join(missing)}; give {', '.join(keys)} as text")
    return entries


def write_jsonl(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write beside, then rename."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def write_json(path: Path, value: Any) -> None:
    """As write_jsonl, one indented document."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
