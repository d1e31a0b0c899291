"""The decoder cut at attention: what lies between two attentions is one segment, and every layer's is alike.

    start:  embedded tokens -> norm_0, q, k, v of layer 0
    middle: attended of layer i -> o_proj, MLP, norm, q, k, v of layer i + 1
    end:    attended of the last layer -> o_proj, MLP, final norm, logits

A mixture of experts is an operator of its own (experts.py), so there the cut runs through the MLP as well:

    start, then for each layer
    to_experts:   attended -> o_proj, norm: what the experts see
    from_experts: what they made -> norm, q, k, v of the next layer; from_last, of the last layer: -> final norm, logits

Norms, activations and biases of every kind lie inside; sparse and dense layers differ only between segments. What a model
multiplies by is folded: into the embedding's scales (PackedEmbedding), into the final norm (logits / 8, exact for a power of
two: int8 activations scale along), and masked ids into the head's bias (PackedModel).

With our own attention ("native") segments are told to our delegate (tiled.py): q, k and v leave as one fused product and are
rotated by the kernel. With ExecuTorch's ("stock") a segment is lowered once with stand-in weights and stamped with each layer's
own (stamp.py), and q and k are rotated here: they are split into their rotary halves, so that rotating needs no slicing, which
XNNPACK can't do for a length known only at run time. Tensors inside are [T, ...].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from phi3mobile.export.packed import HEAD as HEAD_NAME
from phi3mobile.export.packed import PackedModel
from phi3mobile.export.targets.executorch.layers import ConstantLinear, Gegelu, LayerNorm, Norm, Rounded, SwiGLU
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.modules import GELU_SLOPE
from phi3mobile.models.pieces import Block
from phi3mobile.models.quantized import Packed, quantize_activation
from phi3mobile.models.tensors import ATTENTION_NORM, DOWN, FINAL_NORM, GATE_UP, HEAD, MLP_NORM, QKV, O

NORMS = {"rmsnorm": Norm, "layernorm": LayerNorm}
ACTIVATIONS: dict[str, Callable[[Block], SwiGLU | Gegelu]] = {
    "swiglu": lambda block: SwiGLU(),
    "gegelu": lambda block: Gegelu(block.limit),
}
# What an activation takes as inputs, as norms' weights are.
CONSTANTS: dict[str, list[float]] = {"swiglu": [], "gegelu": [GELU_SLOPE]}


@dataclass(frozen=True)
class Part:
    """One matrix of a segment: the linear of a role in a layer (or `step` behind it), whole or some of its rows."""

    role: str
    rows: torch.Tensor | slice | None = None
    step: int = 0

    def name(self, config: DecoderConfig, layer: int) -> str:
        return HEAD_NAME if self.role == HEAD else config.tensor(self.role, layer + self.step).name


def _rows(config: DecoderConfig) -> dict[str, torch.Tensor]:
    """Row numbers of the fused projection: of q [H, D], of k and v [Hkv, D]."""
    fused = config.tensor(QKV, 0)
    numbers = torch.arange(fused.shape[0])
    return {name: numbers[rows].view(-1, config.head_dim) for name, rows in fused.rows.items()}


def _projections(config: DecoderConfig, step: int) -> dict[str, Part]:
    """q and k by rotary part, v: what attention of a layer + step needs."""
    rows, half = _rows(config), config.rotary_dim // 2
    parts = {}
    pieces = {"first": slice(0, half), "second": slice(half, 2 * half), "rest": slice(2 * half, config.head_dim)}
    for name in ("q", "k"):
        for piece, columns in pieces.items():
            if rows[name][:, columns].numel():
                parts[f"{name}_{piece}"] = Part(QKV, rows[name][:, columns].flatten(), step)
    parts["v"] = Part(QKV, rows["v"].flatten(), step)
    return parts


def _fused_projection(config: DecoderConfig, step: int) -> dict[str, Part]:
    """[q | k | v], its rows in another order if they are stored so."""
    rows = torch.cat([part.flatten() for part in _rows(config).values()])
    stored_so = torch.equal(rows, torch.arange(len(rows)))
    return {"qkv": Part(QKV, None if stored_so else rows, step)}


def _rest_of_layer(config: DecoderConfig) -> dict[str, Part]:
    rows = config.tensor(GATE_UP, 0).rows
    halves = {name: Part(GATE_UP, part if isinstance(part, slice) else torch.tensor(part)) for name, part in rows.items()}
    return {"o": Part(O), **halves, "down": Part(DOWN)}


START, MIDDLE, END = "start", "middle", "end"
TO_EXPERTS, FROM_EXPERTS, FROM_LAST = "to_experts", "from_experts", "from_last"


def segment_kinds(config: DecoderConfig) -> list[tuple[str, int]]:
    """The kinds of a model's segments in order, each with the layer that it begins in."""
    last = config.num_hidden_layers - 1
    if config.block(0).routing is None:
        return [(START, 0), *((MIDDLE, layer) for layer in range(last)), (END, last)]
    kinds = [(START, 0)]
    for layer in range(last + 1):
        kinds += [(TO_EXPERTS, layer), (FROM_LAST if layer == last else FROM_EXPERTS, layer)]
    return kinds


