"""The quality card: what quantization does to the model's answers on a text that it was not solved on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.errors import InputError
from phi3mobile.export.solve.mixture import FEWEST, Recorded
from phi3mobile.export.solve.stream import rounded, run_layer
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.modules import Halves
from phi3mobile.models.quantized import Packed

_TOKENS = 256  # of logits at once


class Card:
    """Two streams of hidden states of the same tokens int64 [B, T]: through the float model and through the quantized one."""

    def __init__(
        self,
        config: DecoderConfig,
        tokens: torch.Tensor,
        exact: torch.Tensor,
        quantized: torch.Tensor,
        activation_group: int | None = None,
    ) -> None:
        """exact, quantized: embedded tokens [B, T, D]. activation_group: the recipe's."""
        self.config, self.tokens, self.activation_group = config, tokens, activation_group
        self.exact, self.quantized = exact * config.embedding_multiplier, quantized * config.embedding_multiplier
        self.layers_db: list[float] = []
        self._experts: dict[str, int] = {}

    def count_experts(self, chosen: Recorded, config: DecoderConfig) -> None:
        """Of one layer's mixture on the calibration text: how many experts saw enough tokens to be solved on."""
        routing = config.block(0).routing
        assert routing is not None
        seen = chosen.experts.flatten().bincount(minlength=routing.experts)
        counts = {"experts": routing.experts, "experts_solved": int((seen >= FEWEST).sum())}
        self._experts = {key: self._experts.get(key, 0) + value for key, value in counts.items()}
        self._experts["fewest_tokens"] = min(int(seen.min()), self._experts.get("fewest_tokens", int(seen.min())))

    def through_float(self, layer: Halves, index: int) -> None:
        self.exact = run_layer(self.config, layer, index, self.exact)

    def through_quantized(self, layer: Halves, index: int) -> None:
        self.quantized = run_layer(self.config, layer, index, self.quantized)
        decibels = signal_to_noise(self.exact, self.quantized)
        if not math.isfinite(decibels):
            raise InputError(f"what layer {index} makes is not finite (NaN or infinity): no quality card")
        self.layers_db.append(round(decibels, 2))

    def finish(
        self, norm: nn.Module, head: torch.Tensor, packed_norm: nn.Module, packed: Packed, bias: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Perplexity of both, mean KL divergence (nats) of the quantized from the float model, how often both have the same
        most likely next token, and for each layer the median token's signal-to-noise ratio of its hidden state in dB.

        norm, head: the float model's; packed_norm, packed: the quantized one's; bias: the head's, in both.
        """
        exact, quantized = norm(self.exact), rounded(packed_norm(self.quantized), self.activation_group)
        found = compare(self.config, self.tokens, exact, head, quantized, packed.dequantized(), bias)
        return {
            "tokens": self.tokens[:, 1:].numel(),
            "perplexity_float": round(found["perplexity_float"], 4),
            "perplexity": round(found["perplexity"], 4),
            "ratio": round(found["perplexity"] / found["perplexity_float"], 4),
            "kl": round(found["kl"], 5),
            "top1": round(found["top1"], 4),
            "layers_db": self.layers_db,
            **({"calibrated": self._experts} if self._experts else {}),
        }


def compare(
    config: DecoderConfig,
    tokens: torch.Tensor,
    exact: torch.Tensor,
    head: torch.Tensor,
    other: torch.Tensor,
    table: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> dict[str, float]:
    """A float model's final states `exact` [B, T, D] with its `head` [V, D] against another one's with `table`.

    perplexity_float and perplexity (at most exp(700)), kl of the other from the float model (nats, mean over tokens), top1: how
    often both have the same likeliest next token. tokens int64 [B, T]; each but a row's first is predicted. InputError if a
    model's answers are not finite.
    """
    following = tokens[:, 1:].reshape(-1, 1)
    float_nll = nll = kl = same = 0.0
    parts = zip(*(x[:, :-1].flatten(0, 1).split(_TOKENS) for x in (exact, other)), following.split(_TOKENS), strict=True)
    for x, y, target in parts:
        told, tells = log_probabilities(config, x, head, bias), log_probabilities(config, y, table, bias)
        float_nll -= told.gather(1, target).double().sum().item()
        nll -= tells.gather(1, target).double().sum().item()
        kl += functional.kl_div(tells, told, reduction="none", log_target=True).double().sum().item()
        same += int((told.argmax(-1) == tells.argmax(-1)).sum())
    if not all(map(math.isfinite, (float_nll, nll, kl))):
        raise InputError(f"the log likelihoods are {float_nll} (float) and {nll} (quantized): the models can't be compared")
    count = len(following)
    return {
        "perplexity_float": math.exp(min(float_nll / count, 700)),
        "perplexity": math.exp(min(nll / count, 700)),
        "kl": max(0.0, kl / count),
        "top1": same / count,
    }


def log_probabilities(
    config: DecoderConfig, x: torch.Tensor, head: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Of the next token, behind the final norm: x [..., D], head [V, D] -> [..., V]."""
    logits = functional.linear(x, head, bias) / config.logit_divisor
    logits[..., list(config.masked_ids)] = torch.finfo(torch.float32).min / 2
    return logits.log_softmax(-1)


def signal_to_noise(exact: torch.Tensor, quantized: torch.Tensor) -> float:
    """Median over tokens of |exact|^2 / |quantized - exact|^2 in dB, both [B, T, D]."""
    least = torch.finfo(torch.float32).tiny
    signal, noise = (x.square().sum(-1).clamp(min=least) for x in (exact, quantized - exact))
    return float((10 * (signal / noise).log10()).median())
