"""Recipes: what the binary on the phone contains, and how the weights are stored for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from phi3mobile.errors import InputError
from phi3mobile.export.targets import recipes
from phi3mobile.models.form import Form
from phi3mobile.models.tensors import DOWN, EMBED
from phi3mobile.models.tensors import HEAD as HEAD_ROLE

if TYPE_CHECKING:
    from phi3mobile.models.config import DecoderConfig

__all__ = ["DEFAULT_RECIPE", "EMBEDDING", "HEAD", "Recipe", "find_recipe", "recipes"]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SMALLEST_GROUP = 32
DEFAULT_RECIPE = "android-cpu"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one kind of bundle is made. A target adds its own options in a subclass, next to its recipes."""

    name: str
    about: str
    bits: int = 4  # of the decoder's linears
    group: int = 32  # columns per 4-bit scale; 0: the whole row; fewer where a matrix's width asks for it
    down_group: int | None = None  # of the MLPs' second matrices, the widest ones; None: as the others
    embedding_bits: int = 8
    head_bits: int = 8
    vision_bits: int = 8  # of a vision tower and its projector: 8, or 4 with a scale for 32 columns
    max_context: int | None = None  # None: as much as the model takes
    min_context: int = 1
    needs: tuple[str, ...] = ()  # pieces (models.pieces) that a model must have: it is made for them
    method: str = "gptq"  # how the integers are chosen: "gptq" or "rtn", see export/solve
    chunk: int = 128  # tokens of one prefill step: enough to be compute bound, small enough for 16 MB of mini's logits

    @property
    def activation_group(self) -> int | None:
        """Columns of an input that its programs round to int8 together; None: a whole row (models.quantized)."""
        return None

    @property
    def signed(self) -> bool:
        """Whether its programs take 4-bit scales of either sign: a ninth to an eighth less squared error at no cost."""
        return False

    def form_of(self, role: str, width: int) -> Form:
        """How a matrix of that role (models.tensors) with rows of `width` columns is packed. The group of 8 bit is the row."""
        bits = {EMBED: self.embedding_bits, HEAD_ROLE: self.head_bits}.get(role, self.bits)
        group = self.down_group if self.down_group is not None and role == DOWN else self.group
        while group > SMALLEST_GROUP and width % group:
            group //= 2
        return Form(bits, width if bits == 8 or not group else group, signed=self.signed and bits == 4)

    def check(self, config: DecoderConfig) -> None:
        """InputError if no group of columns divides a matrix."""
        widths = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
        step = SMALLEST_GROUP if self.group else 2
        if uneven := [width for width in widths if self.bits == 4 and width % step]:
            raise InputError(f"recipe {self.name} takes {step} columns a scale: {uneven[0]} columns don't divide so")


def find_recipe(name: str) -> Recipe:
    """The recipe of that name; InputError lists the known ones."""
    known = recipes()
    if name not in known:
        raise InputError(f"recipe {name!r} is not known; take one of: {', '.join(known)}")
    return known[name]


def with_vision_bits(recipe: Recipe, config: DecoderConfig, bits: int | None) -> Recipe:
    """The recipe with so many bits for the tower; None: its own. InputError: a model without a tower, or other bits."""
    if bits is None:
        return recipe
    if config.vision is None:
        raise InputError("this model sees no pictures: leave out --vision-bits")
    if bits not in (4, 8):
        raise InputError(f"vision bits {bits}: a tower takes 4 or 8")
    return replace(recipe, vision_bits=bits)
