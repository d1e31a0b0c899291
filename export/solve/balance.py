"""Columns made alike before they are rounded: what a matrix multiplies is scaled where it comes from. Exact in float.

down_proj sees silu(gate) * up, o_proj sees averages of v, the others see what a norm scales: dividing a row of up or v, or a
weight of the norm, by s and multiplying the column behind it by s changes nothing but the sizes. Even columns lose less to int8
activations, but may lose more to shared group scales. How far to go is tried out for each matrix (after AWQ, arXiv 2306.00978,
and SmoothQuant, arXiv 2211.10438).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.export.quantize import quantize
from phi3mobile.export.recipe import SMALLEST_GROUP
from phi3mobile.export.solve.stream import rounded
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.form import Form
from phi3mobile.models.modules import Halves
from phi3mobile.models.tensors import DOWN, GATE_UP, NORMS, QKV, O, in_layer

POWERS = (0.0, 0.15, 0.3, 0.45, 0.6)  # tried. 0: as they are; 1: all columns of one size
TOGETHER = (0.15, 0.3, 0.45, 0.6, 0.75)  # of one size for all columns of a group, which its scale and offset take over
_TRIED = 1024  # tokens that a power is tried on
_ROWS = 512  # of the weight

FormOf = Callable[[str], Form]  # of a matrix, by its name in the model


def balance(
    config: DecoderConfig,
    layer: Halves,
    index: int,
    inputs: dict[str, torch.Tensor],
    form_of: FormOf,
    activation_group: int | None = None,
) -> None:
    """Scale float layer `index` in place, and `inputs` [B, T, K] of its linears by name with it.

    A linear is scaled where what it multiplies comes from: a norm, or the rows of the linear before it that a factor passes
    from (Tensor.reads); one that no factor reaches stays as it is.
    """

    def module(role: str) -> nn.Module:
        return layer.get_submodule(in_layer(config.tensor(role, index)))

    def linear_of(role: str) -> nn.Linear:
        found = module(role)
        assert isinstance(found, nn.Linear), role
        return found

    def scaled(role: str, shared: tuple[int, ...] | None = None) -> torch.Tensor:
        tensor, linear = config.tensor(role, index), linear_of(role)
        name = in_layer(tensor)
        sizes = best_sizes(linear.weight, inputs[name], form_of(tensor.name), shared, activation_group)
        linear.weight = _times(linear.weight, sizes)
        inputs[name] = inputs[name] / sizes
        return sizes

    def divide_rows(role: str, part: str, sizes: torch.Tensor) -> None:
        linear, factors = linear_of(role), torch.ones(config.tensor(role, index).shape[0])
        factors[config.tensor(role, index).rows[part]] = 1 / sizes
        linear.weight = _times(linear.weight, factors[:, None])

    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    mixed = config.block(index).routing is not None  # experts share a norm with their router: they stay as they are
    for role in (QKV, O) if mixed else (QKV, GATE_UP, DOWN, O):
        before = config.tensor(role, index).reads
        if before in NORMS:
            divide(module(before), scaled(role))
        elif before == GATE_UP:
            divide_rows(before, "up", scaled(role))
        elif before == QKV:
            shared = (kv_heads, heads // kv_heads, dim)  # a head of v is averaged for a group of query heads
            divide_rows(before, "v", scaled(role, shared).view(shared)[:, 0].flatten())


def divide(norm: nn.Module, sizes: torch.Tensor) -> None:
    """What the norm gives, [..., K], by sizes [K]."""
    for name, value in list(norm.named_parameters()):
        setattr(norm, name, _times(value, 1 / sizes))


def best_sizes(
    weight: torch.Tensor,
    seen: torch.Tensor,
    form: Form,
    shared: tuple[int, ...] | None = None,
    activation_group: int | None = None,
) -> torch.Tensor:
    """The sizes [K] with the least error of weight [N, K] times `seen` [B, T, K] / sizes, when both are rounded.

    Groups with offsets may fit their weights almost exactly: then one size for all columns of a group spares them.
    `shared`: the columns as [A, B, C], where all of B must have one size.
    """
    sample = seen.flatten(0, 1)
    power = sample.square().mean(0).view(shared or (1, 1, -1)).mean(1, keepdim=True)  # [A, 1, C]
    wide = power.unflatten(2, (-1, math.gcd(power.shape[2], SMALLEST_GROUP)))
    together = wide.mean(-1, keepdim=True).expand_as(wide).flatten(2)
    sample, weight = sample[:: -(-len(sample) // _TRIED)], weight[:: -(-len(weight) // _ROWS)]
    exact = functional.linear(sample, weight)
    signal = exact.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
    tried = []  # errors relative to each token's own output: a few tokens are enormous
    tries = [(power, exponent) for exponent in POWERS]
    tries += [(together, exponent) for exponent in TOGETHER] if form.offsets else []
    for own, exponent in tries:
        sizes = _sizes(own, exponent).expand(shared or own.shape).flatten()
        found = functional.linear(rounded(sample / sizes, activation_group), quantize(weight * sizes, *form).dequantized())
        tried.append((float(((found - exact).square().sum(-1) / signal).mean()), sizes))
    return min(tried, key=lambda one: one[0])[1]


def _times(parameter: torch.Tensor, factor: torch.Tensor) -> nn.Parameter:
    """A new one: the old may be the checkpoint's own memory."""
    return nn.Parameter(parameter * factor, requires_grad=False)


def _sizes(power: torch.Tensor, exponent: float) -> torch.Tensor:
    """A scale for each column, 1 on average, at most 1000 to 1."""
    size = power.sqrt()
    size = (size / size.mean().clamp(min=torch.finfo(torch.float32).tiny)).clamp(min=1e-3) ** exponent
    return size / size.mean()
