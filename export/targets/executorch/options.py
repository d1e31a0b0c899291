"""The options that recipes of this target have beyond every recipe's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phi3mobile.export.recipe import Recipe

if TYPE_CHECKING:
    from phi3mobile.export.packed import PackedModel


@dataclass(frozen=True, kw_only=True)
class ExecutorchRecipe(Recipe):
    """attention: "stock" = ExecuTorch's llama::* operators; "native" = our kernels (phi3mobile/core), which the phone's
    binary must contain. kv_bits: 32, or 8 = int8 per token and head (native only). grid: crops (across, down) of the pictures
    that the decoder's program encodes itself, by a method for ExecuTorch's multimodal runner; None: it has none."""

    attention: str = "stock"
    kv_bits: int = 32
    grid: tuple[int, int] | None = None

    @property
    def activation_group(self) -> int | None:
        return 32 if self.attention == "native" else None  # engines.tiles.CODES, by our own product; XNNPACK's takes rows


def recipe_of(packed: PackedModel) -> ExecutorchRecipe:
    """The recipe of integers that are packed for this target."""
    assert isinstance(packed.recipe, ExecutorchRecipe), packed.recipe
    return packed.recipe
