"""Operators that work element by element: arithmetic, comparisons, activations, casts, quantization of activations."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt

import numpy as np

from phi3mobile.errors import InputError


def _unary(function: Callable) -> Callable:
    return lambda x: function(x)


def _binary(function: Callable) -> Callable:
    return lambda x, y: function(x, y)


def _on_channels(alpha: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[C] -> a shape that broadcasts over axis 1 of x."""
    return alpha.reshape(-1, *[1] * (x.ndim - 2))


def erf(x: np.ndarray) -> np.ndarray:
    """torch's: numpy has none."""
    import torch

    return torch.erf(torch.tensor(x)).numpy()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gelu(x: np.ndarray, mode: str = "EXACT") -> np.ndarray:
    if mode == "EXACT":
        return 0.5 * x * (1 + erf(x * np.float32(sqrt(0.5))))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(np.float32(sqrt(2 / pi)) * (x + 0.044715 * x**3)))
    if mode == "SIGMOID_APPROXIMATION":
        return x * sigmoid(1.702 * x)
    raise InputError(f"gelu has the mode {mode!r}; known are EXACT, TANH_APPROXIMATION, SIGMOID_APPROXIMATION")


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    name = {"fp16": "float32", "fp32": "float32", "fp64": "float64"}.get(dtype, dtype)
    return np.asarray(x).astype(name, copy=False)


def select(cond: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(cond, a, b)


def clip(x: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(x, alpha), beta)


def softplus_parametric(x: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    return _on_channels(alpha, x) * np.logaddexp(0, x * _on_channels(beta, x))


def prelu(x: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, x, x * _on_channels(alpha, x))


def _per_axis(value: np.ndarray | None, rank: int, axis: int | None) -> np.ndarray | float:
    if value is None:
        return 0
    if axis is None or np.ndim(value) == 0:
        return np.asarray(value, np.float32)
    shape = [1] * rank
    shape[int(axis)] = -1
    return np.asarray(value, np.float32).reshape(shape)


def quantize(
    input: np.ndarray, scale: np.ndarray, output_dtype: str, zero_point: np.ndarray | None = None, axis: int | None = None
) -> np.ndarray:
    """clip(round(input / scale) + zero_point)."""
    limits = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}[output_dtype]
    shifted = np.round(input / _per_axis(scale, input.ndim, axis)) + _per_axis(zero_point, input.ndim, axis)
    return np.clip(shifted, *limits)


def dequantize(
    input: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None = None, axis: int | None = None
) -> np.ndarray:
    """scale * (input - zero_point)."""
    shifted = input.astype(np.float32) - _per_axis(zero_point, input.ndim, axis)
    return _per_axis(scale, input.ndim, axis) * shifted


OPERATORS: dict[str, Callable] = {
    **{
        name: _unary(getattr(np, name))
        for name in (
            "abs",
            "ceil",
            "cos",
            "cosh",
            "exp",
            "exp2",
            "floor",
            "logical_not",
            "round",
            "sign",
            "sin",
            "sinh",
            "sqrt",
            "square",
            "tan",
            "tanh",
        )
    },
    "acos": _unary(np.arccos),
    "asin": _unary(np.arcsin),
    "atan": _unary(np.arctan),
    "atanh": _unary(np.arctanh),
    "erf": erf,
    "sigmoid": sigmoid,
    "gelu": gelu,
    "cast": cast,
    "select": select,
    "clip": clip,
    "inverse": lambda x, epsilon=1e-4: 1 / (x + epsilon),
    "log": lambda x, epsilon=1e-45: np.log(x + epsilon),
    "rsqrt": lambda x, epsilon=1e-12: 1 / np.sqrt(x + epsilon),
    "threshold": lambda x, alpha: np.maximum(x, alpha),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "clamped_relu": lambda x, alpha, beta: np.minimum(np.where(x >= 0, x, alpha * x), beta),
    "elu": lambda x, alpha: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x, alpha: np.where(x >= 0, x, alpha * x),
    "linear_activation": lambda x, alpha, beta=0.0: alpha * x + beta,
    "prelu": prelu,
    "scaled_tanh": lambda x, alpha=1.0, beta=1.0: alpha * np.tanh(beta * x),
    "sigmoid_hard": lambda x, alpha=0.2, beta=0.5: np.clip(alpha * x + beta, 0, 1),
    "silu": lambda x: x * sigmoid(x),
    "softplus": lambda x: np.logaddexp(np.float32(0), x),
    "softplus_parametric": softplus_parametric,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "thresholded_relu": lambda x, alpha=1.0: np.where(x >= alpha, x, np.float32(0)),
    **{
        name: _binary(getattr(np, name))
        for name in (
            "add",
            "equal",
            "greater",
            "greater_equal",
            "less",
            "less_equal",
            "logical_and",
            "logical_or",
            "logical_xor",
            "maximum",
            "minimum",
            "mod",
            "not_equal",
        )
    },
    "sub": _binary(np.subtract),
    "mul": _binary(np.multiply),
    "pow": _binary(np.power),
    "real_div": _binary(np.true_divide),
    "floor_div": _binary(np.floor_divide),
    "quantize": quantize,
    "dequantize": dequantize,
}
