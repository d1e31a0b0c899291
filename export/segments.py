"""The Phi-3 graph cut at attention: what lies between two attentions is one segment, and every layer's is alike.

    start:  embedded tokens -> norm_0, q, k, v of layer 0
    middle: attended of layer i -> o_proj, MLP, norm, q, k, v of layer i + 1
    end:    attended of the last layer -> o_proj, MLP, final norm, logits

A segment is lowered once with stand-in weights and stamped with each layer's own (stamp.py). Tensors inside are [T, ...].
For our own attention ("native") q, k and v leave as one fused product and are rotated by the kernel. For ExecuTorch's
("stock") they are rotated here: q and k are split into their rotary halves, so that rotating needs no slicing, which
XNNPACK can't do for a length known only at run time.
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
    """One matrix of a segment: a checkpoint tensor (of layer `{}` + `step`), whole or some of its rows."""

    tensor: str
    rows: torch.Tensor | slice | None = None
    step: int = 0

    def name(self, layer: int) -> str:
        return self.tensor.format(layer + self.step)


def _projections(config: Phi3Config, step: int) -> dict[str, Part]:
    """q and k by rotary part, v: what attention of layer `{}` + step needs."""
    heads, kv_heads, dim, half = (
        config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rotary_dim // 2,
    )  # fmt: skip
    base = "model.layers.{}."
    parts = {}
    grid = torch.arange((heads + 2 * kv_heads) * dim).view(-1, dim)  # row numbers of qkv_proj by head
    pieces = {"first": slice(0, half), "second": slice(half, 2 * half), "rest": slice(2 * half, dim)}
    for name, rows in (("q", grid[:heads]), ("k", grid[heads : heads + kv_heads])):
        for piece, columns in pieces.items():
            if rows[:, columns].numel():
                rows_of_piece = rows[:, columns].flatten()
                parts[f"{name}_{piece}"] = Part(base + "self_attn.qkv_proj.weight", rows_of_piece, step)
    parts["v"] = Part(base + "self_attn.qkv_proj.weight", slice((heads + kv_heads) * dim, None), step)
    return parts


def _fused_projection(config: Phi3Config, step: int) -> dict[str, Part]:
    return {"qkv": Part("model.layers.{}.self_attn.qkv_proj.weight", step=step)}


def _rest_of_layer(config: Phi3Config) -> dict[str, Part]:
    base, ffn = "model.layers.{}.", config.intermediate_size
    return {
        "o": Part(base + "self_attn.o_proj.weight"),
        "gate": Part(base + "mlp.gate_up_proj.weight", slice(0, ffn)),
        "up": Part(base + "mlp.gate_up_proj.weight", slice(ffn, None)),
        "down": Part(base + "mlp.down_proj.weight"),
    }


def segment_parts(config: Phi3Config, kind: str, attention: str) -> dict[str, Part]:
    """Matrices of a segment: "start", "middle" or "end"; attention "stock" or "native"."""
    projections = _projections if attention == "stock" else _fused_projection
    if kind == "start":
        return projections(config, step=0)
    if kind == "middle":
        return _rest_of_layer(config) | projections(config, step=1)
    return _rest_of_layer(config) | {"head": Part("lm_head.weight")}


def segment_norms(kind: str, layer: int) -> list[str]:
    """Names of the norm weights that a segment takes as inputs, in order."""
    own, following = f"model.layers.{layer}.post_attention_layernorm.weight", "model.layers.{}.input_layernorm.weight"
    if kind == "start":
        return [following.format(layer)]
    return [own, following.format(layer + 1) if kind == "middle" else "model.norm.weight"]


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


class Norm(nn.Module):
    """RMSNorm of x [T, K] by an input weight [K].

    The weight comes in as an input, not a constant: with XNNPACK's packed-weight cache the runtime frees constants that
    are not packed. The mean is a product with 1/K and eps its bias: both are packed, and XNNPACK averages only 4-D tensors.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, width), 1 / width))
        self.register_buffer("eps", torch.full((1,), eps))

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(functional.linear(x * x, self.mean, self.eps)) * weight


class Segment(nn.Module):
    """One segment over given packed matrices."""

    def __init__(self, config: Phi3Config, kind: str, matrices: dict[str, Packed]) -> None:
        super().__init__()
        self.config, self.kind = config, kind
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        for name, value in matrices.items():
            setattr(self, name, ConstantLinear(value))

    def forward(self, x: torch.Tensor, *rest: torch.Tensor):
        """start: (x, norm, *rope) -> projected; middle: (x, attended, mlp norm, norm, *rope) -> (x, *projected);
        end: (x, attended, mlp norm, norm) -> logits.

        x [T, hidden], attended [T, H*D], norms [hidden], logits [T, V]. Stock: rope is cos and sin [T, 1, R/2], projected
        is q [T, H, D], k [T, Hkv, D], v [T, Hkv*D]. Native: no rope, projected is one [T, (H + 2 Hkv) * D], rows [q | k | v].
        """
        if self.kind == "start":
            return self._project(x, *rest)
        attended, mlp_norm, *rest = rest
        x = x + self.o(quantize_activation(attended))
        inner = quantize_activation(self.norm(x, mlp_norm))
        x = x + self.down(quantize_activation(functional.silu(self.gate(inner)) * self.up(inner)))
        if self.kind == "end":
            return self.head(quantize_activation(self.norm(x, rest[0])))
        return x, *self._project(x, *rest)

    def _project(self, x: torch.Tensor, norm: torch.Tensor, *rope: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = quantize_activation(self.norm(x, norm))
        if not rope:
            return (self.qkv(x),)
        cos, sin = rope
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


def example_inputs(config: Phi3Config, kind: str, attention: str, length: int) -> list[tuple[torch.Tensor, bool]]:
    """Inputs of a segment for T = length in the order of `Segment.forward`, each with whether T is its first dimension."""
    x = (torch.randn(length, config.hidden_size), True)
    attended = (torch.randn(length, config.num_attention_heads * config.head_dim), True)
    # All different objects: one given twice would be traced as one input.
    norms = [(torch.rand(config.hidden_size), False) for _ in segment_norms(kind, 0)]
    rope = [(torch.randn(length, 1, config.rotary_dim // 2), True) for _ in range(2 if attention == "stock" else 0)]
    return {"start": [x, *norms, *rope], "middle": [x, attended, *norms, *rope], "end": [x, attended, *norms]}[kind]


def projected_shapes(config: Phi3Config, attention: str) -> list[tuple[int, ...]]:
    """Shapes of what a segment hands to attention, without the leading T."""
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if attention == "native":
        return [((heads + 2 * kv_heads) * dim,)]
    return [(heads, dim), (kv_heads, dim), (kv_heads * dim,)]
