"""TOML files as dataclasses: every key is a field, every value has the field's type, anything else is an InputError.

msgspec decodes, strictly (no text for a number, no true for a 1); what is here says what was wrong and what is allowed.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from phi3mobile.errors import InputError

T = TypeVar("T")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|\[(\.\.\.)\]")  # of the path in msgspec's errors: a field, an item, a table's any value
_KINDS = {dict: "table", tuple: "array", Path: "path (text)"}  # else the type's own name


def read_settings(path: str | Path, cls: type[T]) -> T:
    """The TOML file at `path` as a `cls`. Raises InputError naming file, key and what is allowed."""
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"can't read {path} ({error.strerror}); give a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML ({error}); correct it") from None
    return from_table(table, cls, str(path))


def from_table(table: Any, cls: type[T], where: str) -> T:
    """A parsed table as a `cls`: nested dataclasses, tuples, optional values and Literals included."""
    for place, value, kind in _tables(table, cls, where):
        _check_keys(value, kind, place)
    try:
        return msgspec.convert(table, cls, dec_hook=_path)
    except msgspec.ValidationError as error:
        place, value, kind = _find(str(error), table, cls, where)
        raise InputError(f"{place} is {value!r:.60}; it must be {_allowed(kind)}") from None


def _tables(value: Any, kind: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """(place, value, dataclass) of every table that is to become a dataclass, outermost first."""
    kind = _present(kind)
    if dataclasses.is_dataclass(kind):
        yield where, value, kind
        for name, inner in get_type_hints(kind).items():
            if name in value:
                yield from _tables(value[name], inner, f"{where}: {name}")
    elif get_origin(kind) is tuple and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _tables(item, get_args(kind)[0], f"{where}[{index}]")


def _check_keys(table: Any, cls: type, where: str) -> None:
    """InputError for what is no table, an unknown key (msgspec lets them pass), or missing ones (it names but the first)."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if not isinstance(table, dict):
        raise InputError(f"{where} is {table!r:.60}; it must be a table of {', '.join(fields)}")
    for key in table:
        if key not in fields:
            near = get_close_matches(key, fields, 1)
            meant = f"did you mean {near[0]}" if near else f"allowed: {', '.join(fields)}"
            raise InputError(f"{where}: unknown key {key}; {meant}")
    if missing := [name for name, field in fields.items() if _required(field) and name not in table]:
        raise InputError(f"{where}: {', '.join(missing)} missing; add it")


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _find(message: str, value: Any, kind: Any, where: str) -> tuple[str, Any, Any]:
    """The place, value and expected type that an error of msgspec's is about; its message ends in the path: at `$.a[0].b`."""
    path = message.rpartition("`$")[2].rstrip("`") if "`$" in message else ""
    for name, index, _ in _STEP.findall(path):
        kind = _present(kind)
        if name:
            where, value, kind = f"{where}: {name}", value[name], get_type_hints(kind)[name]
        elif index:
            where, value, kind = f"{where}[{index}]", value[int(index)], get_args(kind)[0]
        else:
            kind = get_args(kind)[1]
            key = next(key for key, item in value.items() if not _fits(item, kind))
            where, value = f"{where}.{key}", value[key]
    return where, value, _present(kind)


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind, dec_hook=_path)
    except msgspec.ValidationError:
        return False
    return True


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"not a {kind.__name__}")  # msgspec adds where


def _present(kind: Any) -> Any:
    """`X | None` -> X: TOML has no null."""
    if get_origin(kind) in (Union, types.UnionType):
        return next(part for part in get_args(kind) if part is not type(None))
    return kind


def _allowed(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    bare = get_origin(kind) or kind
    return _KINDS.get(bare, bare.__name__)
