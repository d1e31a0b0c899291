"""A folder of solved weights: packed integers, one safetensors file a layer, and what they were made with.

`phi3mobile export` takes it like a checkpoint, for every target. Files are written whole, so a killed run goes on where it was.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from phi3mobile.errors import InputError
from phi3mobile.export.integers import HEAD, Integers
from phi3mobile.files import whole_file
from phi3mobile.models.finite import require_finite
from phi3mobile.models.form import Form
from phi3mobile.models.quantized import Packed
from phi3mobile.models.registry import read_config
from phi3mobile.models.tensors import shapes
from phi3mobile.progress import Progress, silent

FORMAT = 2
ABOUT = "packed.json"


def is_solved(folder: Path) -> bool:
    return (folder / ABOUT).is_file()


def write_part(path: Path, tensors: dict[str, Packed | torch.Tensor]) -> None:
    """One file of packed matrices and float32 vectors, by name."""
    flat: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        if isinstance(value, Packed):
            flat |= {f"{name}.codes": value.codes, f"{name}.scales": value.scales}
            if offsets := value.offsets:
                flat |= {f"{name}.offset_codes": offsets.codes, f"{name}.offset_scales": offsets.scales}
        else:
            flat[name] = value.float()
    with whole_file(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in flat.items()}, partial, metadata={"format": "pt"})


def read_part(path: Path) -> dict[str, Packed | torch.Tensor]:
    """What write_part wrote."""
    part = _Part(path)
    return {name: part.tensor(name) for name in part.names()}


def matrix_of(part: dict[str, Packed | torch.Tensor], name: str) -> Packed:
    """The matrix `name` of what read_part returned."""
    found = part[name]
    assert isinstance(found, Packed), f"{name} is no matrix"
    return found


def vector_of(part: dict[str, Packed | torch.Tensor], name: str) -> torch.Tensor:
    """The vector `name` of what read_part returned."""
    found = part[name]
    assert isinstance(found, torch.Tensor), f"{name} is no vector"
    return found


class _Part:
    """An open file of write_part's."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{path} is truncated or damaged ({' '.join(str(error).split())}); quantize again") from None
        self._keys = set(self._file.keys())

    def names(self) -> list[str]:
        parts = (".codes", ".scales", ".offset_codes", ".offset_scales")
        return sorted({key.rpartition(".")[0] if key.endswith(parts) else key for key in self._keys})

    def form(self, name: str) -> tuple[tuple[int, ...], Form | None]:
        """Shape, and form of a matrix."""
        if name in self._keys:
            return tuple(self._file.get_slice(name).get_shape()), None
        codes = self._file.get_slice(f"{name}.codes")
        (rows, width), groups = codes.get_shape(), self._file.get_slice(f"{name}.scales").get_shape()[1]
        bits, width = (8, width) if codes.get_dtype() == "I8" else (4, 2 * width)
        return (rows, width), Form(bits, width // groups, f"{name}.offset_codes" in self._keys)

    def scales_of(self, name: str) -> torch.Tensor | None:
        """Of a matrix, as in Packed."""
        return None if name in self._keys else self._file.get_tensor(f"{name}.scales")

    def tensor(self, name: str) -> Packed | torch.Tensor:
        if name in self._keys:
            return self._file.get_tensor(name)
        _, form = self.form(name)
        assert form is not None, f"{name} is no matrix"
        codes, scales = self._file.get_tensor(f"{name}.codes"), self._file.get_tensor(f"{name}.scales")
        offsets = None
        if form.offsets:
            own = (self._file.get_tensor(f"{name}.offset_{part}") for part in ("codes", "scales"))
            offsets = Packed(8, scales.shape[1], *own)
        return Packed(form.bits, form.group, codes, scales, offsets=offsets)


class Solved(Integers):
    """An opened folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.about = folder, _read_about(folder)
        self.config = read_config(_read_json(folder / "config.json"))
        parts = [_Part(path) for path in sorted(folder.glob("packed-*.safetensors"))]
        self._where = {name: part for part in parts for name in part.names()}
        if missing := [name for name in (*self.names(), HEAD, *self.config.vision_tensors()) if name not in self._where]:
            raise InputError(f"{folder} lacks {', '.join(missing[:6])}; quantize again")

    def shape(self, name: str) -> tuple[int, ...]:
        return self._where[name].form(name)[0]

    def form_of(self, name: str) -> Form | None:
        return self._where[name].form(name)[1]

    def tensor(self, name: str) -> Packed | torch.Tensor:
        return self._where[name].tensor(name)

    def signed(self) -> bool:
        """Whether a matrix has a negative scale, which only some recipes' programs take."""
        scales = (part.scales_of(name) for name, part in self._where.items())
        return any(bool((found < 0).any()) for found in scales if found is not None)

    def check(self) -> None:
        """InputError for tensors of other shapes than the config's."""
        for name, shape in (shapes(self.config.tensors()) | self.config.vision_tensors()).items():
            if self.shape(name) != shape:
                raise InputError(f"{self.folder}: {name} has shape {list(self.shape(name))}, expected {list(shape)}")

    def check_values(self, progress: Progress = silent) -> None:
        """InputError naming the first tensor with a scale or value that is NaN or infinite."""
        for number, name in enumerate(names := list(dict.fromkeys((*self.names(), HEAD, *self.config.vision_tensors())))):
            progress("check tensors", number, len(names))
            found = self.tensor(name)
            parts = [found.scales, *([found.offsets.scales] if found.offsets else [])] if isinstance(found, Packed) else [found]
            for part in parts:
                require_finite(name, part, self.folder)

    def source_hash(self) -> str:
        """Of the checkpoint that the integers were made from."""
        return self.about["source_hash"]


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """What the weights were made with, and their quality card; written last: a folder without it is not finished."""
    with whole_file(folder / ABOUT) as partial:
        partial.write_text(json.dumps({"format": FORMAT, **about}, indent=2) + "\n", "utf-8")


def _read_about(folder: Path) -> dict[str, Any]:
    about = _read_json(folder / ABOUT)
    if about.get("format") != FORMAT:
        raise InputError(f"{folder / ABOUT} has format {about.get('format')!r}, this phi3mobile reads {FORMAT}: quantize again")
    for key in ("source", "source_hash", "recipe"):
        if not isinstance(about.get(key), str):
            raise InputError(f"{folder / ABOUT} lacks {key}; quantize again")
    if not isinstance(about.get("quality"), dict):
        raise InputError(f"{folder / ABOUT} lacks quality; quantize again")
    if wrong := [key for key, value in about["quality"].items() if not _finite(value)]:
        raise InputError(f"{folder / ABOUT}: quality has {', '.join(wrong)} not finite (NaN or infinity); quantize again")
    return about


def _finite(value: Any) -> bool:
    """Whether no number in a JSON value is NaN or infinite."""
    if isinstance(value, list):
        return all(map(_finite, value))
    return math.isfinite(value) if isinstance(value, float) else True


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read ({error}); quantize again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object; quantize again")
    return value
