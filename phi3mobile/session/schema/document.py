"""A JSON schema, read: each keyword and value checked, the drafts' spellings made one, references resolved."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.session.schema.addresses import Addresses, deepest
from phi3mobile.session.schema.closed import closing, hands_on
from phi3mobile.session.schema.pattern import LONGEST, least, spelled, translated

Schema = dict[str, Any] | bool
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_DRAFTS = ("2020-12/schema", "2019-09/schema", "draft-07/schema", "draft-06/schema", "draft-04/schema")
# Assertions that llguidance has not, and what of them changes nothing. Some it ignores, by $schema.
_LACKS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("not", "if", "then", "else", "contains", "$dynamicRef", "$recursiveRef", "divisibleBy"), ()),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "dependencies"), ({},)),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems", "propertyNames"), (True, {})),
    **dict.fromkeys(("disallow", "extends", "x-guidance", "minContains", "maxContains"), ()),
    "uniqueItems": (False,),
}
_EXACT = 1 << 53  # llguidance counts in float64
_LARGE = 1 << 16  # what "at most" is lowered to
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
NUMBER_KEYS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_PLAIN = (
    *("type", "properties", "patternProperties", "additionalProperties", "required", "items", "prefixItems"),
    *("additionalItems", "pattern", "format", *_COUNTS, *NUMBER_KEYS),
)
_LEVELS = 400  # schemas within schemas, through references: llguidance's recursion has no limit but the stack


def wrong(reason: str, path: str = "") -> InputError:
    said = " ".join(f"{reason:.300}{f' (at {path:.100})' if path else ''}".split())
    return InputError(f"the JSON schema can't be used: {said}; correct or simplify it")


def read(document: dict[str, Any], additional_properties: bool) -> tuple[Schema, dict[str, Schema], set[int]]:
    """(schema, definitions, ids of the anyOf lists that were oneOf). A `$ref` is "#/$defs/" and a definition's name.

    additional_properties: whether objects that declare names and are silent on others have others (see closed.py).
    """
    reader = _Reader(document, additional_properties)
    root = reader.place(document, "", 1)
    while reader.waiting:
        name, node, path, closed = reader.waiting.popleft()
        reader.here = name
        reader.definitions[name] = reader.schema(node, path, 1, closed)
    if (levels := deepest(reader.edges)) > _LEVELS:
        raise wrong(f"its references go {levels} levels deep; {_LEVELS} can be followed")
    return root, reader.definitions, reader.exclusive


class _Reader:
    """`here`: the definition that is read; `edges`: definition -> (one it refers to, how deep in it)."""

    def __init__(self, document: dict[str, Any], additional_properties: bool) -> None:
        self.definitions: dict[str, Schema] = {}
        self.exclusive: set[int] = set()
        self.waiting: deque[tuple[str, Any, str, bool]] = deque()
        self.here = ""
        self.edges: dict[str, list[tuple[str, int]]] = {"": []}
        self._names: dict[tuple[int, bool], str] = {}
        self._addresses = Addresses(document)
        self._close = not additional_properties

    def place(self, node: Any, path: str, level: int) -> Schema:
        """The schema of a value, which no other schema describes."""
        return self.schema(node, path, level, self._close)

    def schema(self, node: Any, path: str, level: int, closed: bool) -> Schema:
        """The schema with keywords of 2020-12 that llguidance has, in an order that it reads right."""
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise wrong(f"a schema is an object, true or false, not {node!r:.40}", path)
        _check_keywords(node, path)
        plain = self._plain(node, path, level)
        pivot = next((key for key in ("properties", *node) if key in node and key in _PLAIN), "")
        applied = closed and hands_on(node)  # what it applies is closed, and not it
        out: dict[str, Any] = {}
        if closed and not applied and (more := closing(node, self._addresses.find)):
            for key, value in more.items():
                known = {_pattern(name, path): True for name in value} if key == "patternProperties" else value
                plain[key] = {**plain.get(key, {}), **known} if isinstance(known, dict) else known
            out |= {} if pivot else plain
        for key, value in node.items():
            here = f"{path}/{key}"
            if key == pivot:  # together: llguidance takes what stands before and after allOf, anyOf, ... for two schemas
                out |= plain
            elif key == "allOf":
                out["allOf"] = out.get("allOf", []) + self._list(value, here, level, applied)
            elif key in ("anyOf", "oneOf"):
                branches = self._list(value, here, level, applied)
                if key == "oneOf" and len(branches) > 1:  # a list of one is not kept: its id would be another's
                    self.exclusive.add(id(branches))
                _choose(out, branches)
            elif key == "$ref":
                target = self._target(value, node, here, level, applied)
                if target is False:
                    return False
                if target is not True:
                    out["$ref"] = target
            elif key == "const" or key == "enum":
                _check_value(value, here)
                _choose(out, _constants([value] if key == "const" else value, here))
        return out

    def _list(self, value: Any, path: str, level: int, closed: bool) -> list[Schema]:
        if not isinstance(value, list) or not value:
            raise wrong(f"{path.rpartition('/')[2]} is a list of schemas", path)
        return [self.schema(one, f"{path}/{i}", level + 1, closed) for i, one in enumerate(value)]

    def _map(self, value: Any, path: str, level: int) -> dict[str, Schema]:
        if not isinstance(value, dict):
            raise wrong(f"{path.rpartition('/')[2]} is an object of schemas", path)
        return {name: self.place(one, f"{path}/{name}", level + 1) for name, one in value.items()}

    def _plain(self, node: dict[str, Any], path: str, level: int) -> dict[str, Any]:
        """What is said of a value itself, without references or choices."""
        out: dict[str, Any] = {}
        tuple_ = isinstance(node.get("items"), list)
        for key, value in node.items():
            here = f"{path}/{key}"
            if key == "type":
                out[key] = _types(value, here)
            elif key in ("properties", "patternProperties"):
                out[key] = self._map(value, here, level)
                if key == "patternProperties":
                    out[key] = {_pattern(name, here): one for name, one in out[key].items()}
                else:
                    _check_value(list(value), here)
            elif key == "prefixItems" or (key == "items" and tuple_):
                out["prefixItems"] = self._list(value, here, level, self._close) if value else []
            elif key in ("items", "additionalProperties") or (key == "additionalItems" and tuple_):
                out["items" if key == "additionalItems" else key] = self.place(value, here, level + 1)
            elif key == "required":
                if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                    raise wrong("required is a list of names", here)
                _check_value(value, here)
                out[key] = list(dict.fromkeys(value))
            elif key in _COUNTS:
                out[key] = _count(key, value, here)
            elif key == "pattern":
                out[key] = _pattern(value, here)
            elif key == "format":
                if not isinstance(value, str):
                    raise wrong("format is a name", here)
                out[key] = value
        return out | _bounds(node, path)

    def _target(self, reference: Any, source: dict[str, Any], path: str, level: int, closed: bool) -> str | bool:
        """What a `$ref` of the object `source` becomes."""
        if not isinstance(reference, str):
            raise wrong("$ref is a text", path)
        try:
            node = self._addresses.find(reference, source)
        except LookupError as error:
            raise wrong(f"$ref {reference} leads to nothing in this schema{error}; write it under $defs", path) from None
        if isinstance(node, bool):
            return node
        name = self._names.get((id(node), closed))
        if name is None:
            name = self._names[id(node), closed] = str(len(self._names))
            self.edges[name] = []
            self.waiting.append((name, node, reference, closed))
        self.edges[self.here].append((name, level))
        return f"#/$defs/{name}"


def _choose(out: dict[str, Any], branches: list[Schema]) -> None:
    """Let `out` ask for one of `branches`, beside what it asks for."""
    if len(branches) == 1:
        out["allOf"] = [*out.get("allOf", ()), *branches]
    elif "anyOf" in out:
        out["allOf"] = [*out.get("allOf", ()), {"anyOf": branches}]
    else:
        out["anyOf"] = branches


def _constants(some: Any, path: str) -> list[Schema]:
    """Schemas that together allow these values: of one value each, those without parts in one enum."""
    if not isinstance(some, list) or not some:
        raise wrong("enum is a list of values", path)
    whole = [one for one in some if not isinstance(one, list | dict)]
    found: list[Schema] = [{"enum": whole}] if whole else []
    for one in some:
        if isinstance(one, list):
            parts = [_constants([part], path)[0] for part in one]
            size = {"minItems": len(one), "maxItems": len(one)}
            found.append({"type": ["array"], **({"prefixItems": parts} if parts else {}), "items": False, **size})
        elif isinstance(one, dict):
            named = {name: _constants([part], path)[0] for name, part in one.items()}
            found.append({"type": ["object"], "properties": named, "required": list(one), "additionalProperties": False})
    return found


def _check_keywords(node: dict[str, Any], path: str) -> None:
    for key, value in node.items():
        if key in _LACKS and not any(type(value) is type(one) and value == one for one in _LACKS[key]):
            raise wrong(f"{key} is not supported", path)
    draft = node.get("$schema")
    if draft is not None and not (isinstance(draft, str) and draft.rstrip("#").endswith(_DRAFTS)):
        raise wrong(f"$schema {draft!r:.80} is not known; draft-04 to 2020-12 are", path)


def _check_value(value: Any, path: str) -> None:
    """InputError if llguidance can't spell a constant."""
    if isinstance(value, str) and not spelled(value):
        raise wrong(f"{value!r:.40} has control characters or is not Unicode", path)
    if isinstance(value, int | float) and not abs(value) <= _EXACT:
        raise wrong(f"{value} is beyond 2^53, which is counted exactly", path)
    if isinstance(value, list | dict):
        for one in [*value, *(value.values() if isinstance(value, dict) else ())]:
            _check_value(one, path)


