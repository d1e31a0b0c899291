"""Lower a segment to one XNNPACK delegate once, then stamp out copies with other weights.

An XNNPACK payload names its constants by the SHA-256 of their bytes and keeps the bytes in the program's named data. So a copy
for another layer is the same payload with other keys: graph work does not grow with depth. What the template's own weights
must hash to is checked against what the lowering produced, so a changed packing in ExecuTorch is an error, not a wrong model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.exir._serialize._cord import FileBackedData
from executorch.exir._serialize._named_data_store import NamedDataStore, NamedDataStoreOutput
from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult
from executorch.exir.backend.utils import tag_constant_data
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.lowered_backend_module import LoweredBackendModule

from phi3mobile.models.config import Phi3Config
from phi3mobile.models.quantized import Packed

from .segments import Part, Segment, example_inputs, segment_parts

ALIGNMENT = 16  # of XNNPACK's constants in the file


class _WholeGraph(Partitioner):
    """Everything into one XNNPACK delegate; what XNNPACK can't take fails in its own preprocessing, by name."""

    def ops_to_not_decompose(self, ep):
        return [torch.ops.aten.linear.default], None

    def partition(self, ep) -> PartitionResult:
        for node in ep.graph.nodes:
            if node.op == "call_function":
                node.meta["delegation_tag"] = "segment"
        tag_constant_data(ep)
        return PartitionResult(ep, {"segment": DelegationSpec(XnnpackBackend.__name__, [])})


@dataclass(frozen=True)
class Template:
    """A lowered segment whose weights are stand-ins."""

    kind: str
    payload: bytes
    keys: dict[str, list[str]]  # constant's name -> its keys in the payload, in the order of `constant_data`
    shared: NamedDataStoreOutput  # all named data of the template; only what is not in `keys` is used (1/K, eps)
    order: tuple[int, ...]  # which of the segment's inputs the delegate takes, in its order


def constant_data(value: Packed | torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Key and bytes (as a tensor) of each named datum that XNNPACK's lowering makes of one constant."""
    if not isinstance(value, Packed):
        return [(_hash(value.float()), value.float())]
    return [(_hash(value.codes), value.codes), ("scale_" + _hash(value.scales), value.scales)]


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(torch.uint8).flatten().numpy())


