"""Checkpoint folders: safetensors, one tensor at a time, under the family's names; strict reading, atomic writing.

Folders of another layout that a family reads look like its own: what is stored in parts is fused when it is asked for.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from phi3mobile.errors import InputError
from phi3mobile.files import new_folder, refuse_existing, require_space
from phi3mobile.models.companions import holds_gguf
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.finite import is_finite, require_finite
from phi3mobile.models.grid import Grid, stacked_grids
from phi3mobile.models.packed_files import PackedWeight, packed_weights
from phi3mobile.models.packed_layers import Layers, layers_of
from phi3mobile.models.registry import as_stored, read_config, stored_parts
from phi3mobile.models.shards import EMBEDDING, HEAD, is_spare, open_files, read_json
from phi3mobile.models.stacks import item_of, unstacked
from phi3mobile.models.tensors import shapes as shapes_of
from phi3mobile.progress import Progress, silent

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_STORED = {"F16": 2, "BF16": 2, "F32": 4}


def refuse_differences(where: str, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    """Raise one InputError that lists every missing, extra and misshapen tensor (the first 12, and how many more)."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not part of the model" for name in sorted(found) if name not in expected]
    problems += [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    if problems:
        more = f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise InputError(f"{where}: weights do not fit its config: {'; '.join(problems[:12])}{more}")


class Checkpoint:
    """A folder's weights, memory-mapped. Names are those of `config`'s own family in any layout."""

    def __init__(self, folder: Path, config: DecoderConfig, files: dict[Path, Any], layers: Layers | None = None) -> None:
        """layers: how packed weights are stored, in a quantized checkpoint."""
        self._files = files  # path -> open safetensors file
        where = {name: file for file in files.values() for name in file.keys()}  # noqa: SIM118
        self._where = where if layers is None else packed_weights(where, layers)
        config = as_stored(config, self._where)
        self.folder, self.config = folder, config
        self._parts = {name: stored_parts(config, name) for name in config.tensors()}
        if config.tie_word_embeddings and HEAD in self._where and EMBEDDING in self._parts.keys() - self._where.keys():
            self._parts[EMBEDDING] = {HEAD: config.tensors()[EMBEDDING].shape}  # tools that keep one name may keep this one
        self._tower = config.vision_tensors()

    def names(self) -> list[str]:
        """Every weight of the decoder in model order, under the family's names; a vision tower's are config.vision_tensors."""
        return list(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a fused tensor as stored. Raises InputError if a part is missing."""
        shapes = [self._shape(part) for part in self._stored(name)]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def tensor(self, name: str) -> torch.Tensor:
        """One weight as float32; a tied lm_head is the embedding.

        Raises InputError if it is missing, of another dtype, or has a value that is NaN or infinite.
        """
        parts = []
        for part in self._stored(name):
            mapped = self._mapped(part)
            parts.append(mapped.float())
            if parts[-1] is not mapped:
                _forget_pages(mapped)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def grid(self, name: str) -> Grid | None:
        """The integers that a matrix is stored as, in row order; None where it is on no grid."""
        files = [self._where[item_of(part)[0]] for part in self._stored(name)]
        found = [file.read() if isinstance(file, PackedWeight) else None for file in files]
        return stacked_grids([one if isinstance(one, Grid) else None for one in found])

    def stored_as(self, name: str) -> str:
        """What its parts are stored as, for people: "BF16", "Q4_K, Q6_K"."""
        files = {part: self._where[item_of(part)[0]] for part in self._stored(name)}
        packed = {part: file.layers.method for part, file in files.items() if isinstance(file, PackedWeight)}
        return ", ".join(dict.fromkeys(packed.get(part) or self._slice(part).get_dtype() for part in files))

    def bits_of(self, name: str) -> float:
        """Per weight, as it is stored."""
        files = {part: self._where[item_of(part)[0]] for part in self._stored(name)}
        packed = {part: file.bits() for part, file in files.items() if isinstance(file, PackedWeight)}
        return max(packed.get(part) or 8.0 * _STORED.get(self._slice(part).get_dtype(), 4) for part in files)

    def check(self) -> None:
        """Raise one InputError naming every missing, extra or misshapen tensor, or the first of a wrong dtype."""
        expected = {part: shape for parts in self._parts.values() for part, shape in parts.items()} | self._tower
        found = {
            name: tuple(self._slice(name).get_shape()) for name in self._where if name in expected or not self._is_spare(name)
        }
        tower = {name: found.pop(name) for name in self._tower if name in found}
        refuse_differences(str(self.folder), expected, unstacked(found) | tower)
        for name in expected:
            if (dtype := self._slice(name).get_dtype()) not in _STORED:
                raise InputError(f"{self.folder}: {name} is stored as {dtype}; allowed are {', '.join(_STORED)}")

    def check_values(self, progress: Progress = silent) -> None:
        """InputError naming the first tensor with a value that is NaN or infinite. Reads every weight once, as it is stored."""
        stored = [*(part for parts in self._parts.values() for part in parts), *self._tower]
        for number, part in enumerate(stored):
            progress("check tensors", number, len(stored))
            mapped = self._mapped(part)
            if not isinstance(self._where[item_of(part)[0]], PackedWeight):
                _forget_pages(mapped)

    def source_hash(self) -> str:
        """sha256 over the config and each weight file's name, size and content; of a file of 64 MiB or more, over its
        first MiB (the header is there) and 15 further MiB spread evenly to the end: provenance, not a proof."""
        return files_hash(self.config, self._files)

    def _stored(self, name: str) -> list[str]:
        if name == HEAD and self.config.tie_word_embeddings:
            name = EMBEDDING
        if name in self._tower:
            return [name]
        if name not in self._parts:
            raise KeyError(f"{name} is not a tensor of this model")
        return list(self._parts[name])

    def _is_spare(self, name: str) -> bool:
        vision = self.config.vision
        if name.endswith(".bias") and isinstance(self._where.get(f"{name.removesuffix('bias')}weight"), PackedWeight):
            return not self._where[name].get_tensor(name).any()  # AutoGPTQ writes zeros beside weights that have none
        return is_spare(name, self.config.tie_word_embeddings) or (vision is not None and vision.is_dropped(name))

    def _mapped(self, part: str) -> torch.Tensor:
        """A stored tensor, in the file's own memory."""
        if (dtype := self._slice(part).get_dtype()) not in _STORED:
            raise InputError(f"{self.folder}: {part} is stored as {dtype}; allowed are {', '.join(_STORED)}")
        name, item = item_of(part)
        mapped = self._where[name].get_tensor(name) if item is None else self._slice(part)[item]
        require_finite(part, mapped, self.folder)
        return mapped

    def _slice(self, part: str) -> Any:
        name, _ = item_of(part)
        if name not in self._where:
            raise InputError(f"{self.folder}: tensor {name} is missing")
        return self._where[name].get_slice(name)

    def _shape(self, part: str) -> tuple[int, ...]:
        shape = tuple(self._slice(part).get_shape())
        return shape if item_of(part)[1] is None else shape[1:]


def files_hash(config: DecoderConfig, paths: Iterable[Path]) -> str:
    """sha256 of a model in weight files: see Checkpoint.source_hash."""
    digest = hashlib.sha256(json.dumps(config.to_hf(), sort_keys=True).encode())
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size < 64 << 20:
                digest.update(file.read())
                continue
            for sample in range(16):
                file.seek(sample * (size - (1 << 20)) // 15)
                digest.update(file.read(1 << 20))
    return digest.hexdigest()


def _forget_pages(mapped: torch.Tensor) -> None:
    """Give back the file's pages that hold this tensor, so that reading 8 GB of weights does not make 8 GB resident."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "madvise"):
        return
    start = -(-mapped.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (mapped.data_ptr() + mapped.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if length > 0:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Open a HF folder (config.json and safetensors, single or sharded). Reads headers only; see Checkpoint.check.

    Packed layers (quantization_config, or quantize_config.json: awq, gptq, compressed-tensors, bitsandbytes) read as the floats
    that they stand for.

    Raises InputError for a missing or damaged file, a bad index, an unknown model_type or config key.
    """
    folder = Path(folder)
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {state}; give a checkpoint folder with config.json and model.safetensors")
    if holds_gguf(folder):
        raise InputError(f"{folder} holds GGUF weights; make a checkpoint of them first: phi3mobile import {folder} FOLDER")
    hf = read_json(folder / "config.json")
    settings = hf.pop("quantization_config", None)
    settings = _settings_beside(folder) if settings is None else settings
    layers = None if settings is None else layers_of(settings)
    config = read_config(hf)
    return Checkpoint(folder, config, open_files(folder, config.tie_word_embeddings), layers)


# What older tools write beside a config.json that says nothing of it: AutoGPTQ, AutoAWQ.
_BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def _settings_beside(folder: Path) -> dict[str, Any] | None:
    """A quantization_config in a file of its own; None: the folder has none."""
    for name, method in _BESIDE.items():
        if (folder / name).exists():
            return {"quant_method": method} | read_json(folder / name)
    return None


def write_checkpoint(
    folder: Path,
    config: DecoderConfig,
    tensors: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype = torch.float16,
    copy_from: Iterable[Path] = (),
    shard_bytes: int = 2 << 30,
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Write a Phi-3-layout HF folder: config.json, safetensors (sharded past `shard_bytes`), and copies of `copy_from`.

    Holds one shard in memory. `finish(folder)` may add files. All is written beside `folder` and renamed at the end.
    Raises InputError if `folder` exists, the disk is too small, or a tensor does not fit the config or the dtype.
    """
    refuse_existing(folder)
    require_space(folder, config.all_parameters() * dtype.itemsize + (64 << 20))
    with new_folder(folder) as partial:
        _write_weights(partial, str(folder), config, tensors, dtype, shard_bytes)
        name = next(name for name, value in DTYPES.items() if value is dtype)
        (partial / "config.json").write_text(json.dumps({**config.to_hf(), "torch_dtype": name}, indent=2) + "\n")
        for path in copy_from:
            shutil.copyfile(path, partial / path.name)
        if finish is not None:
            finish(partial)
    return folder


def _write_weights(
    partial: Path,
    where: str,
    config: DecoderConfig,
    tensors: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    shard_bytes: int,
) -> None:
    own = replace(config, source_model_type=config.family)  # the layout that to_hf names
    expected = shapes_of(config.tensors()) | config.vision_tensors()
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def flush() -> None:
        save_file(pending, partial / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        shapes[name] = tuple(tensor.shape)
        parts = stored_parts(own, name) if name in expected else {name: shapes[name]}
        rows = [shape[0] for shape in parts.values()]
        if sum(rows) != len(tensor):
            break  # told below, by name
        for part, values in zip(parts, tensor.split(rows), strict=True):
            stored = values.to(dtype).contiguous()
            if not is_finite(stored):
                require_finite(name, tensor, "the model")
                raise InputError(f"{where}: {name} has values that {dtype} cannot hold; write float32 or bfloat16")
            if pending and sum(t.nbytes for t in pending.values()) + stored.nbytes > shard_bytes:
                flush()
            pending[part] = stored
    refuse_differences(where, expected, shapes)
    flush()
    if len(shards) == 1:
        (partial / "shard-0").rename(partial / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (partial / f"shard-{number}").rename(partial / file)
        weight_map |= dict.fromkeys(names, file)
    total = config.all_parameters() * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
