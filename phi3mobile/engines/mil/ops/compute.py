"""Products, convolutions, attention, normalizations and reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from phi3mobile.errors import InputError

Array = np.ndarray


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x [..., K] times weight [N, K] transposed.

    torch's product: on a busy machine numpy's OpenBLAS threads spin for each other, and it is ten times slower.
    """
    import torch

    flat = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    if weight.flags.writeable and flat.flags.writeable:  # else torch warns: mapped files are not
        out = torch.nn.functional.linear(torch.from_numpy(flat), torch.from_numpy(weight)).numpy()
    else:
        out = np.matmul(flat, weight.T)
    out = out.reshape(*x.shape[:-1], weight.shape[0])
    return out if bias is None else np.add(out, bias, out=out)


def matmul(x: Array, y: Array, transpose_x: Array | bool = False, transpose_y: Array | bool = False) -> Array:
    return np.matmul(x.swapaxes(-1, -2) if transpose_x else x, y.swapaxes(-1, -2) if transpose_y else y)


def einsum(values: Sequence[Array], equation: str) -> Array:
    return np.einsum(equation, *values, optimize=True)


def _padding(x: Array, weight: Array, strides: list[int], dilations: list[int], pad_type: str, pad: Array | None) -> list:
    """(before, after) per spatial axis."""
    spatial = x.ndim - 2
    if pad_type == "valid":
        return [(0, 0)] * spatial
    if pad_type == "custom":
        return [tuple(pair) for pair in np.asarray(pad).reshape(-1, 2).tolist()]
    pairs = []
    for size, kernel, stride, dilation in zip(x.shape[2:], weight.shape[2:], strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        pairs.append((large, small) if pad_type == "same_lower" else (small, large))
    return pairs


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    dilations: Array | None = None,
    groups: Array | int = 1,
) -> Array:
    """x [B, C, *S], weight [O, C/groups, *K]. 1x1 kernels are products; the rest is torch's."""
    spatial, groups = x.ndim - 2, int(groups)
    steps: list[int] = [1] * spatial if strides is None else np.asarray(strides).tolist()
    spread: list[int] = [1] * spatial if dilations is None else np.asarray(dilations).tolist()
    pairs = _padding(x, weight, steps, spread, pad_type, pad)
    if any(map(any, pairs)):
        x = np.pad(x, [(0, 0), (0, 0), *pairs])
    if groups == 1 and all(size == 1 for size in (*weight.shape[2:], *steps)):
        out = np.matmul(weight.reshape(weight.shape[:2]), x.reshape(*x.shape[:2], -1))
        out = out.reshape(x.shape[0], -1, *x.shape[2:])
    else:
        import torch

        convolve: Any = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}[spatial]
        out = convolve(torch.tensor(x), torch.tensor(weight), None, steps, 0, spread, groups).numpy()
    return out if bias is None else out + bias.reshape(-1, *[1] * spatial)


def softmax(x: Array, axis: Array | int = -1) -> Array:
    e = np.exp(x - x.max(int(axis), keepdims=True))
    return np.divide(e, e.sum(int(axis), keepdims=True), out=e)


def scaled_dot_product_attention(query: Array, key: Array, value: Array, attn_mask: Array | None = None) -> Array:
    """softmax(q k^T / sqrt(d) + mask) v; a boolean mask is True where attention is allowed."""
    scores = np.matmul(query, key.swapaxes(-1, -2)) * np.float32(query.shape[-1] ** -0.5)
    if attn_mask is not None:
        scores = np.where(attn_mask, scores, np.float32(-np.inf)) if attn_mask.dtype == bool else scores + attn_mask
    return np.matmul(softmax(scores), value)


def _axes(x: Array, axes: Array | None) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if axes is None else tuple(np.asarray(axes).ravel().tolist())


def layer_norm(
    x: Array, axes: Array | None = None, gamma: Array | None = None, beta: Array | None = None, epsilon: Array | float = 1e-5
) -> Array:
    """gamma and beta have the shape of the normalized axes."""
    over = sorted(axis % x.ndim for axis in _axes(x, axes))
    shape = [x.shape[i] if i in over else 1 for i in range(x.ndim)]
    centered = x - x.mean(tuple(over), keepdims=True)
    out = centered / np.sqrt(np.square(centered).mean(tuple(over), keepdims=True) + np.float32(epsilon))
    out = out if gamma is None else out * gamma.reshape(shape)
    return out if beta is None else out + beta.reshape(shape)


