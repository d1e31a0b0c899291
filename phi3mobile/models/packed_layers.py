"""The hub's quantized checkpoints: how each method stores a layer, as integers on a grid or as levels of a table.

Sources: how AutoAWQ, AutoGPTQ and GPTQModel, compressed-tensors and bitsandbytes (its QuantState) write them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from phi3mobile.errors import InputError
from phi3mobile.models.grid import Grid

Parts = Mapping[str, torch.Tensor]  # of one weight, by their endings
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # of 8 columns: in which nibble of a word each is


@dataclass(frozen=True)
class Layers:
    """How a checkpoint's packed weights are stored."""

    method: str
    ends: tuple[str, ...]  # of a weight's tensors, behind its module's name; the first one marks it
    optional: tuple[str, ...]
    shape: Callable[[Mapping[str, tuple[int, ...]], Parts], tuple[int, int]]  # of [N, K], from shapes (and small tensors)
    read: Callable[[Parts], Grid | torch.Tensor]


def layers_of(settings: Any) -> Layers:
    """What a config.json's quantization_config says. InputError: a method, or a form of one, that is not read."""
    if not isinstance(settings, dict):
        raise InputError(f"config: quantization_config is {settings!r}; it must be an object")
    method = settings.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in settings else None)
    if method not in _METHODS:
        known = ", ".join(_METHODS)
        raise InputError(f"config: quantization_config is of method {method!r}; read are {known}; take the float checkpoint")
    return _METHODS[method](settings)


def _refuse(method: str, key: str, value: Any, allowed: str) -> InputError:
    return InputError(
        f"config: quantization_config ({method}) has {key} {value!r}; read is {allowed}; take the float checkpoint"
    )


