"""What layers of several families are built of, in torch."""

from __future__ import annotations

import torch
from torch import nn

from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.rope import apply_rope


class Halves(nn.Module):
    """A layer: its two halves around attention, by the family; its KV cache, by the decoder that holds it."""

    k_cache: torch.Tensor  # [1, C, Hkv, D]
    v_cache: torch.Tensor

    def attention_inputs(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [1, T, hidden], cos and sin [T, R] -> rotated q [1, T, H, D], rotated k and plain v [1, T, Hkv, D]."""
        raise NotImplementedError

    def attention_output(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """x [1, T, hidden] and the heads' results [1, T, H*D] -> the layer's output [1, T, hidden]."""
        raise NotImplementedError


class Attention(nn.Module):
    """The projections of one attention block; rows of qkv_proj are [Q | K | V]."""

    def __init__(self, config: DecoderConfig, bias: bool = False) -> None:
        super().__init__()
        self.config = config
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, queries + 2 * keys, bias=bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=bias)

    def rotated(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [1, T, hidden] behind the norm -> what Halves.attention_inputs gives."""
        heads, kv_heads, dim = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        q, k, v = self.qkv_proj(x).split([heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
        q = apply_rope(q.unflatten(-1, (heads, dim)), cos, sin)
        k = apply_rope(k.unflatten(-1, (kv_heads, dim)), cos, sin)
        return q, k, v.unflatten(-1, (kv_heads, dim))


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
