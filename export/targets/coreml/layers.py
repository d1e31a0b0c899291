"""What the two families put around attention, in MIL: x [1, T, hidden], heads [1, H, T, D]."""

from __future__ import annotations

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var

from phi3mobile.export.packed import EMBEDDING, HEAD
from phi3mobile.export.targets.coreml import blocks
from phi3mobile.export.targets.coreml.matrices import Matrices
from phi3mobile.models.config import Phi3Config, Phi3SmallConfig
from phi3mobile.models.phi3small import GELU_SLOPE


def embedded(matrices: Matrices, tokens: Var) -> Var:
    """Rows of the packed table: int32 [1, T] -> [1, T, hidden]."""
    return mb.gather(x=matrices.matrix(EMBEDDING), indices=tokens, axis=0, validate_indices=False)


class Phi3Layers:
    """RMSNorm, SwiGLU, no biases; see models/phi3.py."""

    def __init__(self, config: Phi3Config, matrices: Matrices) -> None:
        self.config, self.matrices = config, matrices

    def embed(self, tokens: Var) -> Var:
        return embedded(self.matrices, tokens)

    def projected(self, x: Var, layer: int) -> tuple[Var, Var, Var]:
        """q [1, H, T, D], k and v [1, Hkv, T, D], not yet rotated."""
        heads, kv_heads, dim = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        base = f"model.layers.{layer}."
        qkv = self.matrices.linear(self._norm(x, base + "input_layernorm"), base + "self_attn.qkv_proj.weight")
        qkv = mb.reshape(x=qkv, shape=[1, x.shape[1], heads + 2 * kv_heads, dim])
        return mb.split(x=mb.transpose(x=qkv, perm=[0, 2, 1, 3]), split_sizes=[heads, kv_heads, kv_heads], axis=1)

    def finished(self, x: Var, attended: Var, layer: int, name: str) -> Var:
        """attended [1, T, H * D] -> the layer's output."""
        base, linear = f"model.layers.{layer}.", self.matrices.linear
        x = mb.add(x=x, y=linear(attended, base + "self_attn.o_proj.weight"))
        inner = linear(self._norm(x, base + "post_attention_layernorm"), base + "mlp.gate_up_proj.weight")
        gate, up = mb.split(x=inner, num_splits=2, axis=-1)
        return mb.add(x=x, y=linear(mb.mul(x=mb.silu(x=gate), y=up), base + "mlp.down_proj.weight"), name=name)

    def logits(self, x: Var, name: str) -> Var:
        return self.matrices.linear(self._norm(x, "model.norm"), HEAD, name=name)

    def _norm(self, x: Var, module: str) -> Var:
        return blocks.rms_norm(x, self.matrices.vector(f"{module}.weight"), self.config.rms_norm_eps)


class SmallLayers:
    """LayerNorm, gegelu, biases, multipliers; see models/phi3small.py (infinities do not pass the limit here)."""

    def __init__(self, config: Phi3SmallConfig, matrices: Matrices) -> None:
        self.config, self.matrices = config, matrices

    def embed(self, tokens: Var) -> Var:
        return mb.mul(x=embedded(self.matrices, tokens), y=np.float16(self.config.embedding_multiplier))

    def projected(self, x: Var, layer: int) -> tuple[Var, Var, Var]:
        """q [1, H, T, D], k and v [1, Hkv, T, D], not yet rotated; the projection's rows are [q.. | k | v] per KV head."""
        heads, kv_heads, dim = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        base, length, group = f"model.layers.{layer}.", x.shape[1], heads // kv_heads
        fused = self.matrices.linear(self._norm(x, base + "input_layernorm"), base + "self_attn.query_key_value.weight")
        fused = mb.reshape(x=fused, shape=[length, kv_heads, group + 2, dim])
        parts = mb.split(x=mb.transpose(x=fused, perm=[1, 2, 0, 3]), split_sizes=[group, 1, 1], axis=1)
        return tuple(
            mb.reshape(x=part, shape=[1, count, length, dim])
            for part, count in zip(parts, (heads, kv_heads, kv_heads), strict=True)
        )

    def finished(self, x: Var, attended: Var, layer: int, name: str) -> Var:
        """attended [1, T, H * D] -> the layer's output. Even rows of up_proj are the gelu branch, odd ones the linear."""
        base, linear, limit = f"model.layers.{layer}.", self.matrices.linear, np.float16(self.config.gegelu_limit)
        x = mb.add(x=x, y=linear(attended, base + "self_attn.dense.weight"))
        normed, up = self._norm(x, base + "post_attention_layernorm"), base + "mlp.up_proj.weight"
        gate = mb.minimum(x=linear(normed, up, slice(0, None, 2)), y=limit)
        plain = mb.maximum(x=mb.minimum(x=linear(normed, up, slice(1, None, 2)), y=limit), y=-limit)
        gelu = mb.mul(x=gate, y=mb.sigmoid(x=mb.mul(x=gate, y=np.float16(GELU_SLOPE))))
        inner = mb.mul(x=gelu, y=mb.add(x=plain, y=np.float16(1.0)))
        return mb.add(x=x, y=linear(inner, base + "mlp.down_proj.weight"), name=name)

    def logits(self, x: Var, name: str) -> Var:
        """The multiplier goes before the head, whose bias is the mask of ids that are never said."""
        normed = self._norm(x, "model.final_layernorm")
        return self.matrices.linear(mb.mul(x=normed, y=np.float16(1 / self.config.mup_width_multiplier)), HEAD, name=name)

    def _norm(self, x: Var, module: str) -> Var:
        weight, bias = (self.matrices.vector(f"{module}.{part}") for part in ("weight", "bias"))
        return blocks.layer_norm(x, weight, bias, self.config.rms_norm_eps)
