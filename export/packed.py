"""A checkpoint seen through a recipe: the integers that every target exports, one tensor at a time."""

from __future__ import annotations

from dataclasses import replace

import torch

from phi3mobile.models.config import Phi3Config
from phi3mobile.models.phi3 import Phi3ForCausalLM
from phi3mobile.models.quantized import Packed, QuantizedEmbedding, QuantizedLinear
from phi3mobile.models.registry import new_model
from phi3mobile.models.weights import Checkpoint

from .quantize import quantize
from .recipe import Recipe

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class PackedModel:
    """Quantizes on demand and keeps nothing, so that a 3.8B model never stands in memory as floats."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        self.checkpoint, self.recipe = checkpoint, recipe
        self._names = frozenset(checkpoint.names())

    @property
    def config(self) -> Phi3Config:
        return self.checkpoint.config

    def bits_of(self, name: str) -> tuple[int, int] | None:
        """(bits, group) of a tensor; None for norms and biases, which stay float32. The group of 8 bit is the whole row."""
        if name.endswith(("norm.weight", ".bias")):
            return None
        bits = {EMBEDDING: self.recipe.embedding_bits, HEAD: self.recipe.head_bits}.get(name, self.recipe.bits)
        return bits, self.recipe.group or self.shape(name)[1]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.shape(self._source(name))

    def tensor(self, name: str) -> Packed | torch.Tensor:
        """A matrix packed, with its bias; or a vector in float32. A tied head is packed from the embedding by its own rule."""
        weight, bits = self.checkpoint.tensor(self._source(name)), self.bits_of(name)
        return weight.float() if bits is None else replace(quantize(weight, *bits), bias=self._bias(name))

    def has_bias(self, name: str) -> bool:
        """Whether the matrix `name` has a bias. A head whose model masks ids does: the mask."""
        return bool(self.config.masked_ids) if name == HEAD else _bias_name(name) in self._names

    def _bias(self, name: str) -> torch.Tensor | None:
        if not self.has_bias(name):
            return None
        if name != HEAD:
            return self.checkpoint.tensor(_bias_name(name)).float()
        bias = torch.zeros(self.config.vocab_size)  # float32's least swallows the logit it is added to: the sum is exact
        bias[list(self.config.masked_ids)] = torch.finfo(torch.float32).min
        return bias

    def _source(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self.config.tie_word_embeddings else name


def _bias_name(name: str) -> str:
    return name.removesuffix("weight") + "bias"


def load_packed(packed: PackedModel, context: int | None = None) -> Phi3ForCausalLM:
    """The torch model that computes with these integers as the phone does: the reference of every exported program."""
    with torch.device("meta"):
        model = new_model(packed.config, context)
    model.lm_head = QuantizedLinear(packed.tensor(HEAD))
    model.model.embed_tokens = QuantizedEmbedding(packed.tensor(EMBEDDING))
    for name, module in list(model.model.named_modules()):
        tensor = f"model.{name}.weight"
        owner, _, attribute = name.rpartition(".")
        if isinstance(module, torch.nn.Linear):
            setattr(model.model.get_submodule(owner), attribute, QuantizedLinear(packed.tensor(tensor)))
        elif name.endswith("norm"):
            for part in dict(module.named_parameters()):
                setattr(module, part, torch.nn.Parameter(packed.tensor(f"model.{name}.{part}"), requires_grad=False))
    model.allocate()
    return model.eval()
