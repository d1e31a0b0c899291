"""A vision tower in pieces that XNNPACK takes whole: the patches, one layer, the projector. Each becomes one delegate.

All layers are alike, so one is lowered and stamped for the others (stamp.py), as a decoder's segments are. Tensors inside are
[577, ...], a layer's of several views [views * 577, ...]: positions are known beforehand, so heads can be cut out of products.
Biases of linears belong to their matrices; every other vector is an input (segments.segment_vectors says why).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.export.packed_vision import PackedVision
from phi3mobile.export.targets.executorch.layers import ConstantLinear, LayerNorm, Rounded
from phi3mobile.models.modules import GELU_SLOPE
from phi3mobile.models.quantized import Packed
from phi3mobile.models.vision_config import PROJECTOR, TOWER, VisionConfig, layer_prefix

Matrices = dict[str, Packed | torch.Tensor]


class Patches(nn.Module):
    """(view [1, 3, 336, 336], class token [1, C], positions [576, C], norm's weight and bias [C]) -> [1, 577, C]."""

    weight: torch.Tensor  # [C, 3 * 14 * 14]

    def __init__(self, config: VisionConfig, matrices: Matrices) -> None:
        super().__init__()
        self.side, self.patch = config.image_size // config.patch_size, config.patch_size
        patch = matrices["patch"]
        assert isinstance(patch, torch.Tensor), "patches stay float32"
        self.register_buffer("weight", patch)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, view: torch.Tensor, first: torch.Tensor, positions: torch.Tensor, *norm: torch.Tensor) -> torch.Tensor:
        squares = view.view(3, self.side, self.patch, self.side, self.patch).permute(1, 3, 0, 2, 4)
        patches = functional.linear(squares.reshape(self.side**2, -1), self.weight)
        x = self.norm(torch.cat([first, patches + positions]), *norm)
        return x.view(1, *x.shape)


class ClipSegment(nn.Module):
    """(x [V * 577, C], weight and bias [C] of both norms, quick GELU's slope [1], the scale of scores [1]) -> [V * 577, C].

    Patches see those of their own view, of which there are V.
    """

    q: ConstantLinear
    k: ConstantLinear
    v: ConstantLinear
    out: ConstantLinear
    fc1: ConstantLinear
    fc2: ConstantLinear

    def __init__(self, config: VisionConfig, matrices: Matrices, views: int = 1) -> None:
        super().__init__()
        self.views, self.heads, self.width = views, config.num_attention_heads, config.hidden_size
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        packed = _add_linears(self, matrices)
        self.to_heads, self.to_out = Rounded(packed["q"]), Rounded(packed["out"])
        self.to_fc1, self.to_fc2 = Rounded(packed["fc1"]), Rounded(packed["fc2"])

    def forward(self, x: torch.Tensor, *vectors: torch.Tensor) -> torch.Tensor:
        norm1, norm2, (slope, scale) = vectors[:2], vectors[2:4], vectors[4:]
        seen = self.to_heads(self.norm(x, *norm1))
        q, k, v = self._by_head(self.q(*seen) * scale), self._by_head(self.k(*seen)), self._by_head(self.v(*seen))
        weights = torch.softmax(torch.bmm(q, k.permute(0, 2, 1)), dim=-1)
        attended = torch.bmm(weights, v).view(self.views, self.heads, -1, self.width // self.heads)
        attended = attended.permute(0, 2, 1, 3).reshape(-1, self.width)
        x = x + self.out(*self.to_out(attended))
        inner = self.fc1(*self.to_fc1(self.norm(x, *norm2)))
        return x + self.fc2(*self.to_fc2(inner * torch.sigmoid(inner * slope)))

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(self.views, -1, self.heads, self.width // self.heads).permute(0, 2, 1, 3)
        return x.reshape(self.views * self.heads, -1, self.width // self.heads)


class ProjectSegment(nn.Module):
    """rows [T, 4 C] -> [T, the decoder's hidden]."""

    first: ConstantLinear
    second: ConstantLinear

    def __init__(self, config: VisionConfig, matrices: Matrices) -> None:
        super().__init__()
        packed = _add_linears(self, matrices)
        self.to_first, self.to_second = Rounded(packed["first"]), Rounded(packed["second"])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.second(*self.to_second(functional.gelu(self.first(*self.to_first(rows)))))


def _add_linears(module: nn.Module, matrices: Matrices) -> dict[str, Packed]:
    packed = {name: value for name, value in matrices.items() if isinstance(value, Packed)}
    for name, value in packed.items():
        setattr(module, name, ConstantLinear(value))
    return packed


PATCHES, LAYER, PROJECT = "patches", "clip_layer", "project"


def matrices_of(packed: PackedVision, kind: str, layer: int = 0) -> Matrices:
    """A segment's matrices."""
    if kind == PATCHES:
        return {"patch": packed.vector(f"{TOWER}embeddings.patch_embedding.weight").flatten(1)}
    if kind == PROJECT:
        return {"first": packed.matrix(f"{PROJECTOR}0.weight"), "second": packed.matrix(f"{PROJECTOR}2.weight")}
    base = layer_prefix(layer)
    heads = {name: packed.matrix(f"{base}self_attn.{name}_proj.weight") for name in ("q", "k", "v", "out")}
    return {**heads, **{name: packed.matrix(f"{base}mlp.{name}.weight") for name in ("fc1", "fc2")}}


def vectors_of(packed: PackedVision, kind: str, layer: int = 0) -> list[torch.Tensor]:
    """What a segment takes behind its first input."""
    if kind == PROJECT:
        return []
    if kind == PATCHES:
        positions = packed.vector(f"{TOWER}embeddings.position_embedding.weight")
        first = packed.vector(f"{TOWER}embeddings.class_embedding") + positions[:1]
        return [first, positions[1:].contiguous(), *_norm(packed, f"{TOWER}pre_layrnorm")]
    base, config = layer_prefix(layer), packed.config
    norms = [*_norm(packed, f"{base}layer_norm1"), *_norm(packed, f"{base}layer_norm2")]
    return [*norms, torch.tensor([GELU_SLOPE]), torch.tensor([config.head_dim**-0.5])]


def _norm(packed: PackedVision, module: str) -> list[torch.Tensor]:
    return [packed.vector(f"{module}.weight"), packed.vector(f"{module}.bias")]


def first_input(config: VisionConfig, kind: str, views: int = 1, rows: int = 3) -> torch.Tensor:
    """An example of it: one view, positions of `views`, or `rows` of the projector's."""
    side, positions = config.image_size, views * config.positions
    shapes = {PATCHES: (1, 3, side, side), LAYER: (positions, config.hidden_size), PROJECT: (rows, config.merged_size)}
    return torch.randn(shapes[kind])


def segment(config: VisionConfig, kind: str, matrices: Matrices, views: int = 1) -> nn.Module:
    """A segment of that kind; a layer takes so many views at once."""
    if kind == LAYER:
        return ClipSegment(config, matrices, views)
    return Patches(config, matrices) if kind == PATCHES else ProjectSegment(config, matrices)


def output_shape(config: VisionConfig, kind: str) -> tuple[int, ...]:
    """Of what a segment makes, without the first dimension, which is its first input's."""
    last = (config.hidden_size,)
    return {PATCHES: (config.positions, *last), LAYER: last, PROJECT: (config.projection_size,)}[kind]
