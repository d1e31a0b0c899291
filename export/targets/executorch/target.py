"""ExecuTorch with XNNPACK: android-*, host-* and ios-cpu."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3mobile.export.recipe import Recipe, find_recipe
from phi3mobile.export.target import Check, Target, TowerCheck, Written
from phi3mobile.export.targets.executorch.options import ExecutorchRecipe, recipe_of

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle
    from phi3mobile.export.integers import Integers
    from phi3mobile.export.layerwise import LayerCheck
    from phi3mobile.export.packed import PackedModel
    from phi3mobile.export.packed_vision import PackedVision
    from phi3mobile.export.plan import ExportPlan
    from phi3mobile.models.config import DecoderConfig
    from phi3mobile.progress import Progress

PROGRAM, ROWS = "model.pte", 128  # most rows that vision.pte projects at once
PIECES = (
    *("rmsnorm", "layernorm", "swiglu", "gegelu", "bias", "multiplier"),
    *("window", "blocksparse", "longrope", "masked_ids", "row_order", "head_bias", "vision"),
)
EXPERTS = ("experts", "sparsemixer", "softmax_topk")  # by an operator of ours: the prebuilt packages have none that fits


class ExecutorchTarget(Target):
    recipes = (
        ExecutorchRecipe(name="android-cpu", about="4 bit, XNNPACK, only operators of the prebuilt ExecuTorch packages"),
        ExecutorchRecipe(
            name="android-small",
            about="android-cpu with fewer scales, 4-bit embedding and head: smaller, less exact",
            group=128,
            down_group=256,
            embedding_bits=4,
            head_bits=4,
        ),
        ExecutorchRecipe(
            name="android-multimodal",
            about="android-cpu, which ExecuTorch's own multimodal runner takes too: for models that see pictures, 2 x 2 crops",
            grid=(2, 2),
            chunk=768,  # the runner gives all of a picture's rows at once
            min_context=1024,
            needs=("vision",),
        ),
        ExecutorchRecipe(
            name="host",
            about="4 bit, XNNPACK, our attention kernels, int8 KV cache: this machine, or an app that links them",
            attention="native",
            kv_bits=8,
        ),
        ExecutorchRecipe(
            name="host-small",
            about="host with 4-bit embedding and head",
            attention="native",
            embedding_bits=4,
            head_bits=4,
            kv_bits=8,
        ),
        ExecutorchRecipe(
            name="host-kv4",
            about="host with a 4-bit KV cache, its last 256 rows int8 too: near half the memory for long contexts",
            attention="native",
            kv_bits=4,
        ),
        ExecutorchRecipe(name="host-fp32-kv", about="host with a float32 KV cache", attention="native"),
        ExecutorchRecipe(name="ios-cpu", about="android-cpu's program, for ExecuTorch with XNNPACK on the CPU of an iPhone"),
    )

    def pieces(self, recipe: Recipe) -> tuple[str, ...]:
        assert isinstance(recipe, ExecutorchRecipe)
        has = (*PIECES, *EXPERTS) if _is_native(recipe) else PIECES
        return tuple(name for name in has if name != "blocksparse" or recipe.kv_bits != 4)

    def engine(self, recipe: Recipe) -> str:
        return "native" if _is_native(recipe) else "executorch"

    def weights_mapped(self, recipe: Recipe) -> bool:
        return _is_native(recipe)

    def not_here(self, recipe: Recipe) -> str:
        from phi3mobile.engines.native import native_library, where_from

        if not _is_native(recipe) or native_library():
            return ""
        return f"this machine can't run a bundle of recipe {recipe.name} yet, for its kernels are not here: {where_from()}"

    def write(self, packed: PackedModel, folder: Path, plan: ExportPlan, progress: Progress) -> Written:
        from phi3mobile.export.targets.executorch.write import to_executorch

        more = None if (grid := recipe_of(packed).grid) is None else partial(_encoder, packed, grid, progress)
        written = to_executorch(packed, folder / PROGRAM, plan.context, plan.chunk, plan.eos, progress, more)
        return written if plan.config.vision is None else _with_tower(written, packed, folder, plan, progress)

    def integers(self, bundle: Bundle, config: DecoderConfig) -> Integers:
        from phi3mobile.export.targets.executorch.read import PteIntegers

        recipe = find_recipe(bundle.manifest["recipe"]["name"])
        assert isinstance(recipe, ExecutorchRecipe), recipe
        return PteIntegers(bundle, config, recipe)

    def tower_difference(self, bundle: Bundle, packed: PackedVision) -> str:
        from phi3mobile.export.targets.executorch.read_vision import tower_difference

        return tower_difference(bundle, packed)

    def tower_checks(self, bundle: Bundle, packed: PackedVision) -> list[TowerCheck]:
        """Against torch with int8 activations. As in layerwise.py a value at the edge between two integers is rounded the one
        way or the other, and layers amplify that: 23 layers of random weights reach 40 dB. A wrong matrix, head or position is
        off by more than half of everything."""
        from phi3mobile.engines.registry import open_tower
        from phi3mobile.export.packed_vision import load_packed_vision

        return [TowerCheck("pictures", 30.0, lambda: load_packed_vision(packed), lambda: open_tower(bundle))]

    def checks(self, bundle: Bundle, packed: PackedModel) -> list[Check | LayerCheck]:
        """Against torch with int8 activations and, of recipes that have one, an int8 or 4-bit KV cache."""
        from phi3mobile.engines.registry import open_engine
        from phi3mobile.export.layerwise import LayerCheck
        from phi3mobile.export.targets.executorch.tapped import open_tapped

        tapped = lambda: open_tapped(bundle, packed.config)  # noqa: E731
        return [LayerCheck("int8 activations", packed, tapped, lambda: open_engine(bundle), recipe_of(packed).kv_bits)]


def _with_tower(written: Written, packed: PackedModel, folder: Path, plan: ExportPlan, progress: Progress) -> Written:
    """The tower's files beside the decoder's."""
    from phi3mobile.export.packed_vision import PackedVision
    from phi3mobile.export.targets.executorch.vision import write_vision
    from phi3mobile.models.vision_config import num_crops

    tower, grid = PackedVision(packed.checkpoint, packed.recipe.vision_bits), recipe_of(packed).grid
    section, operators, activations = write_vision(tower, folder, min(plan.chunk, ROWS), progress)
    section |= {} if grid is None else {"grid": grid}  # of model.pte's vision_encoder, which has the tower's weights again
    return written.with_tower(section | {"num_crops": num_crops(plan.folder)}, operators, activations)


def _encoder(packed: PackedModel, grid: tuple[int, int], progress: Progress, scratch: Path) -> dict[str, Any]:
    """The method that encodes pictures of one grid, by its name."""
    from phi3mobile.export.packed_vision import PackedVision
    from phi3mobile.export.targets.executorch.multimodal import METHOD, vision_encoder

    tower = PackedVision(packed.checkpoint, packed.recipe.vision_bits)
    return {METHOD: vision_encoder(tower, grid, scratch, progress)}


def _is_native(recipe: Recipe) -> bool:
    assert isinstance(recipe, ExecutorchRecipe)
    return recipe.attention == "native"


TARGET = ExecutorchTarget()
