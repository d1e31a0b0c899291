"""What a user names as a model, opened: a checkpoint folder, or a GGUF model as if it were one."""

from __future__ import annotations

from pathlib import Path

from phi3mobile.models.checkpoint import Checkpoint, open_checkpoint
from phi3mobile.models.companions import holds_gguf


def open_source(path: str | Path) -> Checkpoint:
    """The checkpoint at `path`: a HF folder, a GGUF file, any part of a split one, or a folder that holds one GGUF model.

    A GGUF's tokenizer stands in a folder of its own for as long as the checkpoint is open. Raises InputError as
    open_checkpoint and open_gguf do, or for a vocabulary that can't be written.
    """
    path = Path(path)
    if not (path.is_file() or holds_gguf(path)):
        return open_checkpoint(path)
    from phi3mobile.models.gguf_checkpoint import open_gguf  # takes a second

    opened = open_gguf(path)
    opened.write_companions()
    return opened
