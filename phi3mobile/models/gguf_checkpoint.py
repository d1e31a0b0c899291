"""GGUF files as checkpoints: opened, checked, read tensor by tensor, written as a HF folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from phi3mobile.errors import InputError
from phi3mobile.models.checkpoint import refuse_differences, write_checkpoint
from phi3mobile.models.gguf import FACTORS, dequantized, metadata_of
from phi3mobile.models.registry import gguf_layouts
from phi3mobile.models.tensors import shapes


class GgufCheckpoint:
    """An open GGUF file with the reading half of Checkpoint's interface. `reader`: the gguf.GGUFReader (tokenizer)."""

    def __init__(self, path: Path, reader: gguf.GGUFReader) -> None:
        self.path, self.reader = path, reader
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._architecture = reader.fields["general.architecture"].contents()
        self._layout = gguf_layouts()[self._architecture]
        self.config = self._layout.config(metadata_of(path, reader, self._architecture, self._layout))

    def names(self) -> list[str]:
        """Every weight in model order, under HF's names."""
        return list(self.config.tensors())

    def tensor(self, name: str) -> torch.Tensor:
        """One weight as float32, dequantized, fused, in the family's row order."""
        parts = [self._part(part) for part in self._parts(name)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def check(self) -> None:
        """Raise one InputError naming every missing, extra or misshapen tensor, or a type that can't be dequantized."""
        expected = shapes(self.config.tensors())
        stored = {name: self._parts(name) for name in expected}
        known = {part for parts in stored.values() for part in parts} | set(FACTORS)
        found = {name: self._shape(parts) for name, parts in stored.items() if all(p in self._tensors for p in parts)}
        found |= {name: () for name in self._tensors if name not in known}
        refuse_differences(str(self.path), expected, found)
        for tensor in {tensor.tensor_type: tensor for tensor in self._tensors.values()}.values():
            dequantized(self.path, tensor, tensor.data[:1])

    def _shape(self, parts: list[str]) -> tuple[int, ...]:
        shapes = [tuple(int(size) for size in reversed(self._tensors[part].shape)) for part in parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def _parts(self, name: str) -> list[str]:
        return self._layout.parts(self._architecture, self.config.tensors()[name], self._tensors)

    def _part(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        values = torch.from_numpy(np.array(dequantized(self.path, tensor, tensor.data), dtype=np.float32))
        if name.endswith(self._layout.interleaved):
            return values.unflatten(0, (-1, self.config.head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
        return values


def open_gguf(path: str | Path) -> GgufCheckpoint:
    """Open a GGUF file. Raises InputError if it is missing, not GGUF, truncated, or of an architecture that no family reads."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give a .gguf file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is not a GGUF file: it does not start with GGUF")
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # the reader parses whatever lies there: any exception means damage
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is truncated or damaged ({reason}); download it again") from None
    architecture = reader.fields.get("general.architecture")
    if architecture is None or architecture.contents() not in gguf_layouts():
        name = None if architecture is None else architecture.contents()
        raise InputError(f"{path} is a model of architecture {name!r}; known are {', '.join(gguf_layouts())}")
    return GgufCheckpoint(path, reader)


def import_gguf(
    path: str | Path,
    out_folder: str | Path,
    dtype: torch.dtype = torch.float16,
    write_tokenizer: Callable[[gguf.GGUFReader, Path], Any] | None = None,
) -> Path:
    """Write the GGUF file at `path` as a Phi-3-layout HF folder, tokenizer included, tensor by tensor.

    `write_tokenizer(reader, folder)` defaults to phi3mobile.text.gguf_vocab's. Raises InputError as open_gguf, check and
    write_checkpoint do.
    """
    if write_tokenizer is None:
        from phi3mobile.text import gguf_vocab

        write_tokenizer = gguf_vocab.write_tokenizer
    write: Callable[[gguf.GGUFReader, Path], Any] = write_tokenizer
    source = open_gguf(path)
    source.check()
    tensors = ((name, source.tensor(name)) for name in source.names())
    finish = lambda folder: write(source.reader, folder)  # noqa: E731
    return write_checkpoint(Path(out_folder), source.config, tensors, dtype, finish=finish)
