"""Guided answers as data: conversations of scenarios.py's kind whose requests say what the answer may be."""

from __future__ import annotations

import random
from typing import Any

NAMES = ("name", "a", "first name", "é", "id", "tags")
PATTERNS = ("^[a-f0-9]{2,4}$", "^(ab|cd)+$", r"^\d{3}-[A-Z]{2}$", "b", '^[^"]*$')
REGEXES = ("(yes|no)", "[0-9]{3}-[0-9]{4}", "(the |and )+end", " x{2,9}", "é[^a]*!", "a/b", "(xyz)*", "a*")
REGEXES += (r"\d+(\.\d\d)?", "[a-c]{40}")
GRAMMARS = (
    'start: sum\nsum: NUMBER | "(" sum "+" sum ")"\nNUMBER: /[1-9][0-9]{0,2}/',
    'start: "the" (" and" | " in")* "."',
    'start: "a" start',
    'start: word\nword: /[a-d]+/ %json {"type": "array", "items": {"type": "integer"}}',
)
WRONG = (
    {"schema": {"not": {}}},
    {"schema": {"type": "array", "minItems": 1, "items": {"$ref": "#"}}},
    {"regex": "a("},
    {"regex": ""},
    {"grammar": "start: nothing"},
    {"schema": {"type": "object", "properties": {"a": {"const": "the and" * 40}}, "required": ["a"]}},
)


def random_schema(rng: random.Random, depth: int = 0) -> Any:
    """A schema of the kinds people ask models for, some of which are refused."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "range"]
    if depth < 3:
        kinds += ["object", "object", "array", "array", "anyOf", "oneOf", "allOf", "tuple", "patterns", "ref"]
    kind = rng.choice(kinds if depth else ["object", "array", "anyOf", "oneOf", "allOf", "tuple"])
    inner = lambda: random_schema(rng, depth + 1)  # noqa: E731
    if kind == "object":
        names = rng.sample(NAMES, rng.randint(0, 3))
        schema: dict[str, Any] = {"type": "object", "properties": {name: inner() for name in names}}
        schema["required"] = [name for name in names if rng.random() < 0.6]
        schema |= rng.choice([{}, {}, {"additionalProperties": rng.choice([True, False])}, {"minProperties": 1}])
        return schema
    if kind == "array":
        low = rng.randint(0, 2)
        return {"type": "array", "items": inner(), "minItems": low, "maxItems": low + rng.randint(0, 2)}
    if kind in ("anyOf", "oneOf", "allOf"):
        return {kind: [inner() for _ in range(rng.randint(1, 3))]}
    if kind == "tuple":
        return {"type": "array", "prefixItems": [inner() for _ in range(2)], "items": rng.choice([False, True])}
    if kind == "patterns":
        asked = rng.choice([{}, {"required": ["ab"]}])
        return {"type": "object", "patternProperties": {rng.choice(PATTERNS): inner()}} | asked
    if kind == "ref":
        return {"$ref": rng.choice(["#", "#/$defs/one", "#/$defs/none"])}
    if kind == "range":
        low = rng.choice([-3, 0, 0.5, 2])
        bound = rng.choice(["minimum", "exclusiveMinimum"])
        return {"type": rng.choice(["integer", "number"]), bound: low, "maximum": low + 1.5}
    return {
        "enum": {"enum": rng.sample(["red", 'q"uote', 1, 2.5, None, True, ["x"], {"k": [1]}], 3)},
        "const": {"const": rng.choice(["fixed", 7, {"k": [1, {}]}])},
        "pattern": {"type": "string", "pattern": rng.choice(PATTERNS)},
    }.get(kind, {"type": kind})


def asked(rng: random.Random) -> dict[str, Any]:
    """What a request says of the answer."""
    choice = rng.random()
    if choice < 0.6:
        schema = random_schema(rng)
        schema["$defs"] = {"one": random_schema(rng, 2)}
        return {"schema": schema} | ({"additional_properties": True} if rng.random() < 0.3 else {})
    if choice < 0.8:
        return {"regex": rng.choice(REGEXES)}
    return {"grammar": rng.choice(GRAMMARS)} if choice < 0.95 else dict(rng.choice(WRONG))


def guided_scenario(number: int) -> dict[str, Any]:
    """The scenario of a number: always the same."""
    rng = random.Random(f"guided {number}")
    context = rng.randint(40, 160)
    engine: dict[str, Any] = {"seed": rng.randint(0, 999), "max_context": context, "max_chunk": rng.randint(1, 40)}
    engine["habit"] = rng.choice([0, 8])
    if rng.random() < 0.3:
        engine["original_context"] = rng.randint(10, context)
    if rng.random() < 0.2:
        engine["back"] = rng.randint(1, 30)
    steps = []
    turns = [{"role": "user", "content": "the end and"}]
    for _ in range(rng.randint(1, 3)):
        request: dict[str, Any] = {"prompt": "the end"} if rng.random() < 0.3 else {"messages": list(turns)}
        request |= asked(rng) | {"max_tokens": rng.choice([2, 8, 20, 60, None])}
        if rng.random() < 0.5:
            request["lookup"] = True
        if rng.random() < 0.2 and "messages" in request:
            request["overflow"] = "slide"
        if rng.random() < 0.4:
            request |= {"temperature": rng.choice([0.3, 1.0]), "seed": rng.randint(0, 99)}
            request |= rng.choice([{}, {"top_k": 5}, {"top_p": 0.7, "min_p": 0.05}])
        if rng.random() < 0.2:
            request["repetition_penalty"] = 1.2
        if rng.random() < 0.1:
            request["stop"] = ["}", "a"]
        steps.append({"request": request} | ({"cancel_after": 2} if rng.random() < 0.1 else {}))
        turns += [{"role": "assistant", "content": "in"}, {"role": "user", "content": "there " * rng.randint(1, 5)}]
    return {"number": number, "engine": engine, "steps": steps}
