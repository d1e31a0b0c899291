"""Who may know what: no file outside a target's room names it, no module imports one that stands above it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("phi3mobile", "export", "bench", "training", "apps/assistant")
# The rooms that may name targets: theirs, their engines', and what old manifests said.
KNOWS = ("export/targets/", "phi3mobile/engines/")
OLD = "phi3mobile/bundle_v1.py"
TARGETS = sorted(entry.name for entry in (ROOT / "export" / "targets").iterdir() if (entry / "target.py").is_file())
ENGINES = {path.stem for path in (ROOT / "phi3mobile" / "engines").glob("*.py")} - {
    "__init__",
    "base",
    "registry",
    "phone",
    "tower",
}
# Of the packages that are installed under these names, and of a competitor in our own benchmark: not of a target.
PRODUCTS = {
    ("bench/peers.py", "litert"),
    ("bench/evaluate/model.py", "executorch"),
    ("phi3mobile/verbs/doctor.py", "executorch"),
    ("phi3mobile/extras.py", "coreai"),
}
# Whoever wants one engine and no other: the torch reference, kernels and bindings as such, an embedder's .pte, a phone's own
# runtime.
DIRECT = {"bindings", "eager", "native", "mil", "packed_cache", "android", "apple", "objc"}


def modules() -> list[str]:
    files = (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in files)


@cache
def parsed(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text("utf-8"))


def named(file: str) -> set[str]:
    """Targets and engines that the file names: in imports, or as words in quotes that are no package's version."""
    tree, found = parsed(file), set()
    versions = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "version"
        for argument in node.args
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in TARGETS and id(node) not in versions:
            found.add(node.value)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for module in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                parts = module.split(".")
                if parts[:3] == ["phi3mobile", "export", "targets"]:
                    found |= {*parts[3:4]} & {*TARGETS}
                if parts[:2] == ["phi3mobile", "engines"]:
                    found |= {*parts[2:3]} & ENGINES - DIRECT
    return {name for name in found if (file, name) not in PRODUCTS}


def test_there_are_targets():
    assert {"coreml", "executorch", "litert"} <= {*TARGETS}


def test_no_other_file_names_a_target():
    others = [file for file in modules() if not file.startswith(KNOWS) and file != OLD]
    assert {file: found for file in others if (found := named(file))} == {}


def test_what_all_engines_share_names_none_of_them():
    for file in ("__init__", "base", "phone"):
        assert not named(f"phi3mobile/engines/{file}.py") & {*TARGETS}


@pytest.mark.parametrize("option", ["attention", "cache", "kind", "backend"])
def test_no_other_file_asks_for_a_targets_option(option):
    """recipe.attention, runtime["kind"] and the like: a manifest says engine, weights_mapped and operators instead."""
    for file in modules():
        if file.startswith(("export/targets/", "training/")) or file == OLD:
            continue
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Attribute) and node.attr == option:
                assert "recipe" not in ast.unparse(node.value), f"{file}:{node.lineno}"
            if isinstance(node, ast.Subscript | ast.Call) and option in {
                getattr(part, "value", None) for part in ast.iter_child_nodes(node)
            }:
                assert not {"recipe", "runtime"} & {*ast.unparse(node).replace('"', "'").split("'")}, f"{file}:{node.lineno}"


def imports(file: str) -> set[str]:
    """phi3mobile's modules that a file imports, in functions too; not what is only for type checkers."""
    tree, found = parsed(file), set()
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith("phi3mobile.")}


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("phi3mobile/bundle.py", "phi3mobile.engines"),
        ("phi3mobile/bundle_v1.py", "phi3mobile.engines"),
        ("phi3mobile/info.py", "phi3mobile."),
        ("phi3mobile/text/byte_level.py", "phi3mobile."),
        ("phi3mobile/text/pure_stages.py", "phi3mobile.text.tokenizer"),
        ("phi3mobile/text/pure_tokenizer.py", "phi3mobile.text.tokenizer"),
        ("export/plan.py", "phi3mobile.export.build"),
    ],
)
def test_nothing_leans_upward(low, high):
    assert not [name for name in imports(low) if name.startswith(high)]


def test_no_engine_leans_on_the_exporter():
    engines = [file for file in modules() if file.startswith("phi3mobile/engines/")]
    assert not {file: above for file in engines if (above := {n for n in imports(file) if n.startswith("phi3mobile.export")})}
