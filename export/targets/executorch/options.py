"""The options that recipes of this target have beyond every recipe's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phi3mobile.errors import InputError
from phi3mobile.export.recipe import Recipe

if TYPE_CHECKING:
    from phi3mobile.export.packed import PackedModel
    from phi3mobile.models.config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class ExecutorchRecipe(Recipe):
    """attention: "stock" = ExecuTorch's llama::* operators; "native" = our kernels (phi3mobile/core), which the phone's
    binary must contain. kv_bits: 32; 8 = int8 per token and head; 4 = models/coarse_rows.py, dense attention
    with heads of a multiple of 32 (8 and 4: native only). grid: crops (across, down) of the pictures
    that the decoder's program encodes itself, by a method for ExecuTorch's multimodal runner; None: it has none."""

    attention: str = "stock"
    kv_bits: int = 32
    grid: tuple[int, int] | None = None

    @property
    def activation_group(self) -> int | None:
        return 32 if self.attention == "native" else None  # engines.tiles.CODES, by our own product; XNNPACK's takes rows

    @property
    def signed(self) -> bool:
        return self.attention == "native"  # XNNPACK refuses scales that are not positive

    def check(self, config: DecoderConfig) -> None:
        """InputError if no group of columns divides a matrix, or a head of a 4-bit KV cache."""
        super().check(config)
        if self.kv_bits == 4 and config.head_dim % 32:
            raise InputError(
                f"recipe {self.name} keeps keys and values in groups of 32: heads of {config.head_dim} don't divide so; "
                "take host"
            )


def recipe_of(packed: PackedModel) -> ExecutorchRecipe:
    """The recipe of integers that are packed for this target."""
    assert isinstance(packed.recipe, ExecutorchRecipe), packed.recipe
    return packed.recipe
