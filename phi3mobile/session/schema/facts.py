"""What objects of keywords that hold together, references and choices taken apart, say of a value: pure functions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from phi3mobile.session.schema.document import NUMBER_KEYS, Schema
from phi3mobile.session.schema.engine import matches

Node = dict[str, Any]
Place = tuple[list[Schema], str]  # the schemas that hold there, and its path in the schema
Bound = tuple[Fraction | float, bool]  # the number, and whether it is left out itself

NUMBERS = frozenset(("integer", "fraction"))  # a number is an integer or has a fraction
_KINDS = frozenset(("null", "boolean", "string", "array", "object")) | NUMBERS
_STRING = ("minLength", "maxLength", "pattern", "format")
_APPLIED = ("allOf", "anyOf", "$ref")


def kinds(plain: Iterable[Node]) -> frozenset[str]:
    """The kinds of values that are left."""
    left = _KINDS
    for node in plain:
        if "type" in node:
            left &= frozenset(kind for name in node["type"] for kind in (NUMBERS if name == "number" else (name,)))
    listed = values(plain)
    return left if listed is None else left & {_kind(json.loads(value)) for value in listed}


def values(plain: Iterable[Node]) -> frozenset[str] | None:
    """The values that const and enum leave, each as its JSON text, where 1.0 is 1; None: they leave all."""
    left: frozenset[str] | None = None
    for node in plain:
        for some in ([node["const"]] if "const" in node else None, node.get("enum")):
            if some is not None:
                texts = frozenset(json.dumps(int(one) if _kind(one) == "integer" else one) for one in some)
                left = texts if left is None else left & texts
    return left


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "integer" if value == int(value) else "fraction"
    return "string"


def range_of(plain: Iterable[Node]) -> tuple[Bound, Bound]:
    """The lowest and the highest number."""
    low: Bound = (-math.inf, False)
    high: Bound = (math.inf, False)
    for node in plain:
        for key, value in node.items():
            if key in ("minimum", "exclusiveMinimum"):
                low = max(low, (_exact(value), key != "minimum"))
            elif key in ("maximum", "exclusiveMaximum"):
                bound = (_exact(value), key != "maximum")
                high = min(high, bound, key=lambda bound: (bound[0], not bound[1]))
    return low, high


def _exact(value: float) -> Fraction:
    return Fraction(repr(value))


def leaf(plain: Iterable[Node]) -> Node | None:
    """The schema of a text or number whose parts could exclude each other; None: llguidance sees for itself."""
    parts = [{key: node[key] for key in ("type", "const", "enum", *_STRING, *NUMBER_KEYS) if key in node} for node in plain]
    if not any(key in part for part in parts for key in ("pattern", "format", "multipleOf")):
        return None
    return {"allOf": [part for part in parts if part]}


def bare(node: Node) -> Node:
    """The object without references and choices."""
    return {key: value for key, value in node.items() if key not in _APPLIED}


def required(plain: Iterable[Node]) -> list[str]:
    return list(dict.fromkeys(name for node in plain for name in node.get("required", ())))


def declared(plain: Iterable[Node]) -> list[str]:
    return list(dict.fromkeys(name for node in plain for name in node.get("properties", ())))


def patterns(plain: Iterable[Node]) -> list[str]:
    return list(dict.fromkeys(pattern for node in plain for pattern in node.get("patternProperties", ())))


def further(plain: Iterable[Node]) -> list[Schema]:
    """What holds for a property that is neither declared nor matched by a pattern."""
    return [node["additionalProperties"] for node in plain if "additionalProperties" in node]


def named(plain: Iterable[Node], name: str) -> list[Schema]:
    """What holds for the property `name`."""
    found: list[Schema] = []
    for node in plain:
        matched = [schema for pattern, schema in node.get("patternProperties", {}).items() if matches(pattern, name)]
        if name in node.get("properties", ()):
            matched.append(node["properties"][name])
        found += matched or further([node])
    return found


def matched(plain: Iterable[Node], pattern: str) -> list[Schema]:
    """What holds for an undeclared property that `pattern` matches."""
    found: list[Schema] = []
    for node in plain:
        some = node.get("patternProperties", {})
        found += [some[pattern]] if pattern in some else further([node])
    return found


def inside(plain: list[Node], path: str) -> tuple[list[Place], list[Place]]:
    """The places of an object's or array's values: those that it has in any case, and the others."""
    sure: list[Place] = []
    others: list[Place] = []
    left = kinds(plain)
    if "object" in left:
        always = required(plain)
        for name in dict.fromkeys([*declared(plain), *always]):
            (sure if name in always else others).append((named(plain, name), f"{path}/{name}"))
        others += [(matched(plain, pattern), f"{path}/{pattern}") for pattern in patterns(plain)]
        others.append((further(plain), f"{path}/*"))
    if "array" in left:
        least = max((node.get("minItems", 0) for node in plain), default=0)
        first = max((len(node.get("prefixItems", ())) for node in plain), default=0)
        for i in range(first + 1):
            some: list[Schema] = []
            for node in plain:
                prefix = node.get("prefixItems", ())
                some += [prefix[i]] if i < len(prefix) else [node["items"]] if "items" in node else []
            (sure if i < least else others).append((some, f"{path}/{i}"))
    return sure, others
