"""Our operators `phi3mobile::*`: definition, eager reference and fake implementation. Kernels: export/kernels.

`blocksparse_attention` and `blocksparse_attention_int8` write the new keys and values into a KV cache, in place, and
attend over it. Dense causal attention (optionally windowed) is the form with `block = 0`, the only one so far.

Shapes, for both: q float32 [1, T, H, D], already rotated; k, v float32 [1, T, Hkv, D]; caches [1, Hkv, S, D], float32
or int8; scales float32 [1, Hkv, S]; input_pos int64 [1]: position of the first of the T tokens; result float32 [1, T,
H * D].
H is a multiple of Hkv (query head h reads KV head h // (H // Hkv)), D a multiple of 16 up to 256.
window > 0: a query at position p sees positions > p - window. scale multiplies q @ k.
int8: symmetric per token and head, scale = max|x| / 127, rounded half to even.
"""

from __future__ import annotations

import torch

_library = torch.library.Library("phi3mobile", "DEF")

# block, local_blocks and stride are room for the blocksparse form: a .pte that is out there can't get new arguments.
_REST = "Tensor input_pos, int window, float scale, int block=0, int local_blocks=0, int stride=0"
_SCHEMAS = {
    "blocksparse_attention": "Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, " + _REST,
    "blocksparse_attention_int8": "Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, "
    "Tensor(c!) k_scale, Tensor(d!) v_scale, " + _REST,
}


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 per row: float32 [..., D] -> int8 [..., D] and scales float32 [...]; a zero row has scale 0."""
    most = x.abs().amax(-1)
    limit = torch.full_like(most, 127.0)  # as a plain float it would become a multiplication by 1 / most
    inverse = torch.where(most > 0, limit / most, 0.0)
    return torch.round(x * inverse[..., None]).clamp(-127, 127).to(torch.int8), most / 127.0


def _attend(q, keys, values, start: int, window: int, scale: float) -> torch.Tensor:
    """Causal attention of q [1, T, H, D] at positions start.. over keys and values [Hkv, start + T, D]."""
    _, count, heads, width = q.shape
    kv_heads, depth, _ = keys.shape
    grouped = q[0].transpose(0, 1).reshape(kv_heads, (heads // kv_heads) * count, width)
    scores = (grouped @ keys.transpose(1, 2) * scale).view(heads, count, depth)
    behind = (start + torch.arange(count))[:, None] - torch.arange(depth)  # how far the key lies before the query
    hidden = (behind < 0) | (behind >= window) if window > 0 else behind < 0
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).view(kv_heads, -1, depth)
    return (weights @ values).view(heads, count, width).transpose(0, 1).reshape(1, count, heads * width)


def _check(q, k, k_cache, input_pos, block: int) -> tuple[int, int]:
    """Start and end positions, once they are known to fit."""
    if block:
        raise NotImplementedError("blocksparse attention: block must be 0 (dense) in this version")
    start, end = int(input_pos[0]), int(input_pos[0]) + q.shape[1]
    if start < 0 or end > k_cache.shape[2]:
        raise IndexError(f"positions {start}..{end - 1} are outside the KV cache of {k_cache.shape[2]}")
    if q.shape[2] % k.shape[2] or q.shape[3] % 16 or q.shape[3] > 256:
        raise ValueError(f"attention: q {list(q.shape)} with k {list(k.shape)} is not supported")
    return start, end


def blocksparse_attention(
    q, k, v, k_cache, v_cache, input_pos, window: int, scale: float,
    block: int = 0, local_blocks: int = 0, stride: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Eager reference, float32 cache. Shapes: see the module."""
    start, end = _check(q, k, k_cache, input_pos, block)
    k_cache[0, :, start:end] = k[0].transpose(0, 1)
    v_cache[0, :, start:end] = v[0].transpose(0, 1)
    return _attend(q, k_cache[0, :, :end], v_cache[0, :, :end], start, window, scale)


def blocksparse_attention_int8(
    q, k, v, k_cache, v_cache, k_scale, v_scale, input_pos, window: int, scale: float,
    block: int = 0, local_blocks: int = 0, stride: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Eager reference, int8 cache. Shapes: see the module."""
    start, end = _check(q, k, k_cache, input_pos, block)
    for rows, cache, scales in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        cache[0, :, start:end], scales[0, :, start:end] = quantize_rows(rows[0].transpose(0, 1))
    keys = k_cache[0, :, :end].float() * k_scale[0, :, :end, None]
    values = v_cache[0, :, :end].float() * v_scale[0, :, :end, None]
    return _attend(q, keys, values, start, window, scale)


def _fake(q, *_args, **_kwargs) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[1], q.shape[2] * q.shape[3])


def _register(eager) -> None:
    name = eager.__name__
    _library.define(f"{name}({_SCHEMAS[name]}) -> Tensor")
    _library.define(f"{name}.out({_SCHEMAS[name]}, *, Tensor(z!) out) -> Tensor(z!)")

    def into(*args, out, **kwargs):
        return out.copy_(eager(*args, **kwargs))

    _library.impl(name, eager, "CompositeExplicitAutograd")
    _library.impl(f"{name}.out", into, "CompositeExplicitAutograd")
    torch.library.register_fake(f"phi3mobile::{name}", _fake, lib=_library)


_register(blocksparse_attention)
_register(blocksparse_attention_int8)
