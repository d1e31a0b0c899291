"""What stands around attention, piece by piece, in MIL: x [1, T, hidden], heads [1, H, T, D]."""

from __future__ import annotations

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var

from phi3mobile.export.packed import EMBEDDING, HEAD
from phi3mobile.export.targets.coreml import blocks
from phi3mobile.export.targets.coreml.matrices import Matrices
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.modules import GELU_SLOPE
from phi3mobile.models.pieces import Block
from phi3mobile.models.tensors import ATTENTION_NORM, DOWN, FINAL_NORM, GATE_UP, MLP_NORM, QKV, O, Tensor


def embedded(matrices: Matrices, tokens: Var, **named: str) -> Var:
    """Rows of the packed table: int32 [1, T] -> [1, T, hidden]."""
    return mb.gather(x=matrices.matrix(EMBEDDING), indices=tokens, axis=0, validate_indices=False, **named)


def gate_and_up(matrices: Matrices, x: Var, fused: Tensor) -> tuple[Var, Var]:
    """Both halves [1, T, F] of an MLP's first linear, however its rows are stored."""
    if fused.stacked:
        gate, up = mb.split(x=matrices.linear(x, fused.name), num_splits=2, axis=-1)
        return gate, up
    rows = fused.rows["gate"], fused.rows["up"]
    if isinstance(rows[0], slice) and isinstance(rows[1], slice):
        return matrices.linear(x, fused.name, rows[0]), matrices.linear(x, fused.name, rows[1])
    both, numbers = matrices.linear(x, fused.name), np.arange(fused.shape[0], dtype=np.int32)
    gate, up = (mb.gather(x=both, indices=numbers[part], axis=-1, validate_indices=False) for part in rows)
    return gate, up


def swiglu(matrices: Matrices, x: Var, fused: Tensor, block: Block) -> Var:
    """silu(gate) * up of a normed x."""
    gate, up = gate_and_up(matrices, x, fused)
    return mb.mul(x=mb.silu(x=gate), y=up)


def gegelu(matrices: Matrices, x: Var, fused: Tensor, block: Block) -> Var:
    """models.modules.gegelu of a normed x; infinities do not pass the limit here."""
    gate, up = gate_and_up(matrices, x, fused)
    limit = np.float16(block.limit)
    gate = mb.minimum(x=gate, y=limit)
    up = mb.maximum(x=mb.minimum(x=up, y=limit), y=-limit)
    gelu = mb.mul(x=gate, y=mb.sigmoid(x=mb.mul(x=gate, y=np.float16(GELU_SLOPE))))
    return mb.mul(x=gelu, y=mb.add(x=up, y=np.float16(1.0)))


def rmsnorm(matrices: Matrices, x: Var, module: str, eps: float) -> Var:
    return blocks.rms_norm(x, matrices.vector(f"{module}.weight"), eps)


def layernorm(matrices: Matrices, x: Var, module: str, eps: float) -> Var:
    weight, bias = (matrices.vector(f"{module}.{part}") for part in ("weight", "bias"))
    return blocks.layer_norm(x, weight, bias, eps)


NORMS = {"rmsnorm": rmsnorm, "layernorm": layernorm}
ACTIVATIONS = {"swiglu": swiglu, "gegelu": gegelu}


class Layers:
    """The two halves of a layer around attention, the embedding and the head."""

    def __init__(self, config: DecoderConfig, matrices: Matrices) -> None:
        self.config, self.matrices = config, matrices

    def embed(self, tokens: Var, **named: str) -> Var:
        factor = self.config.embedding_multiplier
        if factor == 1:
            return embedded(self.matrices, tokens, **named)
        return _times(embedded(self.matrices, tokens), factor, **named)

    def projected(self, x: Var, layer: int) -> tuple[Var, Var, Var]:
        """q [1, H, T, D], k and v [1, Hkv, T, D], not yet rotated."""
        heads, kv_heads, dim = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        tensor = self.config.tensor(QKV, layer)
        fused = self.matrices.linear(self._norm(x, ATTENTION_NORM, layer), tensor.name)
        if not tensor.stacked and tensor.rows["q"] != _per_kv_head(heads // kv_heads, kv_heads, dim):
            numbers = np.arange(tensor.shape[0])
            order = np.concatenate([numbers[rows] for rows in tensor.rows.values()]).astype(np.int32)
            fused = mb.gather(x=fused, indices=order, axis=-1, validate_indices=False)
        elif not tensor.stacked:
            return self._ungrouped(fused)
        fused = mb.reshape(x=fused, shape=[1, x.shape[1], heads + 2 * kv_heads, dim])
        return mb.split(x=mb.transpose(x=fused, perm=[0, 2, 1, 3]), split_sizes=[heads, kv_heads, kv_heads], axis=1)

    def _ungrouped(self, fused: Var) -> tuple[Var, Var, Var]:
        """`projected` of rows [q.. | k | v] per KV head, without a gather."""
        heads, kv_heads, dim = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        length, group = fused.shape[1], heads // kv_heads
        fused = mb.reshape(x=fused, shape=[length, kv_heads, group + 2, dim])
        parts = mb.split(x=mb.transpose(x=fused, perm=[1, 2, 0, 3]), split_sizes=[group, 1, 1], axis=1)
        return tuple(
            mb.reshape(x=part, shape=[1, count, length, dim])
            for part, count in zip(parts, (heads, kv_heads, kv_heads), strict=True)
        )

    def finished(self, x: Var, attended: Var, layer: int, name: str) -> Var:
        """attended [1, T, H * D] -> the layer's output."""
        block, linear = self.config.block(layer), self.matrices.linear
        x = mb.add(x=x, y=linear(attended, self.config.tensor(O, layer).name))
        normed, up = self._norm(x, MLP_NORM, layer), self.config.tensor(GATE_UP, layer)
        inner = ACTIVATIONS[block.activation](self.matrices, normed, up, block)
        return mb.add(x=x, y=linear(inner, self.config.tensor(DOWN, layer).name), name=name)

    def logits(self, x: Var, name: str) -> Var:
        """The divisor goes before the head, whose bias is the mask of ids that are never said."""
        normed = _times(self._norm(x, FINAL_NORM, None), 1 / self.config.logit_divisor)
        return self.matrices.linear(normed, HEAD, name=name)

    def _norm(self, x: Var, role: str, layer: int | None) -> Var:
        kind = self.config.block(layer or 0).norm
        return NORMS[kind](self.matrices, x, self.config.tensor(role, layer).module, self.config.rms_norm_eps)


def _times(x: Var, factor: float, **named: str) -> Var:
    return x if factor == 1 else mb.mul(x=x, y=np.float16(factor), **named)


def _per_kv_head(group: int, kv_heads: int, dim: int) -> list[int]:
    """The rows of q where rows are [q.. | k | v] per KV head."""
    rows = np.arange((group + 2) * kv_heads * dim).reshape(kv_heads, group + 2, dim)
    return rows[:, :group].reshape(-1).tolist()
