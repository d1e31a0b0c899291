"""What layers of several families are built of, in torch."""

from __future__ import annotations

import torch
from torch import nn

from phi3mobile.models.config import DecoderConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, x [..., hidden]."""

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


GELU_SLOPE = 1.702  # of the sigmoid that stands for the normal distribution


def gegelu(gate: torch.Tensor, linear: torch.Tensor, limit: float) -> torch.Tensor:
    """gelu(gate) * (linear + 1), both [..., F] and kept within `limit`; infinities pass, as in the released code."""
    gate = torch.where(gate.isinf(), gate, gate.clamp(max=limit))
    linear = torch.where(linear.isinf(), linear, linear.clamp(-limit, limit))
    return gate * torch.sigmoid(GELU_SLOPE * gate) * (linear + 1)


NORMS = {"rmsnorm": RMSNorm, "layernorm": nn.LayerNorm}


def norm(config: DecoderConfig, layer: int = -1) -> nn.Module:
    """A norm of block `layer`; the final norm is of the last block's kind."""
    return NORMS[config.block(layer % config.num_hidden_layers).norm](config.hidden_size, config.rms_norm_eps)
