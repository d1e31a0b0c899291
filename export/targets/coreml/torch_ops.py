"""Our operators for programs that reach Core ML through torch (ExecuTorch's delegate, ct.convert): definition and MIL lowering.

All are functional, and mean what models/rope.py and models/blocksparse.py say. x [1, H, T, D]; caches [1, Hkv, S, D];
position int64 [1]. They exist while a program is lowered: Core ML takes all of them, so no runtime needs a kernel.
"""

from __future__ import annotations

import numpy as np
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil import register_torch_op
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import types

from phi3mobile.export.targets.coreml import blocks, sparse
from phi3mobile.models import ops as eager  # the library phi3mobile:: is defined there
from phi3mobile.models.blocksparse import Pattern
from phi3mobile.models.rope import apply_rope

_library = torch.library.Library("phi3mobile", "FRAGMENT")
_PATTERN = "int block=0, int local_blocks=0, int stride=0, int head_step=0"


def _define(schema: str, run, fake, lower) -> None:
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"phi3mobile::{name}", fake, lib=_library)
    register_torch_op(lower, torch_alias=[f"phi3mobile::{name}", f"phi3mobile.{name}"], override=True)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return apply_rope(x.transpose(1, 2), cos, sin).transpose(1, 2).contiguous()


def phi3mobile_rotated(context, node) -> None:
    x, cos, sin = _get_inputs(context, node, expected=3)
    context.add(mb.identity(x=blocks.rope(x, cos, sin), name=node.name))


def _with_rows(cache: torch.Tensor, rows: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    start = int(position[0])
    updated = cache.clone()
    updated[:, :, start : start + rows.shape[2]] = rows
    return updated


def phi3mobile_with_rows(context, node) -> None:
    cache, rows, position = _get_inputs(context, node, expected=3)
    begin, end = blocks.span(_int32(position), rows.shape[2], cache.shape)
    context.add(blocks.updated_rows(cache, rows, begin, end, name=node.name))


def _attended(q, keys, values, position, window, scale, block=0, local_blocks=0, stride=0, head_step=0) -> torch.Tensor:
    pattern = Pattern(q.shape[1], keys.shape[1], block, local_blocks, stride, head_step) if block else None
    start = int(position[0])
    rows = slice(0, start + q.shape[2])
    inputs = (q[0].transpose(0, 1).float(), keys[0, :, rows].float(), values[0, :, rows].float())
    return eager._attend(*inputs, start, window, scale, pattern)[None].to(q.dtype)


def phi3mobile_attended(context, node) -> None:
    q, keys, values, position, *rest = _get_inputs(context, node, min_expected=6)
    window, scale, *numbers = (item.val for item in rest)
    heads, kv_heads, rows = q.shape[1], keys.shape[1], keys.shape[2]
    queries = mb.add(x=_int32(position), y=np.arange(q.shape[2], dtype=np.int32))
    everything, dtype = mb.const(val=np.arange(rows, dtype=np.int32)), types.builtin_to_string(q.dtype)
    block, local_blocks, stride, head_step = [*map(int, numbers), 0, 0, 0, 0][:4]  # a graph leaves out what is the default
    pattern = Pattern(heads, kv_heads, block, local_blocks, stride, head_step) if block else None
    if pattern is not None and sparse.hides(pattern, rows, q.shape[2]):
        seen = sparse.scope(pattern, queries, everything, rows, dtype)
        result = sparse.attend(q, keys, values, None, seen, pattern, float(scale))
    else:
        mask = blocks.causal_mask(queries, everything, int(window) or None, heads // kv_heads, dtype)
        result = blocks.attend(q, keys, values, mask, float(scale))
    context.add(mb.identity(x=result, name=node.name))


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    exact = x.float()
    return (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def phi3mobile_rms_norm(context, node) -> None:
    x, weight, eps = _get_inputs(context, node, expected=3)
    context.add(mb.identity(x=blocks.rms_norm(x, weight, eps.val), name=node.name))


def _int32(position):
    return mb.cast(x=position, dtype="int32")


_define(
    "rotated(Tensor x, Tensor cos, Tensor sin) -> Tensor", _rotated, lambda x, cos, sin: torch.empty_like(x), phi3mobile_rotated
)
_define(
    "with_rows(Tensor cache, Tensor rows, Tensor position) -> Tensor",
    _with_rows,
    lambda cache, rows, position: torch.empty_like(cache),
    phi3mobile_with_rows,
)
_define(
    f"attended(Tensor q, Tensor keys, Tensor values, Tensor position, int window, float scale, {_PATTERN}) -> Tensor",
    _attended,
    lambda q, *rest: q.new_empty(1, q.shape[2], q.shape[1] * q.shape[3]),
    phi3mobile_attended,
)
_define(
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    _normed,
    lambda x, weight, eps: torch.empty_like(x),
    phi3mobile_rms_norm,
)
