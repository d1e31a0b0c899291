"""The Phi-3 decoder in fp32: one file, HF tensor names, KV cache inside.

Reference for every export: parity with transformers' Phi3ForCausalLM (and Llama, Mistral once fused) is tested to 1e-4.
A layer is two pure halves around attention, because targets lower attention in their own way.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.errors import InputError
from phi3mobile.models.config import Phi3Config
from phi3mobile.models.rope import apply_rope, rope_rows, rope_tables

DEFAULT_CONTEXT = 4096  # 3 GiB of fp32 KV cache for mini; its whole 128k would be 96 GiB


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, x [..., hidden]."""

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """The projections of one attention block; rows of qkv_proj are [Q | K | V]."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, queries + 2 * keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)


class MLP(nn.Module):
    """SwiGLU, x [..., hidden] -> [..., hidden]; rows of gate_up_proj are [gate | up]."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(functional.silu(gate) * up)


class DecoderLayer(nn.Module):
    """One block; what lies between its two halves is `attend`, or a target's own attention."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        self.config = config
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def attention_inputs(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [1, T, hidden], cos and sin [T, R] -> rotated q [1, T, H, D], rotated k and plain v [1, T, Hkv, D]."""
        heads, kv_heads, dim = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        qkv = self.self_attn.qkv_proj(self.input_layernorm(x))
        q, k, v = qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
        q = apply_rope(q.unflatten(-1, (heads, dim)), cos, sin)
        k = apply_rope(k.unflatten(-1, (kv_heads, dim)), cos, sin)
        return q, k, v.unflatten(-1, (kv_heads, dim))

    def attention_output(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """x [1, T, hidden] and the heads' results [1, T, H*D] -> the layer's output [1, T, hidden]."""
        x = x + self.self_attn.o_proj(attended)
        return x + self.mlp(self.post_attention_layernorm(x))


def attend(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, position: int, window: int | None = None
) -> torch.Tensor:
    """Causal attention of q [1, T, H, D] over cache rows [0, position + T), caches [1, C, Hkv, D] -> [1, T, H*D].

    The query at position p sees keys k <= p, and with a window only k > p - window (transformers 5: itself included).
    """
    _, length, heads, dim = q.shape
    kv_heads, rows = k_cache.shape[2], position + length
    k, v = k_cache[0, :rows], v_cache[0, :rows]
    grouped = q[0].unflatten(1, (kv_heads, heads // kv_heads))  # query head h reads KV head h // group
    scores = torch.einsum("tkgd,skd->kgts", grouped, k) * dim**-0.5
    query, key = torch.arange(position, rows)[:, None], torch.arange(rows)[None, :]
    visible = key <= query
    if window is not None:
        visible &= key > query - window
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("kgts,skd->tkgd", weights, v).reshape(1, length, heads * dim)


class Phi3Model(nn.Module):
    """Embedding, layers and final norm: only the names; Phi3ForCausalLM.forward runs them."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Phi3ForCausalLM(nn.Module):
    """The whole decoder for one sequence. `context`: positions that the KV cache holds (default: at most 4,096).

    May be built under torch.device("meta"); after filling its weights, call `allocate()` outside it.
    """

    decoder = Phi3Model

    def __init__(self, config: Phi3Config, context: int | None = None) -> None:
        super().__init__()
        context = min(config.max_position_embeddings, DEFAULT_CONTEXT) if context is None else context
        if not 1 <= context <= config.max_position_embeddings:
            raise InputError(
                f"context {context}: this model takes 1 to {config.max_position_embeddings} (max_position_embeddings)"
            )
        self.config, self.context, self.filled = config, context, 0
        self.model = self.decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.allocate()

    def allocate(self) -> None:
        """Make the buffers on the default device: rope tables, and per layer the caches [1, context, Hkv, D]."""
        cos, sin = rope_tables(self.config, self.context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        shape = (1, self.context, self.config.num_key_value_heads, self.config.head_dim)
        for layer in self.model.layers:
            layer.register_buffer("k_cache", torch.zeros(shape), persistent=False)
            layer.register_buffer("v_cache", torch.zeros(shape), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Forget the sequence; rows of the caches are overwritten by the next one."""
        self.filled = 0

    @torch.no_grad()
    def forward(self, tokens: torch.Tensor, position: int = 0, long: bool = False) -> torch.Tensor:
        """Run tokens int64 [1, T] at `position`; logits float32 [1, T, V]; later cache rows are overwritten.

        A sequence that ends past the original context uses the long RoPE factors from its first token on: run its
        earlier chunks with `long=True`, or run it again from position 0 when it first grows past. Raises InputError for
        tokens outside the vocabulary or past the context, ValueError for a position past the rows already filled.
        """
        end = self._check(tokens, position)
        original = self.config.original_context
        in_long = long or (original is not None and end > original)
        rows = rope_rows(self.config, self.context, torch.arange(position, end), in_long)
        cos, sin = self.cos[rows], self.sin[rows]
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            q, k, v = layer.attention_inputs(x, cos, sin)
            layer.k_cache[:, position:end], layer.v_cache[:, position:end] = k, v
            attended = attend(q, layer.k_cache, layer.v_cache, position, self.config.sliding_window)
            x = layer.attention_output(x, attended)
        self.filled = end
        return self.lm_head(self.model.norm(x))

    def _check(self, tokens: torch.Tensor, position: int) -> int:
        if tokens.ndim != 2 or tokens.shape[0] != 1 or tokens.shape[1] < 1 or tokens.dtype != torch.int64:
            raise InputError(f"tokens are {tokens.dtype} {list(tokens.shape)}; they must be int64 [1, T] with T >= 1")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocab_size:
            raise InputError(f"token {low if low < 0 else high}: ids run from 0 to {self.config.vocab_size - 1}")
        end = position + tokens.shape[1]
        if end > self.context:
            raise InputError(f"{end} tokens do not fit the context of {self.context}; load with a larger context")
        if not 0 <= position <= self.filled:
            raise ValueError(f"position {position}: the cache holds {self.filled} rows")
        return end
