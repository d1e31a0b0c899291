"""The order of the rooms: who may import whom, no circles, and families named in their own folder only.

Imports are read from the source, lazy ones included; those under TYPE_CHECKING bind nothing at run time and don't count.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tracked import HOMES, ROOT, python_files

UP = {  # package -> what it may not import
    "phi3mobile": ("phi3mobile.export", "phi3mobile.bench", "phi3mobile.training", "phi3mobile.assistant"),
    "phi3mobile.export": ("phi3mobile.bench", "phi3mobile.training", "phi3mobile.assistant"),
}
FAMILIES = "phi3mobile/models/families/"


@cache
def modules() -> dict[str, Path]:
    """Every module of the distribution, by its installed name."""
    found = {}
    for folder, package in HOMES.items():
        for path in python_files(folder):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


@cache
def graph() -> dict[str, frozenset[str]]:
    """Module -> the modules of ours that it imports, now or later."""
    known = modules()
    found = {}
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = frozenset(imported_by(ast.parse(path.read_text()), package, known)) - {name}
    return found


def imported_by(tree: ast.AST, package: str, known: dict[str, Path]) -> Iterator[str]:
    """Names among `known` that a module of `package` imports."""
    for node in live(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                if (whole := f"{base}.{alias.name}") in known:
                    yield whole
                elif base in known:
                    yield base


def live(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below, without `if TYPE_CHECKING:` blocks (their else counts)."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield from live(other)
        else:
            yield from live(child)


def circles(edges: dict[str, frozenset[str]]) -> list[list[str]]:
    """Groups of modules that reach each other: Tarjan's strongly connected components of more than one."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in edges:
        if name not in order:
            visit(name)
    return found


def package_of(name: str) -> str:
    """The room of a module."""
    rooms = [package for package in HOMES.values() if package != "phi3mobile"]
    return next((room for room in rooms if name == room or name.startswith(f"{room}.")), "phi3mobile")


def test_no_imports_go_in_a_circle():
    assert circles(graph()) == []


def test_no_room_imports_one_above_it():
    up = [
        f"{name} -> {other}"
        for name, others in graph().items()
        for other in others
        if package_of(other) in UP.get(package_of(name), ())
    ]
    assert sorted(up) == []


def test_a_family_is_named_in_its_own_folder_only():
    named = []
    for path in python_files(*HOMES):
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith(FAMILIES):
            text = path.read_text()
            lines = [number for number, line in enumerate(text.splitlines(), 1) if re.search(r"phi3small|Phi3Small", line)]
            named += [f"{place}:{number}" for number in lines]
    assert named == []


def test_no_one_asks_for_a_config_by_its_class():
    asked = []
    for path in python_files("phi3mobile", "export", "bench", "training"):
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith(FAMILIES):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                    kind = ast.unparse(node.args[1])
                    if re.search(r"\w+Config\b", kind):
                        asked.append(f"{place}:{node.lineno} {kind}")
    assert asked == []


def test_modules_are_found():
    assert {"phi3mobile.cli", "phi3mobile.export.recipe", "phi3mobile.bench.verb", "phi3mobile.assistant.worker"} <= set(
        modules()
    )
    assert "phi3mobile.errors" in graph()["phi3mobile.cli"]
    assert package_of("phi3mobile.export.recipe") == "phi3mobile.export" and package_of("phi3mobile.bundle") == "phi3mobile"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from p import b", {"p.b"}),
        ("from p.b import thing", {"p.b"}),
        ("import p.b", {"p.b"}),
        ("from . import b", {"p.b"}),
        ("from .b import thing", {"p.b"}),
        ("def f():\n    from p.b import thing", {"p.b"}),
        ("if TYPE_CHECKING:\n    from p.b import thing", set()),
        ("if TYPE_CHECKING:\n    import p.a\nelse:\n    import p.b", {"p.b"}),
        ("import os", set()),
    ],
)
def test_imports_are_read(source, found):
    assert set(imported_by(ast.parse(source), "p", {"p": Path(), "p.a": Path(), "p.b": Path()})) - {"p"} == found


def test_circles_are_found():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"f"}, "f": {"g"}, "g": {"e"}}
    assert circles({name: frozenset(others) for name, others in edges.items()}) == [["b", "c"], ["e", "f", "g"]]
