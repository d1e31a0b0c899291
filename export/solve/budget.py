"""`--bits`: which matrices get finer scales or 8 bits so that the layers keep to a budget and the answers change least.

A class is the same matrix in a quarter of the layers: few classes, so few distinct segments to lower. What a class costs is
measured: the KL divergence of the model with that class alone rounded coarsely. Rounding error is small, so other forms of the
class cost in proportion to their squared error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.errors import InputError
from phi3mobile.export.quantize import quantize
from phi3mobile.export.solve.card import log_probabilities
from phi3mobile.export.solve.rotate import Rotated
from phi3mobile.export.solve.stream import load_layer, load_norm, require_finite, run_layer
from phi3mobile.models.checkpoint import Checkpoint
from phi3mobile.models.form import Form
from phi3mobile.progress import Progress, silent

BANDS = 4  # parts of the depth
GROUPS = (128, 64, 32)  # coarsest first
TOKENS = 512
_SAMPLE_ROWS = 512  # of each matrix, for its squared errors


@dataclass(frozen=True)
class MatrixClass:
    """The matrices `names`, `weights` values in all; forms coarsest first with bits per value and expected KL divergence."""

    names: tuple[str, ...]
    weights: int
    forms: tuple[tuple[Form, float, float], ...]


def choose(classes: list[MatrixClass], budget: float) -> dict[str, Form]:
    """A form for every matrix name, at most `budget` bits per weight on average; InputError if that can't be.

    Starts with the coarsest and takes the step that gains most per bit for as long as one fits.
    """
    total = sum(item.weights for item in classes)
    least = sum(item.weights * item.forms[0][1] for item in classes) / total
    most = sum(item.weights * item.forms[-1][1] for item in classes) / total
    if not least <= budget:
        raise InputError(f"--bits {budget}: the layers of this model take {least:.3f} to {most:.3f} bits per weight")
    chosen, spare = [0] * len(classes), (budget - least) * total
    while True:
        best, gain = None, 0.0
        for index, item in enumerate(classes):
            _, bits, loss = item.forms[chosen[index]]
            for step in range(chosen[index] + 1, len(item.forms)):
                cost = (item.forms[step][1] - bits) * item.weights
                if cost <= spare + 1e-6 and (loss - item.forms[step][2]) / cost > gain:
                    best, gain = (index, step, cost), (loss - item.forms[step][2]) / cost
        if best is None:
            break
        chosen[best[0]] = best[1]
        spare -= best[2]
    return {name: item.forms[step][0] for item, step in zip(classes, chosen, strict=True) for name in item.names}


@torch.no_grad()
def measure_classes(
    checkpoint: Checkpoint | Rotated, tokens: torch.Tensor, progress: Progress = silent, signed: bool = False
) -> list[MatrixClass]:
    """Every class of the model with what its forms cost, on `tokens` int64 [1, T]. One pass over the layers.

    signed: the recipe's, see Form.
    """
    config, weights = checkpoint.config, checkpoint.tensor
    layers = config.num_hidden_layers
    exact = functional.embedding(tokens, weights("model.embed_tokens.weight")) * config.embedding_multiplier
    streams: dict[tuple[int, str], torch.Tensor] = {}  # class -> hidden states of the model with that class rounded
    names: dict[tuple[int, str], list[str]] = {}
    errors: dict[tuple[int, str], torch.Tensor] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for index in range(layers):
        progress("measure layers", index, layers)
        layer, band = load_layer(config, index, weights), index * BANDS // layers
        linears = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
        for name, linear in linears:
            key, full = (band, name), f"model.layers.{index}.{name}.weight"
            names.setdefault(key, []).append(full)
            height, width = shapes[name] = linear.out_features, linear.in_features
            forms = _forms(width, signed)
            errors[key] = errors.get(key, 0) + torch.tensor([_error(linear.weight, form) for form in forms])
            kept = linear.weight
            linear.weight = nn.Parameter(quantize(kept, *forms[0]).dequantized(), requires_grad=False)
            rounded = run_layer(config, layer, index, streams.get(key, exact))
            linear.weight = kept
            streams[key] = rounded
        for key in [key for key in streams if key[0] != band]:
            streams[key] = run_layer(config, layer, index, streams[key])
        exact = run_layer(config, layer, index, exact)
        for x in (exact, *streams.values()):
            require_finite(f"what layer {index} makes", x)
    norm, head = load_norm(config, weights), weights("lm_head.weight")
    told = log_probabilities(config, norm(exact), head)
    classes = []
    for key, x in streams.items():
        tells = log_probabilities(config, norm(x), head)
        loss = float(functional.kl_div(tells, told, reduction="sum", log_target=True)) / tokens.numel()
        height, width = shapes[key[1]]
        costed = tuple(
            (form, form.bits_per_weight(width), max(0.0, loss) * float(error / errors[key][0].clamp(min=1e-30)))
            for form, error in zip(_forms(width, signed), errors[key], strict=True)
        )
        classes.append(MatrixClass(tuple(names[key]), height * width * len(names[key]), costed))
    return classes


def _forms(width: int, signed: bool) -> list[Form]:
    groups = [group for group in GROUPS if width % group == 0]
    four = [form for group in groups for form in (Form(4, group, signed=signed), Form(4, group, offsets=True))]
    return sorted([*four, Form(8, width)], key=lambda form: form.bits_per_weight(width))


def _error(weight: torch.Tensor, form: Form) -> float:
    """Squared error of rounding some of the rows so."""
    rows = weight[:: max(1, len(weight) // _SAMPLE_ROWS)]
    return float((quantize(rows, *form).dequantized() - rows).square().sum())