def segment_parts(config: DecoderConfig, kind: str, attention: str) -> dict[str, Part]:
    """Matrices of a segment of a kind; attention "stock" or "native"."""
    projections = _projections if attention == "stock" else _fused_projection
    if kind == "start":
        return projections(config, step=0)
    if kind == TO_EXPERTS:
        return {"o": Part(O)}
    if kind == FROM_EXPERTS:
        return projections(config, step=1)
    if kind == FROM_LAST:
        return {"head": Part(HEAD)}
    if kind == "middle":
        return _rest_of_layer(config) | projections(config, step=1)
    return _rest_of_layer(config) | {"head": Part(HEAD)}


def vector_names(config: DecoderConfig, kind: str, layer: int) -> list[str]:
    """The vectors that a segment takes as inputs, in the order of `vector_sizes`; "" for a constant of its activation."""

    def norm(role: str, layer: int | None) -> list[str]:
        tensor = config.tensor(role, layer)
        return [name for name in (tensor.name, f"{tensor.module}.bias") if name in config.tensors()]

    if kind == START:
        return norm(ATTENTION_NORM, layer)
    if kind == TO_EXPERTS:
        return norm(MLP_NORM, layer)
    if kind == FROM_EXPERTS:
        return norm(ATTENTION_NORM, layer + 1)
    if kind == FROM_LAST:
        return norm(FINAL_NORM, None)
    own = [*norm(MLP_NORM, layer), *("" for _ in CONSTANTS[config.block(layer).activation])]
    return own + (norm(ATTENTION_NORM, layer + 1) if kind == MIDDLE else norm(FINAL_NORM, None))


def segment_vectors(packed: PackedModel, kind: str, layer: int) -> list[torch.Tensor]:
    """What is behind `vector_names`.

    As inputs, because with XNNPACK's packed-weight cache the runtime frees constants that are not packed.
    """
    config = packed.config
    constants = iter(CONSTANTS[config.block(layer).activation])
    final = config.tensor(FINAL_NORM).module

    def vector(name: str) -> torch.Tensor:
        return packed.vector(name) / (config.logit_divisor if name.rpartition(".")[0] == final else 1)

    return [vector(name) if name else torch.tensor([next(constants)]) for name in vector_names(config, kind, layer)]


def vector_sizes(config: DecoderConfig, kind: str) -> list[int]:
    """Per norm its vectors; between the MLP's norm and the next one the activation's constants."""
    block = config.block(0)
    norm = [config.hidden_size] * NORMS[block.norm].vectors
    return [*norm, *([1] * len(CONSTANTS[block.activation])), *norm] if kind in (MIDDLE, END) else norm


# What is rounded for several matrices of a segment -> one of them: those of one tensor have one form.
READERS = {"to_heads": "v", "to_o": "o", "to_mlp": "up", "to_down": "down"}


class Segment(nn.Module):
    """One segment as XNNPACK computes it (ours: tiled.py) over given matrices: of the linears, those that its kind has."""

    v: ConstantLinear
    o: ConstantLinear
    gate: ConstantLinear
    up: ConstantLinear
    down: ConstantLinear
    head: ConstantLinear
    to_heads: Rounded
    to_o: Rounded
    to_mlp: Rounded
    to_down: Rounded

    def __init__(self, config: DecoderConfig, kind: str, matrices: dict[str, Packed]) -> None:
        super().__init__()
        self.config, self.kind = config, kind
        block = config.block(0)  # segments are alike in all layers
        self.norm = NORMS[block.norm](config.hidden_size, config.rms_norm_eps)
        self.activation = ACTIVATIONS[block.activation](block)
        for name, value in matrices.items():
            setattr(self, name, ConstantLinear(value))
        for name, reader in READERS.items():
            if reader in matrices:
                setattr(self, name, Rounded(matrices[reader]))

    def forward(self, x: torch.Tensor, *rest: torch.Tensor):
        """start: (x, *vectors, *rope) -> projected; middle: (x, attended, *vectors, *rope) -> (x, *projected);
        end: (x, attended, *vectors) -> logits.

        x [T, hidden], attended [T, H*D], logits [T, V]; vectors: see segment_vectors; rope is cos and sin [T, 1, R/2],
        projected is q [T, H, D], k [T, Hkv, D], v [T, Hkv*D].
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
        norm, (cos, sin) = rest[: self.norm.vectors], rest[self.norm.vectors :]
        seen = self.to_heads(self.norm(x, *norm))
        return self._rotated("q", seen, cos, sin), self._rotated("k", seen, cos, sin), self.v(*seen)

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


def example_inputs(config: DecoderConfig, kind: str, length: int) -> list[tuple[torch.Tensor, bool]]:
    """Inputs of a segment for T = length in the order of `Segment.forward`, each with whether T is its first dimension."""
    x = (torch.randn(length, config.hidden_size), True)
    attended = (torch.randn(length, config.num_attention_heads * config.head_dim), True)
    # All different objects: one given twice would be traced as one input.
    vectors = [(torch.rand(size), False) for size in vector_sizes(config, kind)]
    rope = [(torch.randn(length, 1, config.rotary_dim // 2), True) for _ in range(2)]
    return {START: [x, *vectors, *rope], MIDDLE: [x, attended, *vectors, *rope], END: [x, attended, *vectors]}[kind]


def projected_shapes(config: DecoderConfig, attention: str) -> list[tuple[int, ...]]:
    """Shapes of what a segment hands to attention, without the leading T."""
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if attention == "native":
        return [((heads + 2 * kv_heads) * dim,)]
    return [(heads, dim), (kv_heads, dim), (kv_heads * dim,)]
