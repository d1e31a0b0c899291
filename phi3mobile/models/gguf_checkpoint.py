"""GGUF models as checkpoints: opened, checked, read tensor by tensor, written as a HF folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch

from phi3mobile.errors import InputError
from phi3mobile.models.checkpoint import Checkpoint, files_hash, refuse_differences, write_checkpoint
from phi3mobile.models.finite import require_finite
from phi3mobile.models.gguf import FACTORS, dequantized, metadata_of
from phi3mobile.models.gguf_grid import gguf_grid
from phi3mobile.models.gguf_parts import GgufFile, gguf_in, open_file, value_of
from phi3mobile.models.grid import Grid, stacked_grids
from phi3mobile.models.registry import gguf_layouts
from phi3mobile.models.shards import EMBEDDING, HEAD
from phi3mobile.models.stacks import item_of, unstacked
from phi3mobile.models.tensors import shapes
from phi3mobile.progress import Progress, silent

_BUFFER = re.compile(r"^blk\.\d+\.attn_rot_embd(\.weight)?$")  # of the first conversions: computed from the config


class GgufCheckpoint(Checkpoint):
    """An open GGUF model, read as a checkpoint folder is. `reader`: the gguf.GGUFReader (tokenizer)."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.path, self.reader, self._paths = file.path, file.reader, file.paths
        self.folder = file.path.parent  # of companions, once they are written
        self._tensors, self._architecture = dict(file.tensors), architecture
        self._layout = gguf_layouts()[layout_name(file, architecture)]
        self.config = self._layout.config(metadata_of(file, architecture, self._layout))

    def write_companions(self) -> None:
        """Write the tokenizer's files as a folder would have them to `folder`, a new one that goes with this object."""
        from phi3mobile.text.gguf_vocab import write_tokenizer

        self._scratch = TemporaryDirectory(prefix="phi3mobile-gguf-")
        self.folder = Path(self._scratch.name)
        write_tokenizer(self.reader, self.folder)

    def names(self) -> list[str]:
        """Every weight in model order, under HF's names."""
        return list(self.config.tensors())

    def tensor(self, name: str) -> torch.Tensor:
        """One weight as float32, dequantized, fused, in the family's row order. InputError for one that is NaN or infinite."""
        parts = [self._part(part) for part in self._named(name)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def check(self) -> None:
        """Raise one InputError naming every missing, extra or misshapen tensor, or a type that can't be dequantized."""
        expected = shapes(self.config.tensors())
        stored = {name: self._named(name) for name in expected}
        shapes_there = unstacked({name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()})
        known = {part for parts in stored.values() for part in parts} | set(FACTORS)
        found = {name: self._fused(parts) for name, parts in stored.items() if all(p in shapes_there for p in parts)}
        found |= {name: () for name in shapes_there if name not in known and not _BUFFER.search(name)}
        refuse_differences(str(self.path), expected, found)
        for tensor in {tensor.tensor_type: tensor for tensor in self._tensors.values()}.values():
            dequantized(self.path, tensor, tensor.data[:1])

    def check_values(self, progress: Progress = silent) -> None:
        """InputError naming the first tensor with a value that is NaN or infinite."""
        for number, name in enumerate(names := self.names()):
            progress("check tensors", number, len(names))
            self.tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a fused tensor."""
        return self._fused(self._named(name))

    def grid(self, name: str) -> Grid | None:
        """The integers that the file has of a matrix, fused, in the family's row order; None where it has other values."""
        return stacked_grids([self._grid(part) for part in self._named(name)])

    def stored_as(self, name: str) -> str:
        """The types of its parts: "Q4_1", "Q4_K, Q6_K"."""
        return ", ".join(dict.fromkeys(self._tensors[item_of(part)[0]].tensor_type.name for part in self._named(name)))

    def bits_of(self, name: str) -> float:
        """Per weight, as the file stores it."""
        tensors = [self._tensors[item_of(part)[0]] for part in self._named(name)]
        return 8 * sum(int(tensor.n_bytes) for tensor in tensors) / sum(int(tensor.n_elements) for tensor in tensors)

    def source_hash(self) -> str:
        """As of a folder, over the file or the parts of a split one."""
        return files_hash(self.config, self._paths)

    def _fused(self, parts: list[str]) -> tuple[int, ...]:
        given = [(self._tensors[name].shape, item) for name, item in map(item_of, parts)]
        shapes = [tuple(int(size) for size in reversed(shape))[item is not None :] for shape, item in given]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def _named(self, name: str) -> list[str]:
        tensors = self.config.tensors()
        name = EMBEDDING if name == HEAD and name not in tensors else name
        return self._layout.parts(self._architecture, tensors[name], self._tensors)

    def _part(self, name: str) -> torch.Tensor:
        tensor, data = self._stored_part(name)
        values = torch.from_numpy(np.array(dequantized(self.path, tensor, data), dtype=np.float32))
        require_finite(tensor.name, values, self.path)
        order = self._order(tensor.name, len(values))
        return values if order is None else values[order]

    def _grid(self, name: str) -> Grid | None:
        tensor, data = self._stored_part(name)
        grid = gguf_grid(tensor.tensor_type, data) if data.ndim == 2 else None
        order = None if grid is None else self._order(tensor.name, len(data))
        return grid if grid is None or order is None else grid.rows(order)

    def _stored_part(self, name: str) -> tuple[gguf.ReaderTensor, np.ndarray]:
        """A tensor of the file, and the data of a part: all of it, or an item of a stack."""
        name, item = item_of(name)
        tensor = self._tensors[name]
        data = np.asarray(tensor.data)  # no memmap, which makes every slice slow
        return tensor, data if item is None else data[item]

    def _order(self, name: str, rows: int) -> torch.Tensor | None:
        """The file's rows in the family's order, where that is another."""
        if not name.endswith(self._layout.interleaved):
            return None
        return torch.arange(rows).unflatten(0, (-1, self.config.head_dim // 2, 2)).transpose(1, 2).flatten()


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