def _hash(tensor: torch.Tensor) -> str:
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def stand_ins(config: Phi3Config, parts: dict[str, Part], shape_of, bits_of) -> dict[str, Packed | torch.Tensor]:
    """Random constants of the right shapes, all different. shape_of(tensor name), bits_of(name) -> (bits, group) or None."""
    generator = torch.Generator().manual_seed(1)
    constants = {}
    for name, part in parts.items():
        shape = list(shape_of(part.name(0)))
        if bits_of(part.name(0)) is None:
            constants[name] = torch.rand(shape, generator=generator)
            continue
        bits, group = bits_of(part.name(0))
        rows = shape[0] if part.rows is None else torch.arange(shape[0])[part.rows].numel()
        group = group if bits == 4 else shape[1]
        bytes_wide = shape[1] // 2 if bits == 4 else shape[1]
        codes = torch.randint(0, 255, (rows, bytes_wide), generator=generator, dtype=torch.uint8)
        scales = torch.rand(rows, shape[1] // group, generator=generator) * 0.01 + 1e-3
        constants[name] = (
            Packed(4, group, codes, scales.bfloat16()) if bits == 4 else Packed(8, group, codes.view(torch.int8), scales)
        )
    return constants


def lower(config: Phi3Config, kind: str, constants: dict[str, Packed | torch.Tensor], chunk: int) -> Template:
    """Lower one segment, T dynamic in [1, chunk], to a single delegate."""
    inputs = example_inputs(config, kind, min(3, chunk))
    length = torch.export.Dim("T", min=1, max=chunk)
    with torch.no_grad():
        module = Segment(config, kind, constants).eval()
        exported = torch.export.export(module, inputs, dynamic_shapes=_dynamic(kind, length), strict=False)
        edge = to_edge_transform_and_lower(
            exported, partitioner=[_WholeGraph()], compile_config=EdgeCompileConfig(_check_ir_validity=False)
        ).exported_program()
    call = next(node for node in edge.graph.nodes if node.target is executorch_call_delegate)
    lowered = getattr(edge.graph_module, call.args[0].target)
    named = lowered.named_data_store_output
    placeholders = [node for node in edge.graph.nodes if node.op == "placeholder"]
    order = tuple(placeholders.index(argument) for argument in call.args[1:])
    keys = {name: [key for key, _ in constant_data(value)] for name, value in constants.items()}
    missing = [name for name, own in keys.items() if any(key not in named.pte_data for key in own)]
    if missing or len(placeholders) != len(inputs):
        raise RuntimeError(f"segment {kind}: XNNPACK's lowering packs {missing or 'its inputs'} otherwise than expected")
    return Template(kind, lowered.processed_bytes, keys, named, order)


def _dynamic(kind: str, length):
    return ({0: length}, tuple({0: length} for _ in range({"start": 2, "middle": 3, "end": 1}[kind])))


class _Shapes:
    """Stands in for the lowered program inside a LoweredBackendModule: makes outputs of the right shapes, at no cost."""

    def __init__(self, shapes: Callable[..., tuple[torch.Tensor, ...]], outputs: int) -> None:
        self._shapes, self._outputs = shapes, outputs

    def module(self) -> Callable[..., tuple[torch.Tensor, ...]]:
        return self._shapes

    @property
    def graph(self) -> torch.fx.Graph:
        graph = torch.fx.Graph()
        graph.output((graph.placeholder("x"),) * self._outputs)
        return graph


def stamp(
    template: Template, config: Phi3Config, constants: dict[str, Packed | torch.Tensor], scratch: Path
) -> LoweredBackendModule:
    """The template with these constants; their bytes go to files in `scratch` until the program is written."""
    payload, store = template.payload, NamedDataStore()
    own = {key for keys in template.keys.values() for key in keys}
    for key, entry in template.shared.pte_data.items():
        if key not in own:
            store.add_named_data(key, template.shared.buffers[entry.buffer_index], entry.alignment)
    for name, value in constants.items():
        for old, (new, data) in zip(template.keys[name], constant_data(value), strict=True):
            payload = payload.replace(old.encode(), new.encode())
            path = scratch / new
            if not path.exists():
                path.write_bytes(_bytes(data))
            digest = bytes.fromhex(new.removeprefix("scale_"))
            store.add_named_data(new, FileBackedData(str(path), sha256=digest), ALIGNMENT)
    module = LoweredBackendModule(
        _Shapes(_output_shapes(config, template), 1 if template.kind == "end" else 4 - (template.kind == "start")),
        XnnpackBackend.__name__, payload, [], store.get_named_data_store_output(),
    )  # fmt: skip
    module.meta = {"debug_handle_map": {}}
    return module


def _output_shapes(config: Phi3Config, template: Template) -> Callable[..., tuple[torch.Tensor, ...]]:
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    kind, x_at = template.kind, template.order.index(0)

    def shapes(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = inputs[x_at]
        length = x.shape[0]
        if kind == "end":
            return (x.new_empty(length, config.vocab_size),)
        projected = (
            x.new_empty(length, heads, dim), x.new_empty(length, kv_heads, dim), x.new_empty(length, kv_heads * dim),
        )  # fmt: skip
        return projected if kind == "start" else (torch.empty_like(x), *projected)

    return shapes


def segment_constants(packed, config: Phi3Config, kind: str, layer: int) -> dict[str, Packed | torch.Tensor]:
    """A segment's real constants from packed weights (`packed.tensor(name)` -> Packed or float32 tensor)."""
    whole, constants = {}, {}
    for name, part in segment_parts(config, kind).items():
        source = part.name(layer)
        if source not in whole:
            whole[source] = packed.tensor(source)
        value = whole[source]
        constants[name] = value if part.rows is None else value.rows(part.rows)
    return constants
