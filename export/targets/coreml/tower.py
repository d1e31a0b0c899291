"""A vision tower and its projector as a package for the Neural Engine: static shapes, rank 4, linears as 1x1 convolutions.

    encode: view float16 [1, 3, 336, 336] -> features [1, 576, C], one view of a picture a call
    project: rows float16 [1, ROWS, 4 C], merged patches and separators -> embeddings [1, ROWS, the decoder's hidden]

Inside all is [1, channels, 1, positions] as in ane.py, attention is head by head, weights are 8 bit (or 4) with one scale a row
(or for 32 columns), and the query takes the scale of the scores, which float16 then holds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Var, types

from phi3mobile.export.packed_vision import PackedVision, write_separators
from phi3mobile.export.targets.coreml.matrices import Matrices
from phi3mobile.export.targets.coreml.package import TARGET, Weights, write_package
from phi3mobile.models.vision_config import PROJECTOR, TOWER, VisionConfig, layer_prefix
from phi3mobile.progress import Progress, silent

PROGRAM = "vision.mlpackage"
ROWS = 128  # of one call of `project`; the host pads the last one
FUNCTIONS = "encode", "project"


def write_vision(packed: PackedVision, folder: Path, progress: Progress = silent) -> tuple[dict[str, Any], list[str], int]:
    """Write the package and the separators into `folder`.

    Returns of the manifest's section what the files say, the operators, and bytes of activations.
    """
    operators = write_tower(packed, folder / PROGRAM, partial(progress, "tower"))
    return write_separators(packed, folder, PROGRAM, ROWS), operators, activation_bytes(packed.config)


def activation_bytes(config: VisionConfig) -> int:
    """float16 values alive at once in a view, at most: all heads' scores with their softmax, or the MLP; an estimate."""
    most = max(2 * config.num_attention_heads * config.positions, 2 * config.intermediate_size)
    return 2 * config.positions * (most + 4 * config.hidden_size)


def constants(packed: PackedVision) -> Weights:
    """Every constant of the package by its name, as it is written."""
    return _functions(packed)[1]


