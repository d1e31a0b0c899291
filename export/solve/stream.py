"""The pass over the layers: calibration tokens as the phone will see them, and each matrix solved when they reach it.

Only one layer's weights are in memory. The hidden states x [B, T, D] go through layers whose matrices become integers on the
way. A matrix is solved on the inputs that the already quantized ones before it make, int8 activations included, to give what
it gives in the float model: so later matrices make good what earlier ones spoilt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.errors import InputError
from phi3mobile.export.solve.gptq import Inputs
from phi3mobile.export.solve.mixture import FEWEST, Recorded, expert_number, mixture_of, watch
from phi3mobile.models.attend import visible
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.finite import is_finite
from phi3mobile.models.modules import Halves
from phi3mobile.models.modules import norm as new_norm
from phi3mobile.models.quantized import Packed, QuantizedLinear, quantize_activation
from phi3mobile.models.registry import family_of
from phi3mobile.models.rope import rope_tables
from phi3mobile.models.tensors import ATTENTION_NORM, FINAL_NORM, MLP_NORM, in_layer

_ROWS = 4096  # activations rounded or multiplied at once
_COLUMNS = 512  # of a Hessian at once
_SEQUENCES = 8  # through a layer at once, where nothing in it waits for the others

Solve = Callable[[str, torch.Tensor, Inputs], Packed]  # name, weight [N, K], what it multiplies -> packed
Weights = Callable[[str], torch.Tensor]


class Solving(nn.Module):
    """A linear that is solved on the first inputs that it gets, x [B, T, K], and computes as the phone does with the rest.

    `exact`: what it sees in the float model [B, T, K], or with `made` what it makes there, without its bias [B, T, N].
    """

    def __init__(
        self,
        name: str,
        linear: nn.Linear,
        exact: torch.Tensor,
        made: bool,
        solve: Solve,
        power: Power,
        weights: Callable[[], torch.Tensor] | None = None,
        activation_group: int | None = None,
    ) -> None:
        """weights: of its own tokens [B, T], where it does not see all. activation_group: quantize_activation's."""
        super().__init__()
        self.activation_group, self.made = activation_group, made
        self.name, self.linear, self.exact, self.solve, self.power = name, linear, exact, solve, power
        self.weights = weights or (lambda: power.weights)
        self.packed: Packed | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        require_finite(f"what {self.name} multiplies", x)
        x = rounded(x, self.activation_group)
        if self.packed is None:
            weights, seen = self.weights(), x.view(-1, *x.shape[-2:])  # an expert's tokens are [n, K]
            product = products(seen, self.exact.view(*seen.shape[:2], -1), weights)
            own = hessian(seen, weights)
            inputs = Inputs(own, made=product) if self.made else Inputs(own, seen=product)
            self.packed = self.solve(self.name, self.linear.weight, inputs)
            self.quantized = QuantizedLinear(replace(self.packed, bias=self.linear.bias), self.activation_group)
            del self.linear.weight, self.exact  # nobody reads them again
        return self.quantized.of_rounded(x)


