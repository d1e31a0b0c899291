"""A bundle's integers against what they were made from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch

from phi3mobile.bundle import Bundle
from phi3mobile.errors import InputError
from phi3mobile.export.integers import HEAD, Integers, first_damage, first_difference, role_decibels
from phi3mobile.export.packed import EMBEDDING, PackedModel
from phi3mobile.export.recipe import Recipe, find_recipe
from phi3mobile.export.solve.folder import Solved, is_solved
from phi3mobile.export.solve.rotate import Rotated
from phi3mobile.models.checkpoint import Checkpoint
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.source import open_source


@dataclass(frozen=True)
class Source:
    """What a bundle was made from."""

    recipe: Recipe  # as it was when the bundle was made
    config: DecoderConfig  # of its program
    packed: PackedModel | None  # the integers that it must hold; None: they were solved while it was made
    floats: Checkpoint | None  # None: only their integers are here
    turned: bool = False  # the weights are the checkpoint's with hidden states turned (solve/rotate.py)

    def weight(self, name: str) -> torch.Tensor:
        """A float weight as it was before it was quantized."""
        assert self.floats is not None
        known = Rotated(self.floats) if self.turned else self.floats
        return known.tensor(EMBEDDING if name == HEAD and known.config.tie_word_embeddings else name)


def source_of(bundle: Bundle, checkpoint: str | None) -> Source:
    """The checkpoint or quantized folder that the bundle was made from: the one given, or where its manifest says.

    Raises InputError.
    """
    provenance, quality = bundle.manifest["provenance"], bundle.manifest.get("quality")
    folder, recipe = Path(checkpoint or provenance["source"]), _recipe_of(bundle)
    if not folder.exists():
        raise InputError(f"{bundle.folder} was made from {folder}, which is not here; give its folder with --checkpoint")
    turned = bool(quality and quality.get("rotated"))
    if is_solved(folder):
        solved = Solved(folder)
        solved.check()
        _same(solved.source_hash(), bundle, folder)
        return Source(recipe, solved.config, PackedModel(solved, recipe), _floats_of(solved), turned)
    opened = open_source(folder)
    _same(opened.source_hash(), bundle, folder)
    packed = PackedModel(opened, recipe) if quality is None else None
    return Source(recipe, Rotated(opened).config if turned else opened.config, packed, opened, turned)


def _same(found: str, bundle: Bundle, folder: Path) -> None:
    if found != bundle.manifest["provenance"]["source_hash"]:
        raise InputError(f"{folder} is not the checkpoint that {bundle.folder} was made from: their hashes differ")


def _recipe_of(bundle: Bundle) -> Recipe:
    """With the options that the manifest tells: a recipe may have changed since."""
    recipe = find_recipe(bundle.manifest["recipe"]["name"])
    own = {option.name for option in fields(recipe)}
    return replace(recipe, **{key: value for key, value in bundle.manifest["recipe"].items() if key in own})


def _floats_of(solved: Solved) -> Checkpoint | None:
    """The checkpoint that a quantized folder was made from, if it is here still."""
    folder = Path(solved.about["source"])
    try:
        opened = open_source(folder) if folder.exists() else None
    except InputError:
        return None
    return opened if opened is not None and opened.source_hash() == solved.source_hash() else None


@dataclass
class Weights:
    """Whether the program holds its source's integers, or how near they are to the weights that they were solved from."""

    compared: bool
    failure: str = ""
    decibels: dict[str, float] = field(default_factory=dict)  # by role
    name = "weights"

    @property
    def passed(self) -> bool:
        return not self.failure

    @property
    def required(self) -> str:
        return "required: its source's integers" if self.compared else ""

    def document(self) -> dict[str, object]:
        """For the JSON line."""
        return {
            "passed": self.passed,
            "failure": self.failure or None,
            "compared_with_source": self.compared,
            "weights_dB": self.decibels or None,
        }

    def rows(self) -> dict[str, str]:
        """For the card."""
        found = {"against the float weights": ", ".join(f"{role} {value:.1f}" for role, value in self.decibels.items()) + " dB"}
        found = found if self.decibels else {}
        return found | ({"failed": self.failure} if self.failure else {"integers, norms, biases": _SAID[self.compared]})


_SAID = {True: "its source's", False: "solved while it was made: only their nearness to the float weights is known"}


def compare_weights(packed: PackedModel, source: Source) -> Weights:
    """What the program holds against what it was made from."""
    found = packed.checkpoint
    assert isinstance(found, Integers)
    failure = first_damage(found) or (first_difference(found, source.packed) if source.packed is not None else "")
    return Weights(source.packed is not None, failure, role_decibels(found, source.weight) if source.floats else {})
