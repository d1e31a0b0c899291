"""LiteRT: recipe litert, a .tflite for its runtime and a .litertlm package for LiteRT-LM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phi3mobile.export.recipe import Recipe
from phi3mobile.export.target import Check, Target, Written

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle
    from phi3mobile.export.integers import Integers
    from phi3mobile.export.layerwise import LayerCheck
    from phi3mobile.export.packed import PackedModel
    from phi3mobile.export.plan import ExportPlan
    from phi3mobile.models.config import DecoderConfig
    from phi3mobile.progress import Progress


class LitertTarget(Target):
    one_table = True
    recipes = (
        Recipe(
            name="litert", about="4 bit .tflite for Google's LiteRT, and a .litertlm package for LiteRT-LM, float32 KV cache"
        ),
    )

    def pieces(self, recipe: Recipe) -> tuple[str, ...]:
        return "rmsnorm", "swiglu", "window", "longrope"

    def why_not(self, piece: str) -> str:
        if piece == "vision":
            return "LiteRT-LM's packages know one size of picture and one number of tokens, and here both depend on the picture"
        return ""

    def engine(self, recipe: Recipe) -> str:
        return "litert"

    def weights_mapped(self, recipe: Recipe) -> bool:
        return True

    def packages(self, recipe: Recipe) -> dict[str, str]:
        return {"ai_edge_litert": "phi3mobile[litert]", "litert_lm_builder": "phi3mobile[litert]"}

    def requires(self, recipe: Recipe) -> None:
        """Also InputError if the package builder does not import beside what is installed."""
        from phi3mobile.export.targets.litert.package import require_importable

        super().requires(recipe)
        require_importable()

    def space(self, weights: int) -> int:
        return 4 * weights  # two programs, and one of them in a package

    def write(self, packed: PackedModel, folder: Path, plan: ExportPlan, progress: Progress) -> Written:
        from phi3mobile.export.targets.litert.write import to_litert

        return to_litert(packed, folder, plan.context, plan.chunk, progress)

    def finish(self, folder: Path, plan: ExportPlan) -> None:
        from phi3mobile.export.targets.litert.package import write_package
        from phi3mobile.export.targets.litert.write import FIXED

        limit = min(plan.context, plan.config.original_context or plan.context)
        write_package(folder, folder / FIXED, plan.chat["template"], plan.eos, limit)

    def integers(self, bundle: Bundle, config: DecoderConfig) -> Integers:
        from phi3mobile.export.targets.litert.read import TfliteIntegers

        return TfliteIntegers(bundle.program, config)

    def checks(self, bundle: Bundle, packed: PackedModel) -> list[Check | LayerCheck]:
        """Against torch with int8 activations."""
        from phi3mobile.engines.registry import open_engine
        from phi3mobile.export.layerwise import LayerCheck
        from phi3mobile.export.targets.litert.tapped import open_tapped

        tapped = lambda: open_tapped(bundle, packed.config)  # noqa: E731
        return [LayerCheck("int8 activations", packed, tapped, lambda: open_engine(bundle))]


TARGET = LitertTarget()
