"""A checkpoint seen through a recipe: the integers that every target exports, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from phi3mobile.export.integers import Integers
from phi3mobile.export.quantize import quantize
from phi3mobile.export.recipe import EMBEDDING, HEAD, Recipe
from phi3mobile.models.checkpoint import Checkpoint
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.decoder import Decoder
from phi3mobile.models.form import Form
from phi3mobile.models.modules import Halves
from phi3mobile.models.quantized import Packed, QuantizedEmbedding, QuantizedLinear
from phi3mobile.models.registry import family_of
from phi3mobile.models.tensors import BIAS, LINEARS, NORMS, ROUTER, Tensor

if TYPE_CHECKING:
    from phi3mobile.export.solve.rotate import Rotated


class PackedModel:
    """Reads solved integers, or rounds floats to nearest on demand, and keeps nothing: a 3.8B model never stands in memory."""

    def __init__(
        self, checkpoint: Checkpoint | Rotated | Integers, recipe: Recipe, forms: Mapping[str, Form] | None = None
    ) -> None:
        """forms: of the matrices that have others than the recipe's."""
        self.checkpoint, self.recipe, self._forms = checkpoint, recipe, forms or {}
        self._names = frozenset(checkpoint.names())

    @property
    def config(self) -> DecoderConfig:
        return self.checkpoint.config

    def form_of(self, name: str) -> Form | None:
        """How the tensor `name` is packed; None for norms, biases and routers, which stay float32. 8 bit's group is the row."""
        if isinstance(self.checkpoint, Integers):
            return self.checkpoint.form_of(name)
        found = self.config.tensors().get(name)  # a tied head has none
        if found and found.role in (*NORMS, BIAS, ROUTER):
            return None
        return self._forms.get(name) or self.recipe.form_of(self.config.role(name), self.shape(name)[1])

    def matrix_form(self, name: str) -> Form:
        """How the matrix `name` is packed."""
        form = self.form_of(name)
        assert form is not None, f"{name} is no matrix"
        return form

    def shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.shape(self._source(name))

    def tensor(self, name: str) -> Packed | torch.Tensor:
        """A matrix packed, with its bias; or a vector in float32. A tied head is packed from the embedding by its own rule."""
        return self.vector(name) if self.form_of(name) is None else self.matrix(name)

    def matrix(self, name: str) -> Packed:
        """The matrix `name`: see `tensor`."""
        weight, form = self.checkpoint.tensor(self._source(name)), self.matrix_form(name)
        return replace(weight if isinstance(weight, Packed) else quantize(weight, *form), bias=self._bias(name))

    def vector(self, name: str) -> torch.Tensor:
        """The vector `name`, a norm's weight or bias or a linear's bias, or a router, in float32."""
        values = self.checkpoint.tensor(self._source(name))
        assert isinstance(values, torch.Tensor) and self.form_of(name) is None, f"{name} is a packed matrix"
        return values.float()

    def bits_per_weight(self) -> float:
        """Bits per weight of the layers' matrices, scales and offsets included; embedding and head are not among them."""
        bits, values = 0.0, 0
        for name in self.checkpoint.names():
            if name.startswith("model.layers.") and (form := self.form_of(name)):
                rows, width = self.shape(name)
                values += rows * width
                bits += rows * width * form.bits_per_weight(width)
        return round(bits / values, 4)

    def has_bias(self, name: str) -> bool:
        """Whether the matrix `name` has a bias. A head whose model masks ids does: the mask."""
        return (name == HEAD and bool(self.config.masked_ids)) or _bias_name(name) in self._names

    def _bias(self, name: str) -> torch.Tensor | None:
        if not self.has_bias(name):
            return None
        stored = _bias_name(name) in self._names
        bias = self.vector(_bias_name(name)) if stored else torch.zeros(self.config.vocab_size)
        if name == HEAD:  # float32's least swallows the logit it is added to: the sum is exact
            bias[list(self.config.masked_ids)] = torch.finfo(torch.float32).min
        return bias

    def _source(self, name: str) -> str:
        tied = self.config.tie_word_embeddings and not isinstance(
            self.checkpoint, Integers
        )  # which has the head's own integers
        return EMBEDDING if name == HEAD and tied else name


def _bias_name(name: str) -> str:
    return name.removesuffix("weight") + "bias"


def load_packed(packed: PackedModel, context: int | None = None) -> Decoder:
    """The torch model that computes with these integers as the phone does: the reference of every exported program."""
    with torch.device("meta"):
        model = Decoder(packed.config, context)
    model.add_module("lm_head", QuantizedLinear(packed.matrix(HEAD), packed.recipe.exact_sums))
    model.model.add_module("embed_tokens", QuantizedEmbedding(packed.matrix(EMBEDDING)))
    _fill(model, packed, [tensor for tensor in packed.config.tensors().values() if tensor.layer is None])
    for index in range(packed.config.num_hidden_layers):
        model.model.layers[index] = packed_layer(packed, index)
    model.allocate()
    return model.eval()


def packed_layer(packed: PackedModel, index: int) -> Halves:
    """One layer of that model, which has no KV cache yet."""
    with torch.device("meta"):
        layer = family_of(packed.config).Layer(packed.config, index)
    own = [tensor for tensor in packed.config.tensors().values() if tensor.layer == index]
    _fill(layer, packed, own, f"model.layers.{index}.")
    return layer.eval()


def _fill(root: nn.Module, packed: PackedModel, tensors: list[Tensor], prefix: str = "") -> None:
    """Put linears, norms and routers where they belong; their names begin with `prefix`, which leads to the root."""
    for tensor in tensors:
        module, _, attribute = tensor.name.removeprefix(prefix).rpartition(".")
        if tensor.role in LINEARS:
            owner, _, own = module.rpartition(".")
            setattr(root.get_submodule(owner), own, QuantizedLinear(packed.matrix(tensor.name), packed.recipe.exact_sums))
        elif (tensor.of or tensor.role) in (*NORMS, ROUTER):
            vector = nn.Parameter(packed.vector(tensor.name), requires_grad=False)
            setattr(root.get_submodule(module), attribute, vector)
