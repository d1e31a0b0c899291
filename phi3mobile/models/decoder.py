"""A decoder in fp32 with its KV cache inside, of whatever family: the reference for every export.

A layer is two pure halves around attention, because targets lower attention in their own way; the halves are the family's.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from phi3mobile.errors import InputError
from phi3mobile.models.attend import attend
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.modules import Halves, norm
from phi3mobile.models.registry import family_of
from phi3mobile.models.rope import rope_rows, rope_tables
from phi3mobile.models.tensors import FINAL_NORM

DEFAULT_CONTEXT = 4096  # 3 GiB of fp32 KV cache for mini; its whole 128k would be 96 GiB
MASKED = torch.finfo(torch.float32).min  # logit of an id that the model never says


class Trunk(nn.Module):
    """Embedding, layers and final norm under the family's names; Decoder.forward runs them."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layer = family_of(config).Layer
        self.layers = nn.ModuleList(layer(config, index) for index in range(config.num_hidden_layers))
        self._norm = config.tensor(FINAL_NORM).module.removeprefix("model.")
        self.add_module(self._norm, norm(config))

    @property
    def final_norm(self) -> nn.Module:
        return self.get_submodule(self._norm)


class Decoder(nn.Module):
    """The whole decoder for one sequence. `context`: positions that the KV cache holds (default: at most 4,096).

    May be built under torch.device("meta"); after filling its weights, call `allocate()` outside it.
    """

    cos: torch.Tensor  # of rope, by row (rope.rope_rows)
    sin: torch.Tensor

    def __init__(self, config: DecoderConfig, context: int | None = None) -> None:
        super().__init__()
        context = min(config.max_position_embeddings, DEFAULT_CONTEXT) if context is None else context
        if not 1 <= context <= config.max_position_embeddings:
            raise InputError(
                f"context {context}: this model takes 1 to {config.max_position_embeddings} (max_position_embeddings)"
            )
        self.config, self.context, self.filled = config, context, 0
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias is not None)
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
        earlier chunks with `long=True`, or run it again from position 0 when it first grows past. Logits of masked ids are
        the least float32. Raises InputError for tokens outside the vocabulary or past the context, ValueError for a
        position past the rows already filled.
        """
        end = self._check(tokens, position)
        original = self.config.original_context
        in_long = long or (original is not None and end > original)
        rows = rope_rows(self.config, self.context, torch.arange(position, end), in_long)
        cos, sin = self.cos[rows], self.sin[rows]
        x = self.model.embed_tokens(tokens) * self.config.embedding_multiplier
        for index, layer in enumerate(cast("list[Halves]", self.model.layers)):
            q, k, v = layer.attention_inputs(x, cos, sin)
            layer.k_cache[:, position:end], layer.v_cache[:, position:end] = k, v
            block, scale = self.config.block(index), self.config.attention_scale
            attended = attend(q, layer.k_cache, layer.v_cache, position, scale, block.window, block.pattern)
            x = layer.attention_output(x, attended)
        self.filled = end
        logits = self.lm_head(self.model.final_norm(x)) / self.config.logit_divisor
        logits[..., list(self.config.masked_ids)] = MASKED
        return logits

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
