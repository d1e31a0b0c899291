"""The places of an answer, each with the schemas that hold there: is there one that llguidance takes and can't fill?

A place is known by its schemas: a property "a" of an object under allOf by all that say something of "a".
"""

from __future__ import annotations

import json
from collections import deque
from itertools import combinations

from phi3mobile.session.schema.document import Schema, wrong
from phi3mobile.session.schema.engine import matches, refusal, stuck
from phi3mobile.session.schema.facts import (
    NUMBERS,
    Node,
    Place,
    bare,
    declared,
    further,
    inside,
    kinds,
    leaf,
    matched,
    named,
    patterns,
    range_of,
    required,
    values,
)

_PLACES = 20_000
_ALTERNATIVES = 2_000
_DEPTH = 6  # of properties that tell two schemas apart
_Key = frozenset[int]
_Alternatives = list[list[Node]]


def check(root: Schema, definitions: dict[str, Schema], exclusive: set[int]) -> None:
    """Raises InputError at the first place that can't be filled. Arguments: of document.read."""
    places = _Places(definitions, exclusive)
    waiting: deque[Place] = deque([([root], "")])
    while waiting:
        waiting.extend(places.visit(*waiting.popleft()))
    places.check_ends()


class _Places:
    def __init__(self, definitions: dict[str, Schema], exclusive: set[int]) -> None:
        self._definitions, self._exclusive = definitions, exclusive
        self._paths: dict[_Key, str] = {}
        self._needs: dict[_Key, list[list[_Key]]] = {}  # of a place: per alternative, the places that it has in any case

    def visit(self, nodes: list[Schema], path: str) -> list[Place]:
        """Check a place; returns those in it."""
        key = _key(nodes)
        if key in self._needs:
            return []
        if len(self._needs) >= _PLACES:
            raise wrong("it has too many places for different values")
        needs = self._needs[key] = []
        self._paths[key] = path
        found: list[Place] = []
        empty = False
        for plain in self._alternatives(nodes, path):
            _check_range(plain, path)
            if kinds(plain) <= NUMBERS | {"string"}:
                schema = leaf(plain)
                if schema is None or not (refusal(schema) or stuck(schema)):
                    needs.append([])
                elif not refusal(schema):
                    empty = True
                continue
            if "object" in kinds(plain):
                _check_object(plain, path)
            sure, others = inside(plain, path)
            needs.append([_key(nodes) for nodes, _ in sure] if len(kinds(plain)) == 1 else [])
            found += sure + others
        if empty and not needs:
            raise wrong("no text or number is all that is asked", path)
        return found

    def check_ends(self) -> None:
        """InputError if a place, or what it must have, must have another like it, and so on without an end."""
        possible, ending = set(self._needs), set[_Key]()

        def filled(key: _Key, by: set[_Key]) -> bool:
            return any(by.issuperset(alternative) for alternative in self._needs[key])

        while lost := {key for key in possible if not filled(key, possible)}:
            possible -= lost
        while found := {key for key in possible - ending if filled(key, ending)}:
            ending |= found
        for key in self._needs:
            if key in possible - ending:
                raise wrong("a value here must hold another like it, without an end", self._paths[key])
        if next(iter(self._needs)) not in possible:
            raise wrong("nothing satisfies it")

    def _alternatives(self, nodes: list[Schema], path: str = "", checked: bool = True) -> _Alternatives:
        """For each way to choose of anyOf the objects that hold together, references and allOf taken apart.

        checked: raise InputError where two choices of what was oneOf may hold at once.
        """
        found: _Alternatives = []
        circular = False
        start: list[tuple[Schema, frozenset[str]]] = [(node, frozenset()) for node in nodes]
        waiting: list[tuple[list, list[Node], list, frozenset[str]]] = [(start, [], [], frozenset())]
        while waiting:
            todo, plain, choices, taken = waiting.pop()
            while todo:
                (node, through), *todo = todo
                if isinstance(node, bool):
                    if node:
                        continue
                    break
                plain = [*plain, node]
                todo = [*((one, through) for one in node.get("allOf", ())), *todo]
                if "anyOf" in node:
                    choices = [*choices, (node["anyOf"], through)]
                if "$ref" in node:
                    name = node["$ref"].rpartition("/")[2]
                    if name in through:
                        circular = True
                        break
                    if name not in taken:
                        taken |= {name}
                        todo = [(self._definitions[name], through | {name}), *todo]
            else:
                if not kinds(plain):
                    continue
                if not choices:
                    found.append(plain)
                    continue
                (branches, through), *rest = choices
                if checked and id(branches) in self._exclusive:
                    self._check_exclusive(plain, branches, path)
                waiting += [([(branch, through)], plain, rest, taken) for branch in reversed(branches)]
            if len(found) + len(waiting) > _ALTERNATIVES:
                raise wrong("its choices have too many combinations", path)
        if circular and not found:
            raise wrong("a $ref leads back to itself", path)
        return found

    def _check_exclusive(self, plain: list[Node], branches: list[Schema], path: str) -> None:
        shared: list[Schema] = [bare(node) for node in plain]
        for (i, one), (j, other) in combinations(enumerate(branches, 1), 2):
            if not self._apart([*shared, one], [*shared, other], 0):
                raise wrong(
                    f"oneOf's choices {i} and {j} may hold at once; use anyOf, or give them different types or constants", path
                )

    def _apart(self, one: list[Schema], other: list[Schema], depth: int) -> bool:
        """Whether no value is valid under both."""
        others = self._alternatives(other, checked=False)
        return all(self._differ(a, b, depth) for a in self._alternatives(one, checked=False) for b in others)

    def _differ(self, one: list[Node], other: list[Node], depth: int) -> bool:
        common = kinds(one) & kinds(other)
        listed = values(one), values(other)
        if listed[0] is not None and listed[1] is not None:
            return listed[0].isdisjoint(listed[1])
        if common <= NUMBERS:
            low, high = range_of([*one, *other])
            return not common or low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))
        if common != {"object"} or depth >= _DEPTH:
            return False
        return any(self._apart(named(one, name), named(other, name), depth + 1) for name in {*required(one), *required(other)})


