"""The decoder cut at attention: what lies between two attentions is one segment, and every layer's is alike.

    start:  embedded tokens -> norm_0, q, k, v of layer 0
    middle: attended of layer i -> o_proj, MLP, norm, q, k, v of layer i + 1
    end:    attended of the last layer -> o_proj, MLP, final norm, logits

phi-3-small has the same cut: LayerNorm, gegelu and biases lie inside, sparse and dense layers differ only between segments.
What it multiplies by is folded: into the embedding's scales (PackedEmbedding), into the final norm (logits / 8, exact for a
power of two: int8 activations scale along), and masked ids into the head's bias (PackedModel).

A segment is lowered once with stand-in weights and stamped with each layer's own (stamp.py). Tensors inside are [T, ...].
For our own attention ("native") q, k and v leave as one fused product and are rotated by the kernel. For ExecuTorch's
("stock") they are rotated here: q and k are split into their rotary halves, so that rotating needs no slicing, which
XNNPACK can't do for a length known only at run time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from phi3mobile.export.packed import PackedModel
from phi3mobile.export.targets.executorch.layers import ConstantLinear, Gegelu, LayerNorm, Norm, Rounded, SwiGLU
from phi3mobile.models.config import Phi3Config, Phi3SmallConfig
from phi3mobile.models.phi3small import GELU_SLOPE
from phi3mobile.models.quantized import Packed, quantize_activation


@dataclass(frozen=True)
class Part:
    """One matrix of a segment: a checkpoint tensor (of layer `{}` + `step`), whole or some of its rows."""

    tensor: str
    rows: torch.Tensor | slice | None = None
    step: int = 0

    def name(self, layer: int) -> str:
        return self.tensor.format(layer + self.step)


def _fused(config: Phi3Config) -> tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The fused projection's tensor, and its row numbers: of q [H, D], of k and v [Hkv, D]."""
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    grid = torch.arange((heads + 2 * kv_heads) * dim).view(-1, dim)
    if isinstance(config, Phi3SmallConfig):
        groups = grid.view(kv_heads, -1, dim)  # of each KV head: its queries, k, v
        rows = groups[:, :-2].flatten(0, 1), groups[:, -2], groups[:, -1]
        return "model.layers.{}.self_attn.query_key_value.weight", *rows
    return "model.layers.{}.self_attn.qkv_proj.weight", *grid.split([heads, kv_heads, kv_heads])


def _projections(config: Phi3Config, step: int) -> dict[str, Part]:
    """q and k by rotary part, v: what attention of layer `{}` + step needs."""
    (tensor, q, k, v), half = _fused(config), config.rotary_dim // 2
    parts = {}
    pieces = {"first": slice(0, half), "second": slice(half, 2 * half), "rest": slice(2 * half, config.head_dim)}
    for name, rows in (("q", q), ("k", k)):
        for piece, columns in pieces.items():
            if rows[:, columns].numel():
                parts[f"{name}_{piece}"] = Part(tensor, rows[:, columns].flatten(), step)
    parts["v"] = Part(tensor, v.flatten(), step)
    return parts


def _fused_projection(config: Phi3Config, step: int) -> dict[str, Part]:
    tensor, *rows = _fused(config)
    return {"qkv": Part(tensor, torch.cat(rows).flatten() if isinstance(config, Phi3SmallConfig) else None, step)}


