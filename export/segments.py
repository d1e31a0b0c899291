"""The Phi-3 graph cut at attention: what lies between two attentions is one segment, and every layer's is alike.

    start:  embedded tokens -> norm_0, q, k, v of layer 0
    middle: attended of layer i -> o_proj, MLP, norm, q, k, v of layer i + 1
    end:    attended of the last layer -> o_proj, MLP, final norm, logits

A segment is lowered once with stand-in weights and stamped with each layer's own (stamp.py). Tensors inside are [T, ...]; the
projections q and k are split into their rotary halves, so that rotating needs no slicing, which XNNPACK can't do for a
length known only at run time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.models.config import Phi3Config
from phi3mobile.models.quantized import Packed, quantize_activation


@dataclass(frozen=True)
class Part:
    """One constant of a segment: a checkpoint tensor (of layer `{}` + `step`), whole or some of its rows."""

    tensor: str
    rows: torch.Tensor | slice | None = None
    step: int = 0

    def name(self, layer: int) -> str:
        return self.tensor.format(layer + self.step)


def _projections(config: Phi3Config, step: int) -> dict[str, Part]:
    """Norm, q and k by rotary part, v: what attention of layer `{}` + step needs."""
    heads, kv_heads, dim, half = (
        config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rotary_dim // 2,
    )  # fmt: skip
    base = "model.layers.{}."
    parts = {"norm": Part(base + "input_layernorm.weight", step=step)}
    grid = torch.arange((heads + 2 * kv_heads) * dim).view(-1, dim)  # row numbers of qkv_proj by head
    pieces = {"first": slice(0, half), "second": slice(half, 2 * half), "rest": slice(2 * half, dim)}
    for name, rows in (("q", grid[:heads]), ("k", grid[heads : heads + kv_heads])):
        for piece, columns in pieces.items():
            if rows[:, columns].numel():
                rows_of_piece = rows[:, columns].flatten()
                parts[f"{name}_{piece}"] = Part(base + "self_attn.qkv_proj.weight", rows_of_piece, step)
    parts["v"] = Part(base + "self_attn.qkv_proj.weight", slice((heads + kv_heads) * dim, None), step)
    return parts


def _rest_of_layer(config: Phi3Config) -> dict[str, Part]:
    base, ffn = "model.layers.{}.", config.intermediate_size
    return {
        "o": Part(base + "self_attn.o_proj.weight"),
        "mlp_norm": Part(base + "post_attention_layernorm.weight"),
        "gate": Part(base + "mlp.gate_up_proj.weight", slice(0, ffn)),
        "up": Part(base + "mlp.gate_up_proj.weight", slice(ffn, None)),
        "down": Part(base + "mlp.down_proj.weight"),
    }


def segment_parts(config: Phi3Config, kind: str) -> dict[str, Part]:
    """Constants of a segment: "start", "middle" or "end"."""
    if kind == "start":
        return _projections(config, step=0)
    if kind == "middle":
        return _rest_of_layer(config) | _projections(config, step=1)
    return _rest_of_layer(config) | {"norm": Part("model.norm.weight"), "head": Part("lm_head.weight")}


class ConstantLinear(nn.Module):
    """x [T, K], already rounded to int8 -> [T, N], with the weight as integers and scales in the graph."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.group = packed.group
        self.limits = (-8, 7) if packed.bits == 4 else (-128, 127)
        self.register_buffer("codes", packed.unpacked())
        self.register_buffer("scales", packed.scales.float())
        self.register_buffer("zeros", torch.zeros_like(packed.scales, dtype=torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.ops.torchao.dequantize_affine.default(
            self.codes, [1, self.group], self.scales, self.zeros, torch.int8, *self.limits
        )
        return functional.linear(x, weight)


class ConstantNorm(nn.Module):
    """RMSNorm of x [T, K]; the mean is a product with 1/K, because XNNPACK averages only 4-D tensors."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("mean", torch.full((1, weight.numel()), 1 / weight.numel()))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(functional.linear(x * x, self.mean) + self.eps) * self.weight


class Segment(nn.Module):
    """One segment over given constants (Packed matrices, float32 norm weights)."""

    def __init__(self, config: Phi3Config, kind: str, constants: dict[str, Packed | torch.Tensor]) -> None:
        super().__init__()
        self.config, self.kind = config, kind
        for name, value in constants.items():
            setattr(self, name, ConstantLinear(value) if isinstance(value, Packed)
                    else ConstantNorm(value, config.rms_norm_eps))  # fmt: skip

    def forward(self, x: torch.Tensor, *rest: torch.Tensor):
        """start: (x, cos, sin); middle: (x, attended, cos, sin) -> (x, q, k, v); end: (x, attended) -> logits [T, V].

        x [T, hidden], attended [T, H*D], cos and sin [T, 1, R/2], q [T, H, D], k [T, Hkv, D], v [T, Hkv*D].
        """
        if self.kind == "start":
            return self._project(x, *rest)
        x = self._finish_layer(x, rest[0])
        if self.kind == "end":
            return self.head(quantize_activation(self.norm(x)))
        return x, *self._project(x, *rest[1:])

    def _finish_layer(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = x + self.o(quantize_activation(attended))
        inner = quantize_activation(self.mlp_norm(x))
        return x + self.down(quantize_activation(functional.silu(self.gate(inner)) * self.up(inner)))

    def _project(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor):
        x = quantize_activation(self.norm(x))
        return self._rotated("q", x, cos, sin), self._rotated("k", x, cos, sin), self.v(x)

    def _rotated(self, name: str, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        heads = self.config.num_attention_heads if name == "q" else self.config.num_key_value_heads
        half = self.config.rotary_dim // 2
        first = getattr(self, f"{name}_first")(x).view(-1, heads, half)
        second = getattr(self, f"{name}_second")(x).view(-1, heads, half)
        turned = [first * cos - second * sin, second * cos + first * sin]
        if self.config.rotary_dim < self.config.head_dim:
            rest = self.config.head_dim - self.config.rotary_dim
            turned.append(getattr(self, f"{name}_rest")(x).view(-1, heads, rest))
        return torch.cat(turned, dim=-1)


def example_inputs(config: Phi3Config, kind: str, length: int) -> tuple[torch.Tensor, ...]:
    """Inputs of a segment for T = length, in the order of `Segment.forward`."""
    x = torch.randn(length, config.hidden_size)
    attended = torch.randn(length, config.num_attention_heads * config.head_dim)
    cos, sin = torch.randn(2, length, 1, config.rotary_dim // 2)
    return {"start": (x, cos, sin), "middle": (x, attended, cos, sin), "end": (x, attended)}[kind]
