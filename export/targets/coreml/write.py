"""Packed weights -> .mlpackage for Core ML (iOS 18 and later), as one straight pipeline.

    config -> MIL functions (export/targets/coreml: decoder.py, or ane.py) -> weights streamed into the package (package.py)

Nothing is traced: the program is written from the config, operator by operator, so a 3.8B model takes no more memory than its
largest matrix. It runs on iPhones and Macs; here it is run by our interpreter (phi3mobile/engines/mil).
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from phi3mobile.errors import InputError
from phi3mobile.export.packed import PackedModel
from phi3mobile.export.target import Written
from phi3mobile.export.targets.coreml import ane, decoder
from phi3mobile.export.targets.coreml.options import CoremlRecipe
from phi3mobile.export.targets.coreml.package import Weights, write_package
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.rope import rope_tables, short_rows
from phi3mobile.progress import Progress, silent

PROGRAM, PTE = "model.mlpackage", "model.pte"
PACKAGES = "model"  # folder of a recipe with several
ROPE = "rope.f16"  # cos and sin, float16 [2, rows, R]
NAME = "Core ML, made by coremltools"
KV_BYTES = 2  # of a value of the KV cache


def to_coreml(packed: PackedModel, folder: Path, context: int, chunk: int, progress: Progress = silent) -> Written:
    """Write the package(s) into `folder` for a KV cache of `context` positions, prefilled at most `chunk` tokens at a time."""
    if not 1 <= chunk <= context:
        raise InputError(f"chunk {chunk}: tokens of one prefill step must be from 1 to the context, {context}")
    assert isinstance(packed.recipe, CoremlRecipe), packed.recipe
    write = {"states": _states, "read-only": _read_only, "delegate": _delegated}[packed.recipe.cache]
    return write(packed, folder, context, chunk, progress)


def _written(packed: PackedModel, chunk: int, programs: tuple[str, ...] = (), **runtime: Any) -> Written:
    runtime = {"name": NAME, "version": version("coremltools")} | runtime
    per_token = int(packed.config.kv_bytes_per_token(KV_BYTES))
    return Written(runtime, activation_bytes(packed.config, runtime["rows"], chunk), per_token, programs=programs)


def _states(packed: PackedModel, folder: Path, context: int, chunk: int, progress: Progress) -> Written:
    """One package, its cache in states."""
    sizes, weights = decoder.plan(packed.config, context, chunk), Weights()
    progress("graph", 0, 1)
    functions = decoder.build(packed, sizes, weights)
    operators = write_package(
        folder / PROGRAM, functions, "decode", weights, lambda done, total: progress("weights", done, total)
    )
    return _written(
        packed, chunk, program=PROGRAM, operators=operators, functions=sizes.lengths, rows=sizes.rows, key_step=sizes.key_step
    )


def _read_only(packed: PackedModel, folder: Path, context: int, chunk: int, progress: Progress) -> Written:
    """Several packages in one folder, and the table of RoPE rows that the host feeds them from."""
    config = packed.config
    (folder / PACKAGES).mkdir()
    lengths, parts, operators = {"decode": 1, "prefill": chunk}, ane.parts(packed), set()
    for index, part in enumerate(parts):
        weights = Weights()
        functions = ane.build(packed, part, context, lengths, weights)
        path = folder / PACKAGES / f"part_{index}.mlpackage"
        stage = f"part {index + 1}/{len(parts)}"
        operators |= {*write_package(path, functions, "decode", weights, partial(progress, stage))}
    tables = torch.stack(rope_tables(config, context)).to(torch.float16).numpy()
    tables.tofile(folder / PACKAGES / ROPE)
    rope = {"file": ROPE, "rows": tables.shape[1], "short_rows": short_rows(config, context)}
    packages = [f"part_{index}.mlpackage" for index in range(len(parts))]
    return _written(
        packed,
        chunk,
        tuple(f"{PACKAGES}/{package}" for package in packages),
        program=PACKAGES,
        packages=packages,
        layers=[[part.first, part.last] for part in parts],
        operators=sorted(operators),
        functions=lengths,
        rows=context,
        rope=rope,
    )


def _delegated(packed: PackedModel, folder: Path, context: int, chunk: int, progress: Progress) -> Written:
    """A .pte whose whole graph is one Core ML delegate."""
    from phi3mobile.export.targets.coreml.delegate import write_pte

    progress("lower", 0, 1)
    functions = write_pte(packed, folder / PTE, context, chunk)
    return _written(
        packed,
        chunk,
        name="ExecuTorch with Core ML",
        version=version("executorch"),
        program=PTE,
        operators=[],
        backend="CoreMLBackend",
        functions=functions,
        rows=context + chunk,
    )


def activation_bytes(config: DecoderConfig, rows: int, chunk: int) -> int:
    """float16 values alive at once in a prefill, at most: logits, or scores with their softmax, or the MLP; an estimate."""
    most = max(config.vocab_size, 2 * config.num_attention_heads * rows, 4 * config.intermediate_size)
    return 2 * chunk * (most + 4 * config.hidden_size)
