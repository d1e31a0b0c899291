"""Any supported checkpoint in, a Phi-3-layout HF folder out: what `phi3mobile import` does."""

from __future__ import annotations

from pathlib import Path

from phi3mobile.errors import InputError
from phi3mobile.files import refuse_existing
from phi3mobile.models.checkpoint import DTYPES, open_checkpoint, write_checkpoint
from phi3mobile.models.companions import companion_files, holds_gguf


def import_checkpoint(source: str | Path, out: str | Path, dtype: str = "float16") -> Path:
    """Write `source` as a Phi-3-layout HF folder.

    `source`: a GGUF file, any part of a split one, a folder that holds one GGUF model and no other weights, or a HF folder of
    model_type phi3, llama or mistral. Tokenizer, chat template, generation config and licence files come along.
    `dtype`: float16, bfloat16 or float32.
    Streams, and appears under `out` only when whole. Raises InputError if `source` is not readable, `out` exists, the
    disk is too small (estimated first), or a value is not finite or does not fit the dtype.
    """
    source, out = Path(source), Path(out)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}; allowed are {', '.join(DTYPES)}")
    refuse_existing(out)
    if source.is_file() or holds_gguf(source):
        from phi3mobile.models.gguf_checkpoint import import_gguf

        return import_gguf(source, out, DTYPES[dtype])
    checkpoint = open_checkpoint(source)
    checkpoint.check()
    tensors = ((name, checkpoint.tensor(name)) for name in (*checkpoint.names(), *checkpoint.config.vision_tensors()))
    return write_checkpoint(out, checkpoint.config, tensors, DTYPES[dtype], companion_files(source))
