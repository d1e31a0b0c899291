"""Objects closed: where a schema declares names and says nothing of others, it is taken to allow no others.

Small models fill what a schema leaves open with invented keys; OpenAI's strict form asks for the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_APPLIED = ("allOf", "anyOf", "oneOf", "$ref")
_NOTES = ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "definitions")


def hands_on(node: dict[str, Any]) -> bool:
    """Whether the object only refers to a schema, or chooses among some: they are closed, each for itself, and not it."""
    said = [key for key in node if key not in _NOTES and not (key.startswith("$") and key != "$ref")]
    alone = len(said) == 1 and said[0] in _APPLIED
    return alone and (said[0] != "allOf" or (isinstance(node["allOf"], list) and len(node["allOf"]) == 1))


def closing(node: dict[str, Any], find: Callable[[str, dict[str, Any]], Any]) -> dict[str, Any]:
    """What closes an object of keywords together with all that it applies: keywords for its plain part; {}: it stays as it is.

    find: gives the target of a `$ref` of an object; raises LookupError.
    """
    names: dict[str, Any] = {}
    patterns: dict[str, Any] = {}
    least = 0
    seen: set[int] = set()
    waiting: list[Any] = [node]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict) or id(part) in seen:
            continue
        seen.add(id(part))
        if "additionalProperties" in part or "unevaluatedProperties" in part:
            return {}
        for key, found in (("properties", names), ("patternProperties", patterns)):
            if isinstance(part.get(key), dict):
                found |= dict.fromkeys(part[key], True)
        if isinstance(part.get("required"), list):
            names |= {name: True for name in part["required"] if isinstance(name, str)}
        if isinstance(part.get("minProperties"), int):
            least = max(least, part["minProperties"])
        for key in ("allOf", "anyOf", "oneOf"):
            waiting += part[key] if isinstance(part.get(key), list) else []
        if isinstance(part.get("$ref"), str):
            try:
                waiting.append(find(part["$ref"], part))
            except LookupError:
                return {}  # reading it says what is wrong
    if not (names or patterns) or (least > len(names) and not patterns):
        return {}
    out: dict[str, Any] = {"additionalProperties": False}
    own = {name: True for name in names if name not in node.get("properties", ())}
    if own:
        out["properties"] = own
    if more := {pattern: True for pattern in patterns if pattern not in node.get("patternProperties", ())}:
        out["patternProperties"] = more
    return out
