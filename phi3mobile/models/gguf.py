"""What a GGUF file says of its model: metadata, RoPE factors, values. A family says how its architectures read."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from phi3mobile.errors import InputError
from phi3mobile.models.config import DecoderConfig, RopeScaling
from phi3mobile.models.tensors import Tensor

FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight")


@dataclass(frozen=True)
class Metadata:
    """What a file says of its model, without the architecture before each key."""

    path: Path
    architecture: str
    reader: gguf.GGUFReader
    tensors: dict[str, gguf.ReaderTensor]

    @cached_property
    def values(self) -> dict[str, Any]:
        prefix = self.architecture + "."
        fields = self.reader.fields.items()
        return {key.removeprefix(prefix): field.contents() for key, field in fields if key.startswith(prefix)}

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if type(value) is not int or value < 1:
            name = f"{self.architecture}.{key}"
            raise InputError(f"{self.path}: metadata {name} is {value!r}; it must be one whole number above 0")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if type(value) is not float or not 0 < value < float("inf"):
            raise InputError(f"{self.path}: metadata {self.architecture}.{key} is {value!r}; it must be a number above 0")
        return _short(value)

    def token(self, key: str) -> int | None:
        field = self.reader.fields.get(f"tokenizer.ggml.{key}")
        return None if field is None else int(field.contents())

    def has(self, name: str) -> bool:
        return name in self.tensors

    def rows(self, name: str) -> int:
        """Rows of a matrix of the file."""
        if name not in self.tensors:
            raise InputError(f"{self.path}: tensor {name} is missing")
        return int(self.tensors[name].shape[-1])

    def vector(self, name: str) -> tuple[float, ...]:
        """A tensor's values, as short decimals."""
        return tuple(_short(value) for value in dequantized(self.path, self.tensors[name], self.tensors[name].data).ravel())


@dataclass(frozen=True)
class GgufLayout:
    """How files of one architecture hold a family's model."""

    keys: frozenset[str]  # metadata that is read or changes nothing; others are refused
    parts: Callable[[str, Tensor, Container[str]], list[str]]  # architecture, ours, the file's names -> its names, in row order
    config: Callable[[Metadata], DecoderConfig]
    interleaved: tuple[str, ...] = ()  # names end so: rows are pairs (0, 1), (2, 3) ... for RoPE, not halves


def metadata_of(path: Path, reader: gguf.GGUFReader, architecture: str, layout: GgufLayout) -> Metadata:
    """InputError for a key that is not known, and for a part of a split model."""
    given = Metadata(path, architecture, reader, {tensor.name: tensor for tensor in reader.tensors})
    if unknown := sorted(set(given.values) - layout.keys):
        value = str(given.values[unknown[0]])[:80]
        raise InputError(f"{path}: unknown metadata {architecture}.{unknown[0]} = {value!r}; it may change the model")
    if "split.count" in reader.fields and reader.fields["split.count"].contents() > 1:
        raise InputError(f"{path} is one part of a split model; merge the parts into one file first")
    return given


def dequantized(path: Path, tensor: gguf.ReaderTensor, data: np.ndarray) -> np.ndarray:
    try:
        return gguf.dequantize(data, tensor.tensor_type)
    except (NotImplementedError, ValueError) as error:
        kind = tensor.tensor_type.name
        raise InputError(f"{path}: {tensor.name} is stored as {kind}, which can't be dequantized ({error})") from None


def _short(value: Any) -> float:
    """The shortest decimal that gives this float32, as the original config.json had it."""
    return float(str(np.float32(value)))


def gguf_rope_scaling(given: Metadata, config: DecoderConfig) -> RopeScaling | None:
    """LongRoPE's lists of factors, Llama 3's divisors, or linear scaling, from tensors and metadata."""
    path, kind = given.path, given.values.get("rope.scaling.type", "none")
    factor = given.number("rope.scaling.factor", 1.0) if kind == "linear" else 1.0
    mscale = given.number("rope.scaling.attn_factor") if "rope.scaling.attn_factor" in given.values else None
    if kind not in ("none", "linear", "longrope"):
        raise InputError(f"{path}: rope scaling of type {kind!r}; known are none, linear, longrope")
    if given.has("rope_freqs.weight"):  # llama 3: divisors of the frequencies, at every length
        return RopeScaling(given.vector("rope_freqs.weight"), given.vector("rope_freqs.weight"), 1.0, 1.0)
    if given_lists := [name for name in FACTORS[:2] if given.has(name)]:
        if len(given_lists) == 1:
            raise InputError(f"{path} has {given_lists[0]} and not the other list of rope factors; both are needed")
        scaling = RopeScaling(given.vector("rope_factors_short.weight"), given.vector("rope_factors_long.weight"))
        derived = replace(config, rope_scaling=scaling).mscales[0]
        if mscale is None or abs(mscale - derived) < 1e-6:
            return scaling
        return RopeScaling(scaling.short_factor, scaling.long_factor, mscale, mscale)
    if kind == "longrope":
        raise InputError(f"{path}: rope scaling is longrope and the tensors {', '.join(FACTORS[:2])} are missing")
    if factor != 1.0:
        return RopeScaling((factor,) * (config.rotary_dim // 2), (factor,) * (config.rotary_dim // 2), 1.0, 1.0)
    return None
