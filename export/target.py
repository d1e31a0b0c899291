"""What a target states: its recipes, the pieces it has, how a program is written and by which engine it runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3mobile import extras
from phi3mobile.errors import InputError

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle
    from phi3mobile.engines.base import Engine
    from phi3mobile.engines.tower import Tower
    from phi3mobile.export.integers import Integers
    from phi3mobile.export.layerwise import LayerCheck
    from phi3mobile.export.packed import PackedModel
    from phi3mobile.export.packed_vision import PackedVision
    from phi3mobile.export.plan import ExportPlan
    from phi3mobile.export.recipe import Recipe
    from phi3mobile.models.clip import Vision
    from phi3mobile.models.config import DecoderConfig
    from phi3mobile.models.decoder import Decoder
    from phi3mobile.progress import Progress


@dataclass(frozen=True)
class Written:
    """A program in a bundle's folder.

    runtime: the manifest's section. `name` of the runtime (for people), its `version`, `program`: path of the file or
    folder that holds the weights, its `operators`, and what the engine wants to know more.
    """

    runtime: dict[str, Any]
    activations: int  # bytes, besides weights and KV cache
    kv_per_token: int  # bytes in all layers, if nothing is evicted
    back: int | None = None  # tokens that a position may go back; None: any number
    kv_held: Callable[[int], int] | None = None  # bytes that so many tokens take; None: kv_per_token each
    programs: tuple[str, ...] = ()  # paths of what the engine loads, in order; none: `program` itself
    vision: dict[str, Any] | None = None  # the manifest's section, of a model that sees pictures (engines/tower.py)

    @property
    def operators(self) -> list[str]:
        return self.runtime["operators"]

    def with_tower(self, section: dict[str, Any], operators: list[str], activations: int) -> Written:
        """The same with a tower beside it: the runtime needs the operators of both."""
        runtime = self.runtime | {"operators": sorted({*self.operators, *operators})}
        return replace(self, runtime=runtime, activations=self.activations + activations, vision=section)

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of KV cache that a sequence of so many tokens takes."""
        return self.kv_held(tokens) if self.kv_held else self.kv_per_token * tokens


@dataclass(frozen=True)
class Check:
    """One comparison that `verify` makes: an engine over the bundle against a torch model, in dB of the logits."""

    name: str
    gate: float | None  # what every stage must reach; None: reported only
    reference: Callable[[], Decoder]
    open: Callable[[], Engine]


@dataclass(frozen=True)
class TowerCheck:
    """The same of a tower for pictures; three in four of its rows must reach the gate."""

    name: str  # begins with "pictures"
    gate: float
    reference: Callable[[], Vision]
    open: Callable[[], Tower]


class Target:
    """The base of every target; export/targets/__init__.py finds them. What raises NotImplementedError must be given."""

    recipes: tuple[Recipe, ...]
    one_table = False  # whether its programs store a tied table once, where the head has the embedding's integers

    def pieces(self, recipe: Recipe) -> Collection[str]:
        """Names of models.pieces that its programs can have."""
        raise NotImplementedError

    def why_not(self, piece: str) -> str:
        """Why its programs don't have a piece, in a few words; "": nobody wrote it."""
        return ""

    def engine(self, recipe: Recipe) -> str:
        """Which engine runs the programs: a name of engines/registry.py, or "module:function" of phi3mobile."""
        raise NotImplementedError

    def weights_mapped(self, recipe: Recipe) -> bool:
        """Whether that engine maps the weights from a file, so that they need no memory of their own."""
        return False

    def packages(self, recipe: Recipe) -> dict[str, str]:
        """Module -> what `pip install` takes to get it, of all that writing needs beyond phi3mobile itself."""
        return {}

    def requires(self, recipe: Recipe) -> None:
        """InputError with the pip command for the first package that is missing."""
        for module, package in self.packages(recipe).items():
            if importlib.util.find_spec(module) is None:
                extra = package.removeprefix("phi3mobile[").rstrip("]")
                how = extras.command(extra) if extra != package else f"pip install '{package}'"
                raise InputError(f"recipe {recipe.name} needs the module {module}: {how}, or take another recipe")

    def not_here(self, recipe: Recipe) -> str:
        """Why this machine can't run what it writes and how that is mended, in a line; "": it can, or it is for phones only."""
        return ""

    def space(self, weights: int) -> int:
        """Bytes of disk that writing takes at most, for so many bytes of packed weights."""
        return 2 * weights

    def write(self, packed: PackedModel, folder: Path, plan: ExportPlan, progress: Progress) -> Written:
        """Write the program into `folder`. Runtimes' packages are imported here: that takes seconds."""
        raise NotImplementedError

    def finish(self, folder: Path, plan: ExportPlan) -> None:
        """What is made of the program once the tokenizer lies beside it."""

    def integers(self, bundle: Bundle, config: DecoderConfig) -> Integers:
        """The integers, norms and biases that the program holds, one tensor at a time. InputError: it has other ones."""
        raise NotImplementedError

    def tower_difference(self, bundle: Bundle, packed: PackedVision) -> str:
        """What the bundle's tower holds other than these integers, norms and biases, in a line; "": it holds them."""
        raise NotImplementedError

    def tower_checks(self, bundle: Bundle, packed: PackedVision) -> list[TowerCheck]:
        """What `verify` compares of the bundle's tower, given the integers that it holds."""
        raise NotImplementedError

    def checks(self, bundle: Bundle, packed: PackedModel) -> list[Check | LayerCheck]:
        """What `verify` compares, given the program's own integers; the last one's engine also meets the source.

        Check, of logits: for arithmetic that is near torch's in models of any depth. LayerCheck: for int8 activations.
        """
        raise NotImplementedError
