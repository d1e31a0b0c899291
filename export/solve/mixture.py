"""Solving a layer's mixture of experts: every expert on its own tokens, routed as the float model routes them.

Calibration reaches experts unevenly. One that saw fewer than FEWEST tokens is rounded to nearest: so few say too little of its
inputs. The quality card counts such experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from phi3mobile.models.experts import Mixture
from phi3mobile.models.modules import Halves

FEWEST = 256  # tokens of an expert


@dataclass(frozen=True)
class Recorded:
    """Stands in for a mixture's routing: what it chose before, experts int64 [T, used] and weights float32 [T, used]."""

    experts: torch.Tensor
    weights: torch.Tensor

    def __call__(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.experts, self.weights

    def rows(self, expert: int) -> torch.Tensor:
        """The tokens of an expert, in the order in which it gets them."""
        return torch.where(self.experts == expert)[0]


def mixture_of(layer: Halves) -> tuple[str, Mixture] | None:
    """The layer's mixture by its module's name; None where its MLP is dense."""
    return next(((name, module) for name, module in layer.named_modules() if isinstance(module, Mixture)), None)


def watch(layer: Halves) -> Callable[[], Recorded | None]:
    """From now on, what the layer's mixture chooses; call the result when all tokens are through, in however many parts."""
    found, seen = mixture_of(layer), []
    if found is None:
        return lambda: None
    mixture = found[1]
    hook = mixture.gate.register_forward_hook(lambda module, given, logits: seen.append(Recorded(*mixture.routing(logits))))

    def result() -> Recorded | None:
        hook.remove()
        return Recorded(torch.cat([one.experts for one in seen]), torch.cat([one.weights for one in seen]))

    return result


def expert_number(layer: Halves, name: str) -> int | None:
    """Which expert the linear `name` of the layer is of; None for another linear."""
    found = mixture_of(layer)
    if found is None or not name.startswith(f"{found[0]}.experts."):
        return None
    return int(name.removeprefix(f"{found[0]}.experts.").partition(".")[0])


def router_weights(layer: nn.Module) -> set[str]:
    """Names of the parameters that stay float32 though they are matrices."""
    return {f"{name}.gate.weight" for name, module in layer.named_modules() if isinstance(module, Mixture)}
