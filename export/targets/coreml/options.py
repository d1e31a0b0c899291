"""The options that recipes of this target have beyond every recipe's."""

from __future__ import annotations

from dataclasses import dataclass

from phi3mobile.export.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class CoremlRecipe(Recipe):
    """cache: "states" = KV cache in the model's states; "read-only" = it goes in, new rows come out; "delegate" = states,
    inside a .pte. Its values are float16."""

    cache: str
