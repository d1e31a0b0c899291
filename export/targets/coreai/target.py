"""Core AI for iOS and macOS 27: an .aimodel that our sessions run, in a folder that Apple's engine opens as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phi3mobile.export.recipe import Recipe
from phi3mobile.export.target import Check, Target, Written
from phi3mobile.export.targets.coreai.options import CoreaiRecipe

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle
    from phi3mobile.export.integers import Integers
    from phi3mobile.export.layerwise import LayerCheck
    from phi3mobile.export.packed import PackedModel
    from phi3mobile.export.plan import ExportPlan
    from phi3mobile.models.config import DecoderConfig
    from phi3mobile.progress import Progress


class CoreaiTarget(Target):
    recipes = (
        CoreaiRecipe(
            name="ios-coreai",
            about="4 bit, Core AI program for iOS and macOS 27, float16 KV cache in states, for Apple's language engine too",
        ),
        CoreaiRecipe(
            name="ios-coreai-down8",
            about="the same with the MLPs' second matrices in 8 bits, which Phi-4-mini needs on some of Apple's GPUs",
            down_bits=8,
        ),
    )

    def pieces(self, recipe: Recipe) -> tuple[str, ...]:
        return "rmsnorm", "swiglu", "window", "longrope"

    def why_not(self, piece: str) -> str:
        if piece == "vision":
            return "Core AI's engine for language models takes tokens only, no rows of pictures"
        return ""

    def engine(self, recipe: Recipe) -> str:
        return "coreai"

    def weights_mapped(self, recipe: Recipe) -> bool:
        return True

    def packages(self, recipe: Recipe) -> dict[str, str]:
        return {"coreai": "phi3mobile[coreai]"}

    def space(self, weights: int) -> int:
        return 3 * weights  # the program, and what goes into it

    def write(self, packed: PackedModel, folder: Path, plan: ExportPlan, progress: Progress) -> Written:
        from phi3mobile.export.targets.coreai.write import to_coreai

        return to_coreai(packed, folder, plan.context, plan.chunk, progress)

    def finish(self, folder: Path, plan: ExportPlan) -> None:
        from phi3mobile.export.targets.coreai.package import write_package

        write_package(folder, plan)

    def integers(self, bundle: Bundle, config: DecoderConfig) -> Integers:
        from phi3mobile.export.targets.coreai.read import AimodelIntegers

        return AimodelIntegers(bundle, config)

    def checks(self, bundle: Bundle, packed: PackedModel) -> list[Check | LayerCheck]:
        """rewriting: the program written again in float32, so that only its rewriting differs from torch; float16: the
        program itself, in Core AI's runtime for CPUs, which rounds every product and sum to float16."""
        from phi3mobile.engines.registry import open_engine
        from phi3mobile.export.targets.coreai.reference import Twin, reference_model

        reference = lambda: reference_model(packed, bundle.info.max_context)  # noqa: E731
        return [
            Check("rewriting", 100.0, reference, lambda: Twin(bundle, packed)),
            Check("float16", 40.0, reference, lambda: open_engine(bundle)),
        ]


TARGET = CoreaiTarget()