def _types(value: Any, path: str) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(name in TYPES for name in names):
        raise wrong(f"type is {value!r:.60}; it must be one of {', '.join(TYPES)} or a list of them", path)
    return list(dict.fromkeys(names))


def _pattern(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise wrong("a pattern is a text", path)
    if least(value) > LONGEST:
        raise wrong(f"the pattern {value:.60} asks for {least(value)} characters; {LONGEST} can be asked for", path)
    return translated(value)


def _number(value: Any, path: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise wrong(f"{path.rpartition('/')[2]} is {value!r:.40}; it must be a number", path)
    return value


def _count(key: str, value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise wrong(f"{key} is {value!r:.40}; it must be a whole number from 0 on", path)
    if key.startswith("min") and value > LONGEST:
        raise wrong(f"{key} is {value}; {LONGEST} can be asked for", path)
    return min(int(value), _LARGE)


def _bounds(node: dict[str, Any], path: str) -> dict[str, Any]:
    """minimum, maximum, exclusiveMinimum, exclusiveMaximum (draft 4's true too) and multipleOf, exact in float64."""
    out: dict[str, Any] = {}
    for bound, sign in (("inimum", -1), ("aximum", 1)):
        inclusive, exclusive = f"m{bound}", f"exclusiveM{bound}"
        for key in (inclusive, exclusive):
            value = node.get(key)
            if value is None or value is False:
                continue
            if value is True and key == exclusive:
                if inclusive in out:
                    out[exclusive] = out.pop(inclusive)
                continue
            value = _number(value, f"{path}/{key}")
            if sign * value < -_EXACT:
                raise wrong(f"{key} is {value}, beyond 2^53, which is counted exactly", path)
            if sign * value > _EXACT:  # a bound that is nearer leaves valid answers only
                key, value = inclusive, min(sign * out.get(inclusive, sign * _EXACT), _EXACT) * sign
            out[key] = value
    if "multipleOf" in node:
        out["multipleOf"] = _number(node["multipleOf"], f"{path}/multipleOf")
        if not 0 < out["multipleOf"] <= _EXACT:
            raise wrong("multipleOf must be above 0 and at most 2^53", path)
    return out
