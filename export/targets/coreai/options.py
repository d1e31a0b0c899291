"""The options that recipes of this target have beyond every recipe's."""

from __future__ import annotations

from dataclasses import dataclass

from phi3mobile.export.recipe import Recipe
from phi3mobile.models.form import Form
from phi3mobile.models.tensors import DOWN


@dataclass(frozen=True, kw_only=True)
class CoreaiRecipe(Recipe):
    """down_bits: of the MLPs' second matrices, 4 or 8. In 4 bits Phi-4-mini repeats itself on some of Apple's GPUs."""

    down_bits: int = 4

    def form_of(self, role: str, width: int) -> Form:
        return Form(8, width) if role == DOWN and self.down_bits == 8 else super().form_of(role, width)