class Power:
    """Weight of each token, [B, T]: what a norm that follows divides its errors by. Kept by a hook on a layer's norms.

    Without it a handful of tokens with enormous hidden states would decide how all others are rounded.
    """

    def __init__(self) -> None:
        self.weights = torch.ones(1)

    def __call__(self, norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        power = inputs[0].square().mean(-1)
        self.weights = power.mean() / power.clamp(min=power.median() * 1e-3 + torch.finfo(torch.float32).tiny)


def require_finite(what: str, x: torch.Tensor) -> None:
    """InputError that names it, if a value of x is NaN or infinite."""
    if not is_finite(x):
        raise InputError(f"{what} is not finite (NaN or infinity): the checkpoint is damaged")


def rounded(x: torch.Tensor, group: int | None = None) -> torch.Tensor:
    """models.quantized.quantize_activation of x [..., K], some tokens at once; of whole rows in two passes over them."""
    made = torch.empty(x.shape)
    for part, out in zip(*(rows.reshape(-1, x.shape[-1]).split(_ROWS // 8) for rows in (x, made)), strict=True):
        out.copy_(_rounded_rows(part) if group is None else quantize_activation(part, group))
    return made


def _rounded_rows(tokens: torch.Tensor) -> torch.Tensor:
    low, high = tokens.amin(-1).clamp_(max=0), tokens.amax(-1).clamp_(min=0)
    scale = ((high - low) / 255).clamp_(min=torch.finfo(torch.float32).eps)
    zero = (-128 - torch.round(low / scale)).clamp_(-128, 127).to(torch.int32)
    return torch.fake_quantize_per_channel_affine(tokens, scale, zero, 0, -128, 127)


def products(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of weight * x y^T, x [B, T, K], y [B, T, N], weights [B, T] -> [K, N]."""
    total = torch.zeros(x.shape[-1], y.shape[-1])
    for left, right, own in _parts(x, y, weights):
        total.addmm_((left * own).t(), right)
    return total


def hessian(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """products(x, x, weights): symmetric, so half of it is multiplied."""
    width = x.shape[-1]
    total = torch.zeros(width, width)
    for left, right, own in _parts(x, x, weights):
        left = (left * own).t()
        for start in range(0, width, _COLUMNS):
            total[start : start + _COLUMNS, start:].addmm_(left[start : start + _COLUMNS], right[:, start:])
    return total.triu_().add_(total.triu(1).t())


def _parts(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Some tokens of both after the other, with their shares [n, 1]."""
    shares = (weights / weights.sum()).reshape(-1, 1)
    return zip(x.flatten(0, 1).split(_ROWS), y.flatten(0, 1).split(_ROWS), shares.split(_ROWS), strict=True)


def load_layer(config: DecoderConfig, index: int, weights: Weights) -> Halves:
    """Layer `index` in float32."""
    with torch.device("meta"):
        layer = family_of(config).Layer(config, index)
    for name, _ in list(layer.named_parameters()):
        module, _, attribute = name.rpartition(".")
        value = nn.Parameter(weights(f"model.layers.{index}.{name}"), requires_grad=False)
        setattr(layer.get_submodule(module), attribute, value)
    return layer.eval()


def load_norm(config: DecoderConfig, weights: Weights) -> nn.Module:
    """The final norm in float32."""
    norm, name = new_norm(config), config.tensor(FINAL_NORM).module
    for part, _ in list(norm.named_parameters()):
        setattr(norm, part, nn.Parameter(weights(f"{name}.{part}"), requires_grad=False))
    return norm


def run_layer(config: DecoderConfig, layer: Halves, index: int, x: torch.Tensor) -> torch.Tensor:
    """x [B, T, D] -> [B, T, D], every sequence from position 0; a few sequences at once."""
    return torch.cat([_run(config, layer, index, some) for some in x.split(_SEQUENCES)])


def _run(config: DecoderConfig, layer: Halves, index: int, x: torch.Tensor) -> torch.Tensor:
    return layer.attention_output(x, _attended(config, layer, index, x))


def _attended(config: DecoderConfig, layer: Halves, index: int, x: torch.Tensor) -> torch.Tensor:
    """x [B, T, D] -> what the heads bring together, [B, T, H*D]: as models.attend has it, of all sequences at once."""
    block, at = config.block(index), torch.arange(x.shape[1])
    cos, sin = (table[: len(at)] for table in rope_tables(config, len(at)))
    q, k, v = (rows.transpose(1, 2) for rows in layer.attention_inputs(x, cos, sin))
    seen = visible(at, at, block.window, block.pattern)[None]
    y = functional.scaled_dot_product_attention(q, k, v, seen, scale=config.attention_scale, enable_gqa=True)
    return y.transpose(1, 2).flatten(2)


def run_watched(
    config: DecoderConfig, layer: Halves, index: int, x: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor], Recorded | None]:
    """As run_layer; what each linear sees, by name (an expert its own tokens [n, K], if it has any); what those that are not
    taller than wide make, without biases; what a mixture chose. InputError if what one sees is not finite.
    """
    seen: dict[str, list[torch.Tensor]] = {}
    made: dict[str, list[torch.Tensor]] = {}

    def watch_linear(name: str, linear: nn.Linear, given: tuple[torch.Tensor], result: torch.Tensor) -> None:
        seen.setdefault(name, []).append(given[0])
        if linear.out_features <= linear.in_features:
            made.setdefault(name, []).append(result if linear.bias is None else result - linear.bias)

    linears = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
    hooks = [linear.register_forward_hook(partial(watch_linear, name)) for name, linear in linears]
    chosen = watch(layer)
    x = run_layer(config, layer, index, x)
    for hook in hooks:
        hook.remove()
    inputs, outputs = ({name: torch.cat(parts.pop(name)) for name in list(parts)} for parts in (seen, made))
    for name, values in inputs.items():
        require_finite(f"what model.layers.{index}.{name}.weight multiplies", values)
    return x, inputs, outputs, chosen()


def solve_layer(
    config: DecoderConfig,
    layer: Halves,
    index: int,
    x: torch.Tensor,
    exact: dict[str, torch.Tensor],
    made: dict[str, torch.Tensor],
    solve: Solve,
    chosen: Recorded | None = None,
    round_only: Callable[[str, torch.Tensor], Packed] | None = None,
    activation_group: int | None = None,
) -> tuple[dict[str, Packed], torch.Tensor]:
    """Solve a float layer in place on hidden states x [B, T, D]: its matrices by name, and the hidden states behind it.

    `exact`, `made`: what its linears see in the float model and what some make there, which takes less; both are emptied. The
    layer computes with its integers from then on. `chosen`: where a mixture sends the tokens; experts with too few of them are
    left to `round_only` (name, weight).
    """
    power = Power()
    for role in (ATTENTION_NORM, MLP_NORM):
        layer.get_submodule(in_layer(config.tensor(role, index))).register_forward_pre_hook(power)
    solving: dict[str, Solving] = {}
    solved: dict[str, Packed] = {}
    mixture = mixture_of(layer)
    for name, linear in list(layer.named_modules()):
        if not isinstance(linear, nn.Linear):
            continue
        full, seen, result = f"model.layers.{index}.{name}.weight", exact.pop(name, None), made.pop(name, None)
        owner, _, attribute = name.rpartition(".")
        weights, expert = None, expert_number(layer, name)
        if expert is not None:
            assert chosen is not None and round_only is not None, full
            rows = chosen.rows(expert)
            if seen is None or len(rows) < FEWEST:
                solved[full] = round_only(full, linear.weight)
                setattr(layer.get_submodule(owner), attribute, QuantizedLinear(solved[full], activation_group))
                continue
            weights = partial(_of_rows, power, rows)
        assert seen is not None, f"{full} saw no tokens"
        known, given = (seen, False) if result is None else (result, True)
        solving[full] = Solving(full, linear, known, given, solve, power, weights, activation_group)
        setattr(layer.get_submodule(owner), attribute, solving[full])
    if mixture is not None:
        assert chosen is not None, f"layer {index}: nothing says where its tokens go"
        routing, mixture[1].routing = mixture[1].routing, chosen
    x = _run(config, layer, index, x)  # all sequences: a matrix is solved when its inputs come
    if mixture is not None:
        mixture[1].routing = routing
    require_finite(f"what layer {index} makes", x)
    for name, module in solving.items():
        assert module.packed is not None, f"{name} saw no tokens"
        solved[name] = module.packed
    return solved, x


def _of_rows(power: Power, rows: torch.Tensor) -> torch.Tensor:
    """The weights of some tokens, [1, n]."""
    return power.weights.flatten()[rows][None]
