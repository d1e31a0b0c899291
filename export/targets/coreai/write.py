"""Packed weights -> .aimodel for Core AI (iOS and macOS 27), as one straight pipeline; package.py adds what Apple's engine
reads.

    config -> functions (decoder.py) -> MLIR bytecode with the weights in it (door.py)

Nothing is traced: the program is written from the config, operator by operator, and the weights lie in a file until they are
in the program, so a 3.8B model takes no more memory than its largest matrix.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from phi3mobile.errors import InputError
from phi3mobile.export.packed import PackedModel
from phi3mobile.export.target import Written
from phi3mobile.export.targets.coreai import decoder, door
from phi3mobile.export.targets.coreai.matrices import Matrices
from phi3mobile.export.targets.coreai.mlirb import resources
from phi3mobile.models.config import DecoderConfig
from phi3mobile.progress import Progress, silent

PROGRAM = "model.aimodel"
KV_BYTES = 2  # of a value of the KV cache


def to_coreai(packed: PackedModel, folder: Path, context: int, chunk: int, progress: Progress = silent) -> Written:
    """Write model.aimodel into `folder` for a KV cache of up to `context` positions, prefilled `chunk` tokens at a time."""
    if not 1 <= chunk <= context:
        raise InputError(f"chunk {chunk}: tokens of one prefill step must be from 1 to the context, {context}")
    program, matrices = write_program(packed, folder / PROGRAM, context, progress=progress)
    runtime = {
        "name": "Core AI",
        "version": door.version_installed(),
        "program": PROGRAM,
        "operators": program.operators(),
        "functions": decoder.functions(packed.config, context),
        "cache": cache_shape(packed.config),
        "groups": matrices.groups,
        "same": _same(program, resources(folder / PROGRAM / door.BYTECODE)),
    }
    per_token = int(packed.config.kv_bytes_per_token(KV_BYTES))
    return Written(runtime, activation_bytes(packed.config, context, chunk), per_token)


def write_program(
    packed: PackedModel, path: Path, context: int, dtype: str = "float16", progress: Progress = silent
) -> tuple[door.Program, Matrices]:
    """Write an .aimodel at `path` that computes in `dtype`; returns what it was written from."""
    program = door.Program()
    with TemporaryDirectory(dir=path.parent, prefix=".weights-") as scratch:
        matrices = Matrices(packed, program, dtype, Path(scratch) / "weights", progress)
        with program.writing():
            decoder.build(matrices, context)
        progress("program", 0, 1)
        program.save(path)
    return program, matrices


def _same(program: door.Program, kept: dict[str, tuple[int, int]]) -> dict[str, str]:
    """Name of each constant that is not in the file -> the one there that stands for all with these bytes."""
    groups = [([name for name in names if name in kept], names) for names in program.same.values()]
    return {name: stored[0] for stored, names in groups for name in names if name not in stored}


def cache_shape(config: DecoderConfig) -> list[int]:
    """Of both states, but for the rows: layers, 1, Hkv, D."""
    return [config.num_hidden_layers, 1, config.num_key_value_heads, config.head_dim]


def activation_bytes(config: DecoderConfig, context: int, chunk: int) -> int:
    """float16 values alive at once in a prefill, at most: logits, or scores with their softmax, or the MLP; an estimate."""
    most = max(config.vocab_size, 2 * config.num_attention_heads * context, 4 * config.intermediate_size)
    return 2 * chunk * (most + 4 * config.hidden_size)
