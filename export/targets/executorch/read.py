"""The integers of a .pte, read back from what its delegates multiply by: write.py and segments.py the other way round."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from phi3mobile.engines.expert_file import ExpertShape, padded
from phi3mobile.engines.tiles import TileForm
from phi3mobile.errors import InputError
from phi3mobile.export.integers import HEAD, Integers
from phi3mobile.export.targets.executorch.options import ExecutorchRecipe
from phi3mobile.export.targets.executorch.program import Pte
from phi3mobile.export.targets.executorch.segments import Part, segment_kinds, segment_parts, vector_names
from phi3mobile.export.targets.executorch.tiled import BACKEND, Matrix, packed_of, read_layout
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.form import Form
from phi3mobile.models.quantized import Packed, stacked
from phi3mobile.models.tensors import BIAS, EMBED, FINAL_NORM, GATE_UP, ROUTER

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle

_TYPES = {"xnn_datatype_qbint4": 4, "xnn_datatype_qcint8": 8}


@dataclass(frozen=True)
class _Linear:
    """A product in XNNPACK's graph: its weight's shape and form, and the names of its data."""

    rows: int
    width: int
    form: Form
    codes: str
    scales: str
    bias: str | None
    offsets: _Linear | None = None

    @property
    def keys(self) -> list[str]:
        """SHA-256 of the data, behind what says which they are."""
        return [*filter(None, (self.codes, self.scales, self.bias)), *(self.offsets.keys if self.offsets else [])]


def open_decoder(path: Path, config: DecoderConfig) -> Pte:
    """The method that computes the layers."""
    return Pte(path, "forward" if config.vision is None else "text_decoder")


class PteIntegers(Integers):
    """Of a bundle's program, and of its file of experts if it has one."""

    def __init__(self, bundle: Bundle, config: DecoderConfig, recipe: ExecutorchRecipe) -> None:
        path = bundle.program
        self.config, self._pte, self._bundle = config, open_decoder(path, config), bundle
        self._linears: dict[str, list[tuple[Part, _Linear | Matrix]]] = {}  # of a matrix: the parts that segments have of it
        self._vectors: dict[str, int] = {}  # value of the plan
        kinds, calls = segment_kinds(config), self._pte.calls()
        if len(kinds) != len(calls):
            raise InputError(f"{path} has {len(calls)} segments, its checkpoint makes {len(kinds)}; export it again")
        for (kind, layer), call in zip(kinds, calls, strict=True):
            parts = segment_parts(config, kind, recipe.attention)
            for part, linear in zip(parts.values(), self._products(call, parts, layer), strict=True):
                self._linears.setdefault(part.name(config, layer), []).append((part, linear))
            constants = [index for index in call.args if self._pte.constant(index) is not None]
            names = vector_names(config, kind, layer)
            if len(constants) != len(names):
                raise InputError(f"{path} gives a segment {kind} {len(constants)} vectors, not {len(names)}; export it again")
            self._vectors |= {name: index for name, index in zip(names, constants, strict=True) if name}
        routers = [name for name, tensor in config.tensors().items() if tensor.role == ROUTER]
        mixtures = self._pte.kernels("phi3mobile::sparse_moe")
        self._vectors |= {name: call.args[1] for name, call in zip(routers, mixtures, strict=True)}
        self._table = self._pte if config.vision is None else Pte(path, "token_embedding")
        looked_up = [self._table.kernels(f"quantized_decomposed::embedding_{kind}") for kind in ("byte", "4bit")]
        ((self._codes, self._scales, *_),) = (call.args for calls in looked_up for call in calls)

    def shape(self, name: str) -> tuple[int, ...]:
        return (self.config.vocab_size, self.config.hidden_size) if name == HEAD else self.config.tensors()[name].shape

    def form_of(self, name: str) -> Form | None:
        role = self.config.role(name)
        if role == BIAS or name in self._vectors:
            return None
        if role == EMBED:
            return self._embedding().form
        if name in self._linears:
            return self._linears[name][0][1].form
        _, shape = self._experts()
        return Form(4, shape.group13 if role == GATE_UP else shape.group2)

    def tensor(self, name: str) -> Packed | torch.Tensor:
        role = self.config.role(name)
        if name in self._vectors:
            found = self._pte.constant(self._vectors[name])
            assert found is not None, name
            return found * self.config.logit_divisor if self._is_final(name) else found
        if role == BIAS:
            return self._bias(name)
        if role == EMBED:
            return self._embedding()
        if name not in self._linears:
            return self._expert(name)
        parts = [(part, self._packed(linear)) for part, linear in self._linears[name]]
        return parts[0][1] if parts[0][0].rows is None else _joined(self.shape(name)[0], parts)

    def damage(self, name: str) -> str:
        """Constants are named by their hashes."""
        for _, linear in self._linears.get(name, []):
            for key in linear.keys:
                if hashlib.sha256(self._pte.named(key).numpy().data).hexdigest() != key.rpartition("_")[2]:
                    return f"{name} holds other bytes than the program's hash of them says"
        return ""

    def _products(self, call: Any, parts: dict[str, Part], layer: int) -> Sequence[_Linear | Matrix]:
        """The packed weights of a segment in the order of its parts. XNNPACK's also sums for offsets, and averages."""
        if self._pte.backend(call) == BACKEND:
            matrices = read_layout(self._pte.told(call)).matrices
            return [matrices[name] for name in parts]
        graph, found = _linears(self._pte.graph(call)), []
        for part in parts.values():
            height, width = self.shape(part.name(self.config, layer))
            rows = height if part.rows is None else torch.arange(height)[part.rows].numel()
            linear = next((linear for linear in graph if (linear.rows, linear.width) == (rows, width)), None)
            if linear is None:
                raise InputError(f"{self._pte.path} multiplies by no {rows} rows of {part.name(self.config, layer)}")
            found.append(linear)
        return found

    def _packed(self, linear: _Linear | Matrix) -> Packed:
        if isinstance(linear, Matrix):
            return packed_of(linear.tile_form, self._pte.named(linear.tiles).numpy(), linear.rows)
        codes, scales = self._pte.named(linear.codes), self._pte.named(linear.scales)
        offsets = self._packed(linear.offsets) if linear.offsets else None
        codes = codes.view(linear.rows, -1)
        if linear.form.bits == 8:
            return Packed(8, linear.width, codes.view(torch.int8), scales.view(torch.float32).view(linear.rows, -1))
        return Packed(4, linear.form.group, codes, scales.view(torch.bfloat16).view(linear.rows, -1), offsets=offsets)

    def _bias(self, name: str) -> torch.Tensor:
        values = torch.zeros(self.shape(name))
        for part, linear in self._linears[f"{name.removesuffix('bias')}weight"]:
            assert linear.bias is not None, name
            values[slice(None) if part.rows is None else part.rows] = self._pte.named(linear.bias).view(torch.float32)
        return values

    def _embedding(self) -> Packed:
        codes, scales = self._table.constant(self._codes), self._table.constant(self._scales)
        assert codes is not None and scales is not None
        scales = scales / self.config.embedding_multiplier
        if codes.shape[1] == self.config.hidden_size:
            return Packed(8, codes.shape[1], codes.view(torch.int8), scales)
        codes = codes.view(torch.uint8)
        return Packed(4, self.config.hidden_size // scales.shape[1], (codes << 4) | (codes >> 4), scales.bfloat16())

    def _is_final(self, name: str) -> bool:
        return self.config.tensors()[name].module == self.config.tensor(FINAL_NORM).module

    def _experts(self) -> tuple[Path, ExpertShape]:
        """The file, and its sizes as the manifest tells them."""
        about = self._bundle.manifest["runtime"]["experts"]
        return self._bundle.folder / about["file"], ExpertShape(
            **{field.name: about[field.name] for field in fields(ExpertShape)}
        )

    def _expert(self, name: str) -> Packed:
        """One part of a record."""
        (path, shape), tensor, form = self._experts(), self.config.tensors()[name], self.form_of(name)
        assert tensor.layer is not None and tensor.expert is not None and form is not None, name
        record = shape.data_at + (tensor.layer * shape.experts + tensor.expert) * shape.record
        start = record if tensor.role == GATE_UP else record + padded(shape.bytes13)
        rows, width = tensor.shape
        heights = (rows // 2, rows // 2) if tensor.role == GATE_UP else (rows,)
        tile_form, parts = TileForm(width, form.group), []
        for height in heights:
            size = tile_form.matrix_bytes(height)
            parts.append(packed_of(tile_form, np.fromfile(path, np.uint8, size, offset=start), height))
            start += size
        return stacked(parts)


def _linears(graph: dict[str, Any]) -> Any:
    """The products of a graph by packed weights, in its order; those by offsets with the one that they belong to."""
    unions, data = [value["xvalue_union"] for value in graph["xvalues"]], graph["constant_data"]
    values = {value.get("tensor_value", value)["id_out"]: value for value in unions}
    key = lambda index: data[index]["named_key"]  # noqa: E731
    found: list[_Linear] = []
    for node in graph["xnodes"]:
        if node["xnode_union_type"] != "XNNFullyConnected":
            continue
        inner, weight = node["xnode_union"], values[node["xnode_union"]["filter_id"]]
        tensor, about = weight.get("tensor_value", weight), weight.get("quant_params", {})
        if (bits := _TYPES.get(tensor["datatype"])) is None:
            continue  # an average, in float
        rows, width = tensor["dims"]
        bias = values.get(inner["bias_id"])
        form = Form(bits, about.get("group_size", width))
        names = (key(tensor["constant_buffer_idx"]), key(about["scale_buffer_idx"]), bias and key(bias["constant_buffer_idx"]))
        linear = _Linear(rows, width, form, *names)
        if found and bits == 8 and found[-1].rows == rows and width == found[-1].width // found[-1].form.group:
            found[-1] = replace(found[-1], form=found[-1].form._replace(offsets=True), offsets=linear)
        else:
            found.append(linear)
    return iter(found)


def _joined(height: int, parts: list[tuple[Part, Packed]]) -> Packed:
    """Some rows each -> the whole matrix."""
    first = parts[0][1]
    codes, scales = (torch.empty(height, *found.shape[1:], dtype=found.dtype) for found in (first.codes, first.scales))
    offsets = [(part, packed.offsets) for part, packed in parts if packed.offsets]
    for part, packed in parts:
        codes[part.rows], scales[part.rows] = packed.codes, packed.scales
    return Packed(first.bits, first.group, codes, scales, offsets=_joined(height, offsets) if offsets else None)