def unpacked(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """int32 words -> int16 codes, 32 / bits of each along `dim`, lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes = (words.unsqueeze(-1) >> shifts) & (2**bits - 1)  # the sign's copies are masked away
    return codes.to(torch.int16).movedim(-1, dim + 1).flatten(dim, dim + 1)


def _centred(codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, bits: int) -> Grid:
    """(code - zero) * scale: codes [N, K], zeros and scales [N, K/group]; codes of 8 bits are moved to be signed."""
    middle = 2 ** (bits - 1)
    zeros, scales = zeros.float() - middle, scales.float()
    return Grid((codes - middle).to(torch.int8), scales, -zeros * scales)


# AWQ


def _awq(settings: dict[str, Any]) -> Layers:
    if (version := str(settings.get("version", "gemm")).lower()) != "gemm":
        raise _refuse("awq", "version", version, "'gemm'")
    if settings.get("bits", settings.get("w_bit", 4)) != 4:
        raise _refuse("awq", "bits", settings.get("bits"), "4")

    def ordered(words: torch.Tensor) -> torch.Tensor:
        return unpacked(words, 4, 1).unflatten(1, (-1, 8))[..., list(_AWQ_ORDER)].flatten(1)

    def read(parts: Parts) -> Grid:
        codes, zeros = ordered(parts["qweight"]).t(), ordered(parts["qzeros"]).t()
        return _centred(codes, zeros, parts["scales"].t(), 4)

    return Layers(
        "awq", ("qweight", "qzeros", "scales"), (), lambda shapes, _: (shapes["scales"][1], shapes["qweight"][0]), read
    )


# GPTQ


def _gptq(settings: dict[str, Any]) -> Layers:
    bits = settings.get("bits")
    if bits not in (2, 4, 8):
        raise _refuse("gptq", "bits", bits, "2, 4 or 8")
    named = settings.get("checkpoint_format") or settings.get("format")  # GPTQModel's later name
    form = named or ("marlin" if settings.get("is_marlin_format") else "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise _refuse("gptq", "checkpoint_format", form, "'gptq' or 'gptq_v2'")
    if settings.get("dynamic"):
        raise _refuse("gptq", "dynamic", settings["dynamic"], "one form for all layers")
    older = form == "gptq"  # which stores each zero less one

    def read(parts: Parts) -> Grid | torch.Tensor:
        codes = unpacked(parts["qweight"], bits, 0).t()
        zeros = unpacked(parts["qzeros"], bits, 1).t()
        if older:
            zeros = (zeros + 1) & (2**bits - 1)
        scales, width = parts["scales"].t(), codes.shape[1]
        return _in_groups(codes, zeros, scales, bits, parts.get("g_idx"), width)

    return Layers(
        "gptq",
        ("qweight", "qzeros", "scales"),
        ("g_idx",),
        lambda shapes, _: (shapes["qweight"][1], shapes["qweight"][0] * 32 // bits),
        read,
    )


def _in_groups(
    codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, bits: int, index: torch.Tensor | None, width: int
) -> Grid | torch.Tensor:
    """A grid where groups are columns side by side; values where `index` [K] sends columns to groups in another order."""
    even = torch.arange(width) // -(-width // scales.shape[1])
    index = even if index is None or not len(index) else index.long()
    if torch.equal(index, even) and width % scales.shape[1] == 0:
        return _centred(codes, zeros, scales, bits)
    return (codes - zeros[:, index]).float() * scales.float()[:, index]


# compressed-tensors


def _compressed(settings: dict[str, Any]) -> Layers:
    form, groups = settings.get("format"), settings.get("config_groups")
    if form not in ("pack-quantized", "int-quantized", "naive-quantized"):
        raise _refuse("compressed-tensors", "format", form, "'pack-quantized' or 'int-quantized'")
    if not isinstance(groups, dict) or not groups or not all(isinstance(one, dict) for one in groups.values()):
        raise _refuse("compressed-tensors", "config_groups", groups, "one group or more")
    for key in ("kv_cache_scheme", "transform_config"):
        if settings.get(key):
            raise _refuse("compressed-tensors", key, settings[key], "none")
    if (sparse := (settings.get("sparsity_config") or {}).get("format", "dense")) != "dense":
        raise _refuse("compressed-tensors", "sparsity_config", sparse, "'dense'")
    weights = [one.get("weights") or {} for one in groups.values()]
    kinds = {(one.get("num_bits"), one.get("type", "int"), bool(one.get("symmetric", True))) for one in weights}
    if len(kinds) > 1:
        raise _refuse("compressed-tensors", "weights", sorted(map(str, kinds)), "one form for all layers")
    bits, kind, symmetric = kinds.pop()
    if bits not in (4, 8) or kind != "int":
        raise _refuse("compressed-tensors", "weights", f"{bits} bits, {kind}", "4 or 8 bits, int")
    packed, half = form == "pack-quantized", 2 ** (bits - 1)
    first = "weight_packed" if packed else "weight"
    ends = (first, "weight_scale", *(("weight_shape",) if packed else ()), *(() if symmetric else ("weight_zero_point",)))

    def shape(shapes: Mapping[str, tuple[int, ...]], parts: Parts) -> tuple[int, int]:
        rows, width = parts["weight_shape"].tolist() if packed else shapes["weight"]
        return int(rows), int(width)

    def read(parts: Parts) -> Grid | torch.Tensor:
        scales = parts["weight_scale"].float()
        if packed:
            rows, width = parts["weight_shape"].tolist()
            codes = unpacked(parts["weight_packed"], bits, 1)[:rows, :width]
        else:
            codes, (rows, width) = parts["weight"].to(torch.int16) + half, parts["weight"].shape
        scales = scales.view(rows, -1)
        zeros = torch.full_like(scales, half, dtype=torch.int16)
        if (stored := parts.get("weight_zero_point")) is not None:
            zeros = unpacked(stored, bits, 0)[:rows] if stored.dtype == torch.int32 else stored.view(rows, -1).short() + half
        return _in_groups(codes, zeros, scales, bits, parts.get("weight_g_idx"), width)

    return Layers("compressed-tensors", ends, ("weight_g_idx", "weight_zero_point"), shape, read)


# bitsandbytes


def _bitsandbytes(settings: dict[str, Any]) -> Layers:
    if settings.get("load_in_8bit"):
        return Layers(
            "bitsandbytes", ("weight", "SCB"), ("weight_format",), lambda shapes, _: _pair(shapes["weight"]), _rows_of_int8
        )
    kind = settings.get("bnb_4bit_quant_type", "fp4")
    if kind not in ("nf4", "fp4"):
        raise _refuse("bitsandbytes", "bnb_4bit_quant_type", kind, "'nf4' or 'fp4'")
    state = f"weight.quant_state.bitsandbytes__{kind}"
    ends = ("weight", "weight.absmax", "weight.quant_map", state)
    nested = ("weight.nested_absmax", "weight.nested_quant_map")

    def about(parts: Parts) -> dict[str, Any]:
        try:
            found = json.loads(bytes(parts[state].tolist()).decode())
        except ValueError as error:
            raise InputError(f"bitsandbytes: {state} is not JSON ({error}): the checkpoint is damaged") from None
        if not isinstance(found, dict) or len(found.get("shape", ())) != 2:
            raise InputError(f"bitsandbytes: {state} is {found!r}, which tells no shape: the checkpoint is damaged")
        return found

    def read(parts: Parts) -> torch.Tensor:
        told, largest = about(parts), parts["weight.absmax"]
        if nested[0] in parts:
            blocks = parts[nested[0]].repeat_interleave(told["nested_blocksize"])[: len(largest)]
            largest = parts[nested[1]][largest.long()] * blocks + told["nested_offset"]
        packed = parts["weight"].flatten()
        codes = torch.stack((packed >> 4, packed & 15), dim=-1).flatten()
        rows, width = told["shape"]
        levels = parts["weight.quant_map"].float()[codes.long()][: rows * width]
        sizes = largest.float().repeat_interleave(told["blocksize"])[: rows * width]
        return (levels * sizes).view(rows, width)

    return Layers("bitsandbytes", ends, nested, lambda _, parts: _pair(about(parts)["shape"]), read)


def _rows_of_int8(parts: Parts) -> Grid:
    """LLM.int8: 127 stands for a row's largest value."""
    scales = parts["SCB"].float()[:, None] / 127
    return Grid(parts["weight"], scales, torch.zeros_like(scales))


def _pair(shape: Any) -> tuple[int, int]:
    rows, width = shape
    return int(rows), int(width)


_METHODS: dict[str, Callable[[dict[str, Any]], Layers]] = {
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed,
    "bitsandbytes": _bitsandbytes,
}
