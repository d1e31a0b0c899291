"""What a `$ref` names: the addresses of a schema's parts ($id, $anchor, JSON pointers), within the one document."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urljoin


class Addresses:
    """Of a JSON document. An object is known by itself: `find` wants the one that the reference stands in."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._resources: dict[str, Any] = {"": document}
        self._bases: dict[int, str] = {}  # id of an object -> the address of its resource
        self._locate(document, "")

    def _locate(self, node: Any, base: str) -> None:
        if isinstance(node, list):
            for one in node:
                self._locate(one, base)
        if not isinstance(node, dict):
            return
        address = node.get("$id", node.get("id"))  # draft 4's is id
        if isinstance(address, str):
            address = _joined(base, address).removesuffix("#")
            self._resources.setdefault(address, node)
            base = address.partition("#")[0]
        if isinstance(anchor := node.get("$anchor"), str):
            self._resources.setdefault(f"{base}#{anchor}", node)
        self._bases[id(node)] = base
        for key, value in node.items():
            if key not in ("const", "enum", "default", "examples") or isinstance(value, dict):
                self._locate(value, base)

    def find(self, reference: str, source: dict[str, Any]) -> Any:
        """The part that `reference` in the object `source` names. Raises LookupError, whose text may say more."""
        address = _joined(self._bases.get(id(source), ""), reference)
        node, fragment = self._resources.get(address.removesuffix("#")), ""
        if node is None:
            location, _, fragment = address.partition("#")
            node = self._resources.get(location)
        if node is None or (fragment and not fragment.startswith("/")):
            raise LookupError
        for part in unquote(fragment).split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and part in node:
                node = node[part]
            elif isinstance(node, list) and part.isdecimal() and int(part) < len(node):
                node = node[int(part)]
            else:
                raise LookupError(f": there is no {part}")
        return node


def _joined(base: str, reference: str) -> str:
    return base.partition("#")[0] + reference if reference.startswith("#") else urljoin(base, reference)


def deepest(edges: dict[str, list[tuple[str, int]]]) -> int:
    """Levels of a walk from "" that enters each node at its first mention. Edges: node -> (node, levels to it)."""
    seen, stack, most = {""}, [(iter(edges[""]), 0)], 0
    while stack:
        following, depth = stack[-1]
        name, levels = next(following, ("", -1))
        if levels < 0:
            stack.pop()
        elif name not in seen:
            seen.add(name)
            most = max(most, depth + levels)
            stack.append((iter(edges[name]), depth + levels))
    return most
