"""One room per target: packed weights in, the program that one runtime loads out. docs/adding-a-target.md says how.

A target is a folder here with a module `target.py`, or one file here; found by looking, listed nowhere. Either states
TARGET, an instance of export.target.Target.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phi3mobile.export.recipe import Recipe
    from phi3mobile.export.target import Target


def targets() -> dict[str, Target]:
    """Every target by the name of its folder or file. Importing them costs no runtime's package."""
    found = {}
    for entry in sorted(pkgutil.iter_modules(__path__), key=lambda entry: entry.name):
        module = f"{__name__}.{entry.name}"
        found[entry.name] = import_module(f"{module}.target" if entry.ispkg else module).TARGET
    return found


def recipes() -> dict[str, Recipe]:
    """Every target's recipes by name."""
    found: dict[str, Recipe] = {}
    for name, target in targets().items():
        for recipe in target.recipes:
            if recipe.name in found:
                raise ValueError(f"target {name} has a recipe {recipe.name}, which another target has already")
            found[recipe.name] = recipe
    return found


def target_of(recipe: Recipe) -> Target:
    """The target whose recipe this is, whatever was replaced in it."""
    return next(target for target in targets().values() if any(own.name == recipe.name for own in target.recipes))