def _rest_of_layer(config: Phi3Config) -> dict[str, Part]:
    base, ffn = "model.layers.{}.", config.intermediate_size
    if isinstance(config, Phi3SmallConfig):
        o, up, gate_rows, up_rows = "self_attn.dense", "mlp.up_proj", slice(0, None, 2), slice(1, None, 2)
    else:
        o, up, gate_rows, up_rows = "self_attn.o_proj", "mlp.gate_up_proj", slice(0, ffn), slice(ffn, None)
    return {
        "o": Part(f"{base}{o}.weight"),
        "gate": Part(f"{base}{up}.weight", gate_rows),
        "up": Part(f"{base}{up}.weight", up_rows),
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


def segment_vectors(packed: PackedModel, kind: str, layer: int) -> list[torch.Tensor]:
    """The vectors that a segment takes as inputs, in the order of `vector_sizes`.

    As inputs, because with XNNPACK's packed-weight cache the runtime frees constants that are not packed.
    """
    small = isinstance(packed.config, Phi3SmallConfig)

    def norm(name: str) -> list[torch.Tensor]:
        return [packed.tensor(f"{name}.{part}") for part in (("weight", "bias") if small else ("weight",))]

    if kind == "start":
        return norm(f"model.layers.{layer}.input_layernorm")
    slope = [torch.tensor([GELU_SLOPE])] if small else []
    own = [*norm(f"model.layers.{layer}.post_attention_layernorm"), *slope]
    if kind == "middle":
        return own + norm(f"model.layers.{layer + 1}.input_layernorm")
    if small:
        return own + [vector / packed.config.mup_width_multiplier for vector in norm("model.final_layernorm")]
    return own + norm("model.norm")


def vector_sizes(config: Phi3Config, kind: str) -> list[int]:
    """Per norm its weight and, in phi-3-small, its bias; between the MLP's norm and the next one phi-3-small's gelu slope."""
    small, hidden = isinstance(config, Phi3SmallConfig), config.hidden_size
    norm = [hidden, hidden] if small else [hidden]
    return norm if kind == "start" else [*norm, *([1] if small else []), *norm]


# What is rounded for several matrices of a segment -> one of them: those of one tensor have one form.
READERS = {"to_qkv": "qkv", "to_heads": "v", "to_o": "o", "to_mlp": "up", "to_down": "down"}


class Segment(nn.Module):
    """One segment over given packed matrices."""

    def __init__(self, config: Phi3Config, kind: str, matrices: dict[str, Packed]) -> None:
        super().__init__()
        self.config, self.kind = config, kind
        small = isinstance(config, Phi3SmallConfig)
        self.norm = (LayerNorm if small else Norm)(config.hidden_size, config.rms_norm_eps)
        self.activation = Gegelu(config.gegelu_limit) if small else SwiGLU()
        for name, value in matrices.items():
            setattr(self, name, ConstantLinear(value))
        for name, reader in READERS.items():
            if reader in matrices:
                setattr(self, name, Rounded(matrices[reader]))

    def forward(self, x: torch.Tensor, *rest: torch.Tensor):
        """start: (x, *vectors, *rope) -> projected; middle: (x, attended, *vectors, *rope) -> (x, *projected);
        end: (x, attended, *vectors) -> logits.

        x [T, hidden], attended [T, H*D], logits [T, V]; vectors: see segment_vectors. Stock: rope is cos and sin
        [T, 1, R/2], projected is q [T, H, D], k [T, Hkv, D], v [T, Hkv*D]. Native: no rope, projected is one
        [T, (H + 2 Hkv) * D], rows [q | k | v].
        """
        if self.kind == "start":
            return self._project(x, rest)
        attended, rest = rest[0], rest[1:]
        mlp_norm, rest = rest[: self.norm.vectors], rest[self.norm.vectors :]
        constants, rest = rest[: self.activation.vectors], rest[self.activation.vectors :]
        x = x + self.o(*self.to_o(attended))
        inner = self.to_mlp(self.norm(x, *mlp_norm))
        x = x + self.down(*self.to_down(self.activation(self.gate(*inner), self.up(*inner), *constants)))
        if self.kind == "end":
            return self.head(quantize_activation(self.norm(x, *rest)))
        return x, *self._project(x, rest)

    def _project(self, x: torch.Tensor, rest: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        norm, rope = rest[: self.norm.vectors], rest[self.norm.vectors :]
        x = self.norm(x, *norm)
        if not rope:
            return (self.qkv(*self.to_qkv(x)),)
        x, (cos, sin) = self.to_heads(x), rope
        return self._rotated("q", x, cos, sin), self._rotated("k", x, cos, sin), self.v(*x)

    def _rotated(self, name: str, x: tuple[torch.Tensor, ...], cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        heads = self.config.num_attention_heads if name == "q" else self.config.num_key_value_heads
        half = self.config.rotary_dim // 2
        first = getattr(self, f"{name}_first")(*x).view(-1, heads, half)
        second = getattr(self, f"{name}_second")(*x).view(-1, heads, half)
        turned = [first * cos - second * sin, second * cos + first * sin]
        if self.config.rotary_dim < self.config.head_dim:
            rest = self.config.head_dim - self.config.rotary_dim
            turned.append(getattr(self, f"{name}_rest")(*x).view(-1, heads, rest))
        return torch.cat(turned, dim=-1)


def example_inputs(config: Phi3Config, kind: str, attention: str, length: int) -> list[tuple[torch.Tensor, bool]]:
    """Inputs of a segment for T = length in the order of `Segment.forward`, each with whether T is its first dimension."""
    x = (torch.randn(length, config.hidden_size), True)
    attended = (torch.randn(length, config.num_attention_heads * config.head_dim), True)
    # All different objects: one given twice would be traced as one input.
    vectors = [(torch.rand(size), False) for size in vector_sizes(config, kind)]
    rope = [(torch.randn(length, 1, config.rotary_dim // 2), True) for _ in range(2 if attention == "stock" else 0)]
    return {"start": [x, *vectors, *rope], "middle": [x, attended, *vectors, *rope], "end": [x, attended, *vectors]}[kind]


def projected_shapes(config: Phi3Config, attention: str) -> list[tuple[int, ...]]:
    """Shapes of what a segment hands to attention, without the leading T."""
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if attention == "native":
        return [((heads + 2 * kv_heads) * dim,)]
    return [(heads, dim), (kv_heads, dim), (kv_heads * dim,)]
