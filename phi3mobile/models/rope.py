"""Rotary position embedding with LongRoPE: tables, row choice, rotation. Pure functions, traceable without branches.

Formulas: arXiv 2402.13753 and the released Phi-3 configs. inv_freq[i] = 1 / (factor[i] * theta^(2i / rotary_dim)), with
the short factors up to the original context and the long ones past it, for the whole sequence at once; cos and sin
carry mscale in both regimes.
"""

from __future__ import annotations

import torch

from phi3mobile.models.config import DecoderConfig


def rope_tables(config: DecoderConfig, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, each float32 [rows, rotary_dim / 2].

    Where the config switches at its original context, rows are [min(context, original) short | context long], so that
    one graph serves both regimes by row number (`rope_rows`); else rows = context. Angles are computed in float64: in
    float32 they would be off by about 1e-3 at 8k positions and 1e-2 at 128k.
    """
    short_mscale, long_mscale = config.mscales
    if config.rope_scaling is None:
        return _table(config, (1.0,) * (config.rotary_dim // 2), 1.0, context)
    short = _table(config, config.rope_scaling.short_factor, short_mscale, short_rows(config, context))
    if config.original_context is None:
        return short
    long = _table(config, config.rope_scaling.long_factor, long_mscale, context)
    return torch.cat([short[0], long[0]]), torch.cat([short[1], long[1]])


def _table(config: DecoderConfig, factors: tuple[float, ...], mscale: float, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float64) / config.rotary_dim
    inv_freq = 1.0 / (torch.tensor(factors, dtype=torch.float64) * config.rope_theta**exponents)
    angles = torch.arange(rows, dtype=torch.float64)[:, None] * inv_freq
    return (angles.cos() * mscale).float(), (angles.sin() * mscale).float()


def short_rows(config: DecoderConfig, context: int) -> int:
    """Rows of the short table for a cache of `context` positions: the number of the first long row, if there is one."""
    return context if config.original_context is None else min(context, config.original_context)


def rope_rows(
    config: DecoderConfig, context: int, positions: torch.Tensor, long: torch.Tensor | bool | None = None
) -> torch.Tensor:
    """Table rows int64 [T] of increasing `positions` int64 [T]: tensor arithmetic only, so it can be traced.

    `long` (a bool, or a bool tensor [] or [1]) forces a regime; None decides by the last position, as the model does.
    """
    if config.original_context is None:
        return positions
    if long is None:
        long = positions[-1:] >= config.original_context
    return positions + torch.as_tensor(long).to(torch.int64) * short_rows(config, context)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first 2R dimensions of x [B, T, H, D] by cos and sin [T, R] (NeoX halves); pass the others through."""
    half = cos.shape[-1]
    cos, sin = cos[:, None, :], sin[:, None, :]  # over heads
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat(turned if 2 * half == x.shape[-1] else [*turned, rest], dim=-1)
