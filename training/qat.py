"""Quantization-aware training on the export's own grid: what the model computes in training is what the phone will.

Weights pass through `phi3mobile.export.quantize` (the same search, the same bfloat16 scales) and activations through the
phone's int8 rounding in every forward; gradients pass straight through both. The finished folder is float32: the export then
finds the very integers that were trained.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.errors import InputError
from phi3mobile.export.quantize import quantize
from phi3mobile.export.recipe import Recipe, find_recipe
from phi3mobile.export.scales import SMALLEST_SCALE
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.form import Form
from phi3mobile.models.quantized import quantize_activation
from phi3mobile.training.batches import IGNORED, Rows, pack
from phi3mobile.training.chats import conversations, open_encoder
from phi3mobile.training.config import Qat
from phi3mobile.training.loop import Job, logits_of, train
from phi3mobile.training.model import build_model, check_tokenizer
from phi3mobile.training.pretrain import finish, tokenizer_of
from phi3mobile.training.replica import find_place
from phi3mobile.training.sources import PackedSource, Source, TextSource


def on_grid(weight: torch.Tensor, form: Form) -> torch.Tensor:
    """`weight` [N, K] rounded as the export rounds it, float32. 3 bits: the same search over codes -4 to 3."""
    if form.bits == 3:
        return _three_bits(weight, form.group)
    return quantize(weight, *form).dequantized()


def straight_through(x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """`rounded` going forward, the gradient of `x` going back."""
    return x + (rounded - x).detach()


class FakeQuantLinear(nn.Linear):
    """A linear that computes as models.quantized.QuantizedLinear does with its weight packed; [..., K] -> [..., N]."""

    form: Form
    activation_group: int | None = None  # the recipe's

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            weight = on_grid(self.weight.float(), self.form).to(self.weight)
            rounded = quantize_activation(x.float(), self.activation_group).to(x)
        return functional.linear(straight_through(x, rounded), straight_through(self.weight, weight))


class FakeQuantEmbedding(nn.Embedding):
    """Rows of a table on the grid; int64 [...] -> [..., hidden]."""

    form: Form

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            weight = on_grid(self.weight.float(), self.form).to(self.weight)
        return functional.embedding(tokens, straight_through(self.weight, weight))


def add_fake_quant(model: nn.Module, shape: DecoderConfig, recipe: Recipe, bits: int | None = None) -> nn.Module:
    """Every linear and the embedding of transformers' model on the recipe's grid, in place; names stay.

    `shape`: our config of the model. `bits` replaces the bits of the layers' linears. Raises InputError for a width that the
    groups do not divide.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        width = module.weight.shape[1]
        module.__class__ = FakeQuantEmbedding if isinstance(module, nn.Embedding) else FakeQuantLinear
        form = recipe.form_of(shape.role(f"{name}.weight"), width)
        module.form = form._replace(bits=bits) if bits and name.startswith("model.layers.") else form
        if isinstance(module, FakeQuantLinear):
            module.activation_group = recipe.activation_group
        if module.form.bits < 8 and width % form.group:
            raise InputError(f"{name} has {width} columns; recipe {recipe.name} takes {form.group} a scale")
    return model


class Distilled:
    """Next-token loss, and `weight` x the KL divergence from what the unquantized start says."""

    def __init__(self, teacher: nn.Module | None, weight: float) -> None:
        self.teacher, self.weight = teacher, weight

    def count(self, rows: Rows) -> int:
        return rows.targets

    def loss(self, model: nn.Module, rows: Rows) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits, learned = logits_of(model, rows).float(), rows.labels != IGNORED
        nll = functional.cross_entropy(logits[learned], rows.labels[learned], reduction="sum")
        if self.teacher is None:
            return nll, {}
        with torch.no_grad():
            target = logits_of(self.teacher, rows).float()[learned].log_softmax(-1)
        kl = functional.kl_div(logits[learned].log_softmax(-1), target, reduction="sum", log_target=True)
        return nll + self.weight * kl, {"nll": nll, "kl": kl}


def qat(config: Qat) -> dict[str, Any]:
    """Train to the end (or resume); writes OUT/final in float32."""
    place, out = find_place(config.run), Path(config.out)
    if not config.model.folder or (config.data is None) == (config.chats is None):
        raise InputError("qat: give model.folder, and either data (a mixture of shards) or chats")
    tokenizer = tokenizer_of(config.model)
    model, shape = build_model(config.model)
    check_tokenizer(tokenizer, shape)
    teacher = copy.deepcopy(model).to(place.device).eval() if config.quant.distill else None
    add_fake_quant(model, shape, find_recipe(config.quant.recipe), config.quant.bits)
    batch, source = config.batch, None
    if config.data is not None:
        source = TextSource(config.data, batch.rows, batch.length, place.rank, place.world)
        source.check(config.schedule.steps, shape.vocab_size, tokenizer)
    else:
        source = _chat_source(config, shape, tokenizer, place)
    job = Job(config, model, shape, source, Distilled(teacher, config.quant.distill), f"qat, {config.quant.bits} bit")
    replica, loss = train(job, place)
    finish(out, shape, replica, place, "float32", tokenizer)
    return {"out": str(out / "final"), "loss": loss, "bits": config.quant.bits}


def _chat_source(config: Qat, shape: Any, tokenizer: str, place: Any) -> Source:
    pad = shape.pad_token_id if shape.pad_token_id is not None else shape.eos_token_ids[0]
    units = conversations(config.chats, open_encoder(tokenizer, config.chats.template), config.batch.length)
    return PackedSource(pack(units, config.batch.length, pad), config.batch.rows, config.run.seed, place.rank, place.world)


def _three_bits(weight: torch.Tensor, group: int) -> torch.Tensor:
    """As export.quantize at 4 bits: several fractions of the extreme, one least-squares step each, bfloat16 scales."""
    groups = weight.float().unflatten(1, (-1, group))
    extreme = groups.abs().amax(-1, keepdim=True)
    best, kept = torch.full_like(extreme, torch.inf), torch.zeros_like(groups)
    for divisor in (2.6, 3.0, 3.4, 3.8, 4.4):
        scale = (extreme / divisor).clamp(min=SMALLEST_SCALE)
        codes = (groups / scale).round().clamp(-4, 3)
        norm = codes.square().sum(-1, keepdim=True)
        scale = torch.where(norm > 0, (groups * codes).sum(-1, keepdim=True) / norm.clamp(min=1), scale)
        rounded = codes * scale.clamp(min=SMALLEST_SCALE).bfloat16().float()
        error = (groups - rounded).square().sum(-1, keepdim=True)
        best, kept = torch.where(error < best, error, best), torch.where(error < best, rounded, kept)
    return kept.flatten(1)
