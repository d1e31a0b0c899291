"""Core ML for iOS 18: ios-gpu and ios-ane are packages, ios-executorch is a package inside a .pte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from phi3mobile.export.recipe import Recipe
from phi3mobile.export.target import Check, Target, TowerCheck, Written
from phi3mobile.export.targets.coreml.options import CoremlRecipe

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle
    from phi3mobile.engines import Engine
    from phi3mobile.export.integers import Integers
    from phi3mobile.export.layerwise import LayerCheck
    from phi3mobile.export.packed import PackedModel
    from phi3mobile.export.packed_vision import PackedVision
    from phi3mobile.export.plan import ExportPlan
    from phi3mobile.models.config import DecoderConfig
    from phi3mobile.progress import Progress

PLAIN = ("rmsnorm", "swiglu", "window", "longrope")
ALL = (*PLAIN, "layernorm", "gegelu", "bias", "multiplier", "blocksparse", "masked_ids", "row_order", "vision")
ENGINES = {"states": "coreml", "read-only": "coreml-ane", "delegate": "coreml-delegate"}


class CoremlTarget(Target):
    recipes = (
        CoremlRecipe(
            name="ios-gpu",
            about="4 bit, Core ML package for iOS 18, float16 KV cache in states, for GPU and CPU",
            cache="states",
            embedding_bits=4,
            max_context=16384,
        ),
        CoremlRecipe(
            name="ios-ane",
            about="experimental: Core ML packages for the Neural Engine, 4 bit per channel, KV cache in and out",
            cache="read-only",
            group=0,
            max_context=4096,
            chunk=64,
        ),
        CoremlRecipe(
            name="ios-executorch",
            about="4 bit .pte for ExecuTorch's Core ML delegate; its XNNPACK fallback is ios-cpu",
            cache="delegate",
            embedding_bits=4,
            max_context=4096,
        ),
    )

    def pieces(self, recipe: Recipe) -> tuple[str, ...]:
        return ALL if _cache(recipe) == "states" else PLAIN

    def why_not(self, piece: str) -> str:
        if piece == "vision":
            return "of Core ML's recipes only ios-gpu's decoder takes rows of pictures, the others' take tokens"
        return ""

    def engine(self, recipe: Recipe) -> str:
        return ENGINES[_cache(recipe)]

    def packages(self, recipe: Recipe) -> dict[str, str]:
        return {"coremltools": "phi3mobile[coreml]"}

    def write(self, packed: PackedModel, folder: Path, plan: ExportPlan, progress: Progress) -> Written:
        from phi3mobile.export.targets.coreml.write import to_coreml

        written = to_coreml(packed, folder, plan.context, plan.chunk, progress)
        return written if plan.config.vision is None else _with_tower(written, packed, folder, plan, progress)

    def integers(self, bundle: Bundle, config: DecoderConfig) -> Integers:
        from phi3mobile.export.targets.coreml.read import MilIntegers

        return MilIntegers(bundle, config)

    def tower_difference(self, bundle: Bundle, packed: PackedVision) -> str:
        from phi3mobile.export.targets.coreml.read_vision import tower_difference

        return tower_difference(bundle, packed)

    def tower_checks(self, bundle: Bundle, packed: PackedVision) -> list[TowerCheck]:
        """As `checks`."""
        from phi3mobile.engines.coreml import open_mil_tower
        from phi3mobile.export.targets.coreml.reference import reference_vision

        return [
            TowerCheck(
                *("pictures, rewriting", 70.0),
                lambda: reference_vision(packed, half=True),
                lambda: open_mil_tower(bundle, half=False),
            ),
            TowerCheck(
                *("pictures, float16", 40.0), lambda: reference_vision(packed), lambda: open_mil_tower(bundle, half=True)
            ),
        ]

    def checks(self, bundle: Bundle, packed: PackedModel) -> list[Check | LayerCheck]:
        """rewriting: float32 arithmetic, against torch with the program's own constants: only the rewriting of the graph is
        left. float16: every result rounded to float16, against torch with the packed weights."""
        from phi3mobile.engines.registry import find_engine
        from phi3mobile.export.targets.coreml.reference import reference_model

        context = bundle.info.max_context
        interpreter: Callable[..., Engine] = find_engine(self.engine(packed.recipe), str(bundle.folder))  # they know `half`
        return [
            Check(
                *("rewriting", 70.0),
                lambda: reference_model(packed, context, half=True),
                lambda: interpreter(bundle, half=False),
            ),
            Check("float16", 40.0, lambda: reference_model(packed, context), lambda: interpreter(bundle, half=True)),
        ]


def _with_tower(written: Written, packed: PackedModel, folder: Path, plan: ExportPlan, progress: Progress) -> Written:
    """The tower's files beside the decoder's."""
    from phi3mobile.export.packed_vision import PackedVision
    from phi3mobile.export.targets.coreml.tower import write_vision
    from phi3mobile.models.vision_config import num_crops

    tower = PackedVision(packed.checkpoint, packed.recipe.vision_bits)
    section, operators, activations = write_vision(tower, folder, progress)
    return written.with_tower(section | {"num_crops": num_crops(plan.folder)}, operators, activations)


def _cache(recipe: Recipe) -> str:
    assert isinstance(recipe, CoremlRecipe)
    return recipe.cache


TARGET = CoremlTarget()
