"""Packed weights -> .tflite for LiteRT, as one straight pipeline; package.py makes LiteRT-LM's package of it.

    config -> signatures (decoder.py) -> flatbuffer, weights streamed behind it (program.py)

Nothing is traced: the program is written from the config, operator by operator, so a 3.8B model takes no more memory than its
largest matrix. The same integers as in every target, int8 activations by XNNPACK's dynamic quantization.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from phi3mobile.errors import InputError
from phi3mobile.export.packed import PackedModel
from phi3mobile.export.target import Written
from phi3mobile.export.targets.litert import decoder, program
from phi3mobile.models.config import DecoderConfig
from phi3mobile.progress import Progress, silent

PROGRAM = "model.tflite"
FIXED = ".fixed.tflite"  # the same for LiteRT-LM, until it is in the package
SHORT = (8, 32)  # tokens of a forward that are padded to fewer than a chunk: a draft to verify, a turn of a chat
KV_BYTES = 4  # of a value of the KV cache


def to_litert(packed: PackedModel, folder: Path, context: int, chunk: int, progress: Progress = silent) -> Written:
    """Write model.tflite into `folder` for a KV cache of `context` positions, prefilled at most `chunk` tokens at a time,
    and beside it the program that write_package takes."""
    if not 1 <= chunk <= context:
        raise InputError(f"chunk {chunk}: tokens of one prefill step must be from 1 to the context, {context}")
    lengths = {"decode": 1} | {f"prefill_{length}": length for length in sorted({*SHORT, chunk}) if 1 < length <= chunk}
    progress("graph", 0, 1)
    file = program.ProgramFile()
    weights = decoder.Weights(packed, file)
    graphs = [decoder.build(weights, name, length, context) for name, length in lengths.items()]
    # LiteRT-LM wants tensors of fixed sizes, with room for a padded chunk, and takes no logits from prefill.
    rows = context + chunk
    fixed = [decoder.build(weights, name, length, context, rows, name == "decode") for name, length in lengths.items()]
    begin = file.write(folder / PROGRAM, graphs, lambda done, total: progress("weights", done, total))
    file.write_again(folder / FIXED, fixed, folder / PROGRAM, begin)
    runtime = {
        "name": "LiteRT",
        "version": version("ai-edge-litert"),
        "program": PROGRAM,
        "operators": file.operators(),
        "functions": lengths,
        "one_table": weights.one_table,
    }
    per_token = int(packed.config.kv_bytes_per_token(KV_BYTES))
    return Written(runtime, activation_bytes(packed.config, context + chunk, chunk), per_token)


def activation_bytes(config: DecoderConfig, rows: int, chunk: int) -> int:
    """float32 values alive at once in a prefill, at most: logits, or scores with their softmax, or the MLP; an estimate."""
    most = max(config.vocab_size, 2 * config.num_attention_heads * rows, 4 * config.intermediate_size)
    return 4 * chunk * (most + 4 * config.hidden_size)