def batch_norm(
    x: Array, mean: Array, variance: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: Array | float = 1e-5
) -> Array:
    def per_channel(value: Array) -> Array:
        return value.reshape(-1, *[1] * (x.ndim - 2))

    out = (x - per_channel(mean)) / np.sqrt(per_channel(variance) + np.float32(epsilon))
    return out * (1 if gamma is None else per_channel(gamma)) + (0 if beta is None else per_channel(beta))


def instance_norm(x: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: Array | float = 1e-5) -> Array:
    over = tuple(range(2, x.ndim))
    channels = (-1, *[1] * (x.ndim - 2))
    out = (x - x.mean(over, keepdims=True)) / np.sqrt(x.var(over, keepdims=True) + np.float32(epsilon))
    return out * (1 if gamma is None else gamma.reshape(channels)) + (0 if beta is None else beta.reshape(channels))


def l2_norm(x: Array, epsilon: Array | float = 1e-6) -> Array:
    """Over the last three axes."""
    return x / np.sqrt(np.square(x).sum((-3, -2, -1), keepdims=True) + np.float32(epsilon))


def reduction(function: Callable) -> Callable:
    """function(x, axes, keep_dims) as an operator."""
    return lambda x, axes=None, keep_dims=False: function(x, _axes(x, axes), bool(keep_dims))


def log_sum_exp(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    peak = x.max(axes, keepdims=True)
    total = np.log(np.exp(x - peak).sum(axes, keepdims=True)) + peak
    return total if keep else total.squeeze(axes)


def cumsum(x: Array, axis: Array | int = 0, exclusive: Array | bool = False, reverse: Array | bool = False) -> Array:
    axis = int(axis)
    turned = np.flip(x, axis) if reverse else x
    total = np.cumsum(turned, axis, dtype=x.dtype)
    total = total - turned if exclusive else total
    return np.flip(total, axis) if reverse else total


def arg_extreme(function: Callable) -> Callable:
    return lambda x, axis=-1, keep_dims=False, output_dtype="int32": function(x, int(axis), keepdims=bool(keep_dims))


def pool(name: str) -> Callable:
    """Max or average pooling in one or two dimensions, torch's."""

    def run(
        x: Array,
        kernel_sizes: Array,
        strides: Array | None = None,
        pad_type: str = "valid",
        pad: Array | None = None,
        ceil_mode: Array | bool = False,
        exclude_padding_from_average: Array | bool = False,
    ) -> Array:
        import torch

        kernel = np.asarray(kernel_sizes).tolist()
        steps = [1] * len(kernel) if strides is None else np.asarray(strides).tolist()
        pairs = _padding(x, np.empty((0, 0, *kernel)), steps, [1] * len(kernel), pad_type, pad)
        if ceil_mode or (name == "avg" and exclude_padding_from_average and any(map(any, pairs))):
            raise InputError(f"{name}_pool with ceil_mode or exclude_padding_from_average is not known to this interpreter")
        padded = np.pad(x, [(0, 0), (0, 0), *pairs], constant_values=-np.inf if name == "max" else 0)
        function = getattr(torch.nn.functional, f"{name}_pool{len(kernel)}d")
        return function(torch.tensor(padded), kernel, steps).numpy()

    return run


OPERATORS: dict[str, Callable] = {
    "linear": linear,
    "matmul": matmul,
    "einsum": einsum,
    "conv": conv,
    "softmax": softmax,
    "layer_norm": layer_norm,
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "l2_norm": l2_norm,
    "cumsum": cumsum,
    "max_pool": pool("max"),
    "avg_pool": pool("avg"),
    "reduce_argmax": arg_extreme(np.argmax),
    "reduce_argmin": arg_extreme(np.argmin),
    "reduce_max": reduction(lambda x, axes, keep: x.max(axes, keepdims=keep)),
    "reduce_min": reduction(lambda x, axes, keep: x.min(axes, keepdims=keep)),
    "reduce_mean": reduction(lambda x, axes, keep: x.mean(axes, keepdims=keep)),
    "reduce_sum": reduction(lambda x, axes, keep: x.sum(axes, keepdims=keep)),
    "reduce_prod": reduction(lambda x, axes, keep: x.prod(axes, keepdims=keep)),
    "reduce_l1_norm": reduction(lambda x, axes, keep: np.abs(x).sum(axes, keepdims=keep)),
    "reduce_l2_norm": reduction(lambda x, axes, keep: np.sqrt(np.square(x).sum(axes, keepdims=keep))),
    "reduce_sum_square": reduction(lambda x, axes, keep: np.square(x).sum(axes, keepdims=keep)),
    "reduce_log_sum": reduction(lambda x, axes, keep: np.log(x.sum(axes, keepdims=keep))),
    "reduce_log_sum_exp": reduction(log_sum_exp),
}
