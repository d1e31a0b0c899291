"""Columns made alike before they are rounded: what a matrix multiplies is scaled in the rows of the matrix before it. Exact.

down_proj sees silu(gate) * up, and o_proj sees averages of v: dividing a row of up or v by s and multiplying the column of
down or o by s changes nothing but the sizes. Rows have scales of their own, so the division costs nothing; even columns lose
less to int8 activations and to shared group scales (after AWQ, arXiv 2306.00978, and SmoothQuant, arXiv 2211.10438).
"""

from __future__ import annotations

import torch
from torch import nn

from phi3mobile.models.config import Phi3Config, Phi3SmallConfig

POWER = 0.3  # 0: as they are; 1: all columns of one size


def balance(config: Phi3Config, layer: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """Scale a float layer in place, and `inputs` [B, T, K] of its linears by name with it.

    phi-3-small's layers stay: gegelu adds 1 to its linear branch.
    """
    if isinstance(config, Phi3SmallConfig):
        return
    down = _sizes(inputs["mlp.down_proj"].flatten(0, 1).square().mean(0))
    inner = config.intermediate_size
    _scale(layer.mlp.gate_up_proj, torch.cat([torch.ones(inner), 1 / down])[:, None])
    _scale(layer.mlp.down_proj, down)
    inputs["mlp.down_proj"] = inputs["mlp.down_proj"] / down

    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    power = inputs["self_attn.o_proj"].flatten(0, 1).square().mean(0).view(kv_heads, heads // kv_heads, dim).mean(1)
    values = _sizes(power.flatten())
    _scale(layer.self_attn.qkv_proj, torch.cat([torch.ones((heads + kv_heads) * dim), 1 / values])[:, None])
    wide = values.view(kv_heads, 1, dim).expand(-1, heads // kv_heads, -1).flatten()
    _scale(layer.self_attn.o_proj, wide)
    inputs["self_attn.o_proj"] = inputs["self_attn.o_proj"] / wide


def _scale(linear: nn.Linear, factor: torch.Tensor) -> None:
    """A new weight: the old one may be the checkpoint's own memory."""
    linear.weight = nn.Parameter(linear.weight * factor, requires_grad=False)


def _sizes(power: torch.Tensor) -> torch.Tensor:
    """A scale for each column, 1 on average, at most 1000 to 1."""
    size = power.sqrt()
    size = (size / size.mean().clamp(min=torch.finfo(torch.float32).tiny)).clamp(min=1e-3) ** POWER
    return size / size.mean()