def write_tower(packed: PackedVision, path: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Write the .mlpackage at `path`; returns the operator types in it."""
    functions, weights = _functions(packed)
    return write_package(path, functions, "encode", weights, progress)


def _functions(packed: PackedVision) -> tuple[dict[str, Function], Weights]:
    weights = Weights()
    matrices = Matrices(packed, weights)
    return {"encode": _encode(matrices, packed), "project": _project(matrices, packed.config)}, weights


def _encode(matrices: Matrices, packed: PackedVision) -> Function:
    mb.name_count.clear()
    config = packed.config
    view = mb.placeholder(shape=(1, 3, config.image_size, config.image_size), dtype=types.fp16)
    with Function({"view": view}, opset_version=TARGET) as function:
        x = _norm(matrices, config, _embedded(matrices, packed, function.inputs["view"]), f"{TOWER}pre_layrnorm")
        for layer in range(config.layers):
            x = _layer(matrices, config, x, layer)
        patches = mb.slice_by_index(x=x, begin=[0, 0, 0, 1], end=[1, config.hidden_size, 1, config.positions])
        function.set_outputs([_as_rows(patches, "features")])
    return function


def _project(matrices: Matrices, config: VisionConfig) -> Function:
    mb.name_count.clear()
    rows = mb.placeholder(shape=(1, ROWS, config.merged_size), dtype=types.fp16)
    with Function({"rows": rows}, opset_version=TARGET) as function:
        x = mb.expand_dims(x=mb.transpose(x=function.inputs["rows"], perm=[0, 2, 1]), axes=[2])
        x = mb.gelu(x=_conv(matrices, x, f"{PROJECTOR}0.weight"), mode="EXACT")
        function.set_outputs([_as_rows(_conv(matrices, x, f"{PROJECTOR}2.weight"), "embeddings")])
    return function


def _embedded(matrices: Matrices, packed: PackedVision, view: Var) -> Var:
    """[1, 3, 336, 336] -> [1, C, 1, 577]: the class token and the patches, each with its position's."""
    config, base = packed.config, f"{TOWER}embeddings."
    patch, size = config.patch_size, config.hidden_size
    position = lambda: packed.vector(f"{base}position_embedding.weight").T[None, :, None]  # noqa: E731, [1, C, 1, 577]
    first = lambda: packed.vector(f"{base}class_embedding").reshape(1, size, 1, 1) + position()[..., :1]  # noqa: E731
    name = f"{base}patch_embedding.weight"
    kernel = matrices.constant(name, (size, 3, patch, patch), lambda: _half(packed.vector(name)))
    class_token = matrices.constant(f"{base}class_token", (1, size, 1, 1), lambda: _half(first()))
    positions = matrices.constant(f"{base}positions", (1, size, 1, config.patches), lambda: _half(position()[..., 1:]))
    patches = mb.conv(x=view, weight=kernel, strides=[patch, patch], pad_type="valid")
    patches = mb.add(x=mb.reshape(x=patches, shape=[1, size, 1, config.patches]), y=positions)
    return mb.concat(values=[class_token, patches], axis=3)


def _layer(matrices: Matrices, config: VisionConfig, x: Var, layer: int) -> Var:
    """[1, C, 1, S] -> [1, C, 1, S]."""
    base = layer_prefix(layer)
    attended = _attend(matrices, config, _norm(matrices, config, x, f"{base}layer_norm1"), f"{base}self_attn.")
    x = mb.add(x=x, y=attended)
    inner = _conv(matrices, _norm(matrices, config, x, f"{base}layer_norm2"), f"{base}mlp.fc1.weight")
    inner = mb.gelu(x=inner, mode="SIGMOID_APPROXIMATION")  # x * sigmoid(1.702 x), which CLIP calls quick_gelu
    return mb.add(x=x, y=_conv(matrices, inner, f"{base}mlp.fc2.weight"))


def _attend(matrices: Matrices, config: VisionConfig, x: Var, base: str) -> Var:
    """Every position sees every other, head by head."""
    heads, shape = config.num_attention_heads, [1, config.num_attention_heads, config.head_dim, config.positions]
    q, k, v = (mb.reshape(x=_conv(matrices, x, f"{base}{part}_proj.weight"), shape=shape) for part in "qkv")
    q = mb.mul(x=q, y=np.float16(config.head_dim**-0.5))
    queries, keys, values = (mb.split(x=part, num_splits=heads, axis=1) if heads > 1 else [part] for part in (q, k, v))
    results = []
    for query, key, value in zip(queries, keys, values, strict=True):
        scores = mb.softmax(x=mb.matmul(x=key, y=query, transpose_x=True), axis=2)  # [1, 1, keys, queries]
        results.append(mb.matmul(x=value, y=scores))
    attended = mb.concat(values=results, axis=1) if heads > 1 else results[0]
    attended = mb.reshape(x=attended, shape=[1, config.hidden_size, 1, config.positions])
    return _conv(matrices, attended, f"{base}out_proj.weight")


def _norm(matrices: Matrices, config: VisionConfig, x: Var, module: str) -> Var:
    weight, bias = (matrices.vector(f"{module}.{part}") for part in ("weight", "bias"))
    return mb.layer_norm(x=x, axes=[1], gamma=weight, beta=bias, epsilon=np.float16(config.layer_norm_eps))


def _conv(matrices: Matrices, x: Var, tensor: str) -> Var:
    """[1, K, 1, T] -> [1, N, 1, T], with the bias."""
    return mb.conv(x=x, weight=matrices.matrix(tensor, trailing=2), bias=matrices.bias(tensor), pad_type="valid")


def _as_rows(x: Var, name: str) -> Var:
    """[1, C, 1, T] -> [1, T, C]."""
    return mb.transpose(x=mb.squeeze(x=x, axes=[2]), perm=[0, 2, 1], name=name)


def _half(values: torch.Tensor) -> np.ndarray:
    return values.to(torch.float16).numpy()
