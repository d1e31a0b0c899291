"""phi-3-small in fp32: one file, HF tensor names, KV cache inside. Reference for its exports.

LayerNorm and linears with biases, one fused projection with rows grouped by KV head, gegelu with interleaved halves, muP
multipliers, masked ids, and layers that alternate block-sparse and dense attention. RoPE and cache are those of phi3.py.
Formulas: modeling_phi3_small.py of microsoft/Phi-3-small-8k-instruct; parity with tests/reference_phi3small.py to 1e-4.
"""

from __future__ import annotations

import torch
from torch import nn

from phi3mobile.models.blocksparse import Pattern
from phi3mobile.models.config import Phi3SmallConfig
from phi3mobile.models.phi3 import Phi3ForCausalLM
from phi3mobile.models.rope import apply_rope, rope_rows

GELU_SLOPE = 1.702  # of the sigmoid that stands for the normal distribution
MASKED = torch.finfo(torch.float32).min  # logit of an id that the model never says


def gegelu(gate: torch.Tensor, linear: torch.Tensor, limit: float) -> torch.Tensor:
    """gelu(gate) * (linear + 1), both [..., F] and kept within `limit`; infinities pass, as in the released code."""
    gate = torch.where(gate.isinf(), gate, gate.clamp(max=limit))
    linear = torch.where(linear.isinf(), linear, linear.clamp(-limit, limit))
    return gate * torch.sigmoid(GELU_SLOPE * gate) * (linear + 1)


def visible(pattern: Pattern | None, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Which keys each query sees: bool [H, T, S] (H = 1 where all heads are alike) for positions int64 [T] and [S]."""
    causal = keys[None, :] <= queries[:, None]
    if pattern is None:
        return causal[None]
    query_blocks, key_blocks = queries // pattern.block, keys // pattern.block
    local = query_blocks[:, None] - key_blocks[None, :] < pattern.local_blocks
    shifts = torch.arange(pattern.heads) * pattern.head_step
    strided = (key_blocks[None, :] + shifts[:, None] + 1) % pattern.stride == 0  # [H, S]
    return causal & (local | strided[:, None, :])


def attend(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, position: int, scale: float, pattern: Pattern | None
) -> torch.Tensor:
    """q [1, T, H, D] over cache rows [0, position + T), caches [1, C, Hkv, D] -> [1, T, H*D]; pattern None: causal."""
    _, length, heads, dim = q.shape
    group, rows = heads // k_cache.shape[2], position + length
    k = k_cache[0, :rows].repeat_interleave(group, dim=1)  # query head h reads KV head h // group
    v = v_cache[0, :rows].repeat_interleave(group, dim=1)
    scores = torch.einsum("thd,shd->hts", q[0], k) * scale
    seen = visible(pattern, torch.arange(position, rows), torch.arange(rows))
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, v).reshape(1, length, heads * dim)


class SmallAttention(nn.Module):
    """The projections of one attention block; rows of query_key_value are [q.. | k | v] per KV head."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.query_key_value = nn.Linear(hidden, hidden + 2 * config.num_key_value_heads * config.head_dim)
        self.dense = nn.Linear(hidden, hidden)


class SmallMLP(nn.Module):
    """x [..., hidden] -> [..., hidden]; even rows of up_proj are the gelu branch, odd ones the linear branch."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.limit = config.gegelu_limit
        self.up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(x)
        return self.down_proj(gegelu(up[..., 0::2], up[..., 1::2], self.limit))


class SmallDecoderLayer(nn.Module):
    """One block, in two halves around attention."""

    def __init__(self, config: Phi3SmallConfig, index: int) -> None:
        super().__init__()
        self.config, self.pattern = config, config.blocksparse(index)
        self.self_attn = SmallAttention(config)
        self.mlp = SmallMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)

    def attention_inputs(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [1, T, hidden], cos and sin [T, R] -> rotated q [1, T, H, D], rotated k and plain v [1, T, Hkv, D]."""
        kv_heads, dim = self.config.num_key_value_heads, self.config.head_dim
        grouped = self.self_attn.query_key_value(self.input_layernorm(x)).unflatten(-1, (kv_heads, -1, dim))
        q, k, v = grouped[..., :-2, :].flatten(2, 3), grouped[..., -2, :], grouped[..., -1, :]
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v

    def attention_output(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """x [1, T, hidden] and the heads' results [1, T, H*D] -> the layer's output [1, T, hidden]."""
        x = x + self.self_attn.dense(attended)
        return x + self.mlp(self.post_attention_layernorm(x))


class SmallModel(nn.Module):
    """Embedding, layers and final norm: only the names; Phi3SmallForCausalLM.forward runs them."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(SmallDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)


class Phi3SmallForCausalLM(Phi3ForCausalLM):
    """The whole decoder for one sequence; making, filling and resetting it are Phi3ForCausalLM's."""

    decoder = SmallModel

    @torch.no_grad()
    def forward(self, tokens: torch.Tensor, position: int = 0, long: bool = False) -> torch.Tensor:
        """See Phi3ForCausalLM.forward. Logits of masked ids are the least float32."""
        config, end = self.config, self._check(tokens, position)
        in_long = long or (config.original_context is not None and end > config.original_context)
        rows = rope_rows(config, self.context, torch.arange(position, end), in_long)
        cos, sin = self.cos[rows], self.sin[rows]
        x = self.model.embed_tokens(tokens) * config.mup_embedding_multiplier
        for layer in self.model.layers:
            q, k, v = layer.attention_inputs(x, cos, sin)
            layer.k_cache[:, position:end], layer.v_cache[:, position:end] = k, v
            attended = attend(q, layer.k_cache, layer.v_cache, position, config.attention_scale, layer.pattern)
            x = layer.attention_output(x, attended)
        self.filled = end
        logits = self.lm_head(self.model.final_layernorm(x)) / config.mup_width_multiplier
        logits[..., list(config.dummy_token_indices)] = MASKED
        return logits
