"""GGUF models as checkpoints: opened, checked, read tensor by tensor, written as a HF folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from phi3mobile.errors import InputError
from phi3mobile.models.checkpoint import refuse_differences, write_checkpoint
from phi3mobile.models.finite import require_finite
from phi3mobile.models.gguf import FACTORS, dequantized, metadata_of
from phi3mobile.models.gguf_parts import GgufFile, gguf_in, open_file, value_of
from phi3mobile.models.registry import gguf_layouts
from phi3mobile.models.stacks import item_of, unstacked
from phi3mobile.models.tensors import shapes

_BUFFER = re.compile(r"^blk\.\d+\.attn_rot_embd(\.weight)?$")  # of the first conversions: computed from the config


class GgufCheckpoint:
    """An open GGUF model with the reading half of Checkpoint's interface. `reader`: the gguf.GGUFReader (tokenizer)."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.path, self.reader = file.path, file.reader
        self._tensors, self._architecture = dict(file.tensors), architecture
        self._layout = gguf_layouts()[layout_name(file, architecture)]
        self.config = self._layout.config(metadata_of(file, architecture, self._layout))

    def names(self) -> list[str]:
        """Every weight in model order, under HF's names."""
        return list(self.config.tensors())

    def tensor(self, name: str) -> torch.Tensor:
        """One weight as float32, dequantized, fused, in the family's row order. InputError for one that is NaN or infinite."""
        parts = [self._part(part) for part in self._parts(name)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def check(self) -> None:
        """Raise one InputError naming every missing, extra or misshapen tensor, or a type that can't be dequantized."""
        expected = shapes(self.config.tensors())
        stored = {name: self._parts(name) for name in expected}
        shapes_there = unstacked({name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()})
        known = {part for parts in stored.values() for part in parts} | set(FACTORS)
        found = {name: self._shape(parts) for name, parts in stored.items() if all(p in shapes_there for p in parts)}
        found |= {name: () for name in shapes_there if name not in known and not _BUFFER.search(name)}
        refuse_differences(str(self.path), expected, found)
        for tensor in {tensor.tensor_type: tensor for tensor in self._tensors.values()}.values():
            dequantized(self.path, tensor, tensor.data[:1])

    def _shape(self, parts: list[str]) -> tuple[int, ...]:
        given = [(self._tensors[name].shape, item) for name, item in map(item_of, parts)]
        shapes = [tuple(int(size) for size in reversed(shape))[item is not None :] for shape, item in given]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def _parts(self, name: str) -> list[str]:
        return self._layout.parts(self._architecture, self.config.tensors()[name], self._tensors)

    def _part(self, name: str) -> torch.Tensor:
        name, item = item_of(name)
        tensor = self._tensors[name]
        data = tensor.data if item is None else tensor.data[item]
        values = torch.from_numpy(np.array(dequantized(self.path, tensor, data), dtype=np.float32))
        require_finite(name, values, self.path)
        if name.endswith(self._layout.interleaved):
            return values.unflatten(0, (-1, self.config.head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
        return values


def open_gguf(path: str | Path) -> GgufCheckpoint:
    """Open a GGUF model: a file, any part of a split one, or a folder that holds one model.

    Raises InputError if it is missing, not GGUF, truncated, not whole, or of an architecture that no family reads.
    """
    path = Path(path)
    file = open_file((path.is_dir() and gguf_in(path)) or path)
    architecture = value_of(file.path, file.reader, "general.architecture")
    if not isinstance(architecture, str) or architecture not in gguf_layouts():
        raise InputError(f"{file.path} is a model of architecture {architecture!r}; known are {', '.join(_known())}")
    return GgufCheckpoint(file, architecture)


def _known() -> list[str]:
    return sorted({name.partition("+")[0] for name in gguf_layouts()})


def layout_name(file: GgufFile, architecture: str) -> str:
    """The architecture; "+experts" behind it where a mixture of it is another family's model."""
    mixture = f"{architecture}+experts"
    experts = value_of(file.path, file.reader, f"{architecture}.expert_count")
    return mixture if experts and mixture in gguf_layouts() else architecture


def import_gguf(
    path: str | Path,
    out_folder: str | Path,
    dtype: torch.dtype = torch.float16,
    write_tokenizer: Callable[[gguf.GGUFReader, Path], Any] | None = None,
) -> Path:
    """Write the GGUF model at `path` as a Phi-3-layout HF folder, tokenizer included, tensor by tensor.

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
