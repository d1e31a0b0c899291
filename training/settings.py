"""TOML files as dataclasses: every key is a field, every value has the field's type, anything else is an InputError."""

from __future__ import annotations

import dataclasses
import tomllib
import types
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from phi3mobile.errors import InputError

T = TypeVar("T")


def read_settings(path: str | Path, cls: type[T]) -> T:
    """The TOML file at `path` as a `cls`. Raises InputError naming file, key and what is allowed."""
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"can't read {path} ({error.strerror}); give a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML ({error}); correct it") from None
    return from_table(table, cls, str(path))


def from_table(table: Any, cls: type[T], where: str) -> T:
    """A parsed table as a `cls`: nested dataclasses, tuples, optional values and Literals included."""
    if not isinstance(table, dict):
        raise InputError(f"{where} is {table!r:.60}; it must be a table of {', '.join(_names(cls))}")
    for key in table:
        if key not in _names(cls):
            near = get_close_matches(key, _names(cls), 1)
            meant = f"did you mean {near[0]}" if near else f"allowed: {', '.join(_names(cls))}"
            raise InputError(f"{where}: unknown key {key}; {meant}")
    hints = get_type_hints(cls)
    missing = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in table]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} missing; add it")
    return cls(**{key: _value(value, hints[key], f"{where}: {key}") for key, value in table.items()})


def _value(value: Any, kind: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_table(value, kind, where)
    origin, parameters = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):  # only `X | None` is used: TOML has no null, so X
        return _value(value, next(p for p in parameters if p is not type(None)), where)
    if origin is Literal and value in parameters:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(item, parameters[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _value(item, parameters[1], f"{where}.{key}") for key, item in value.items()}
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is Any or (kind in (str, int, bool) and type(value) is kind):
        return value
    allowed = " or ".join(map(repr, parameters)) if origin is Literal else getattr(kind, "__name__", kind)
    raise InputError(f"{where} is {value!r:.60}; it must be {allowed}")


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