def _key(nodes: list[Schema]) -> _Key:
    return frozenset(map(id, nodes))


def _check_range(plain: list[Node], path: str) -> None:
    """llguidance takes 0 for a number above 0 and at most 0.5: a whole number that a short range begins with and leaves out."""
    (low, above), (high, under) = range_of(plain)
    if "fraction" not in kinds(plain) or values(plain) is not None or not low < high:
        return
    if (above and low >= 0 and low == int(low) and high < low + 1) or (
        under and high <= 0 and high == int(high) and low > high - 1
    ):
        raise wrong(f"the range from {float(low):g} to {float(high):g} would have its open end; close it", path)


def _check_object(plain: list[Node], path: str) -> None:
    """llguidance has for a name that a pattern matches a way that ends nowhere, and counts a name twice that comes twice."""
    asked, some = required(plain), patterns(plain)
    for pattern in some:
        if name := next((name for name in declared(plain) if matches(pattern, name)), None):
            raise wrong(f"patternProperties {pattern} matches {name} too, which is declared", path)
    free = False not in further(plain)
    allowed = {pattern: False not in matched(plain, pattern) for pattern in some}
    least = max((node.get("minProperties", 0) for node in plain), default=0)
    if least - len(asked) > 1 and (free or any(allowed.values())):
        raise wrong("minProperties asks for more than one name beside the required ones, and could be met by one twice", path)
    if some:
        schema = {"type": "object", "patternProperties": allowed, "additionalProperties": free}
        schema |= {"properties": {name: {"const": 1} for name in asked}, "required": asked, "minProperties": len(asked) + 1}
        begun = "{" + "".join(f"{json.dumps(name, ensure_ascii=False)}:1," for name in asked)
        if not refusal(schema) and stuck(schema, begun.encode()):
            raise wrong("patternProperties leave no further name; declare the names and use additionalProperties false", path)
