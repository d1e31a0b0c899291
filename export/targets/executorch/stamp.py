"""Lower a segment to one XNNPACK delegate once, then stamp out copies with other weights.

An XNNPACK payload names its constants by the SHA-256 of their bytes and keeps the bytes in the program's named data. So a copy
for another layer is the same payload with other keys: graph work does not grow with depth. What the template's own weights
must hash to is checked against what the lowering produced, so a changed packing in ExecuTorch is an error, not a wrong model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from executorch.backends.xnnpack.utils.quant_utils import is_dequant, tag_as_implicit_q_dq
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.exir._serialize._cord import FileBackedData
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult
from executorch.exir.backend.utils import tag_constant_data
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from phi3mobile.export.packed import PackedModel
from phi3mobile.export.targets.executorch.options import recipe_of
from phi3mobile.export.targets.executorch.segments import (
    END,
    FROM_EXPERTS,
    FROM_LAST,
    MIDDLE,
    START,
    TO_EXPERTS,
    Segment,
    example_inputs,
    projected_shapes,
    segment_parts,
)
from phi3mobile.export.targets.executorch.templates import Template, kept, name_of
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.form import Form
from phi3mobile.models.quantized import Packed

Shapes = list[tuple[int, ...]]
ALIGNMENT = 16  # of XNNPACK's constants in the file
# Of XNNPACK's 17 passes over a graph, 16 change nothing in a decoder segment's and take half of its time. This asks for the
# other one.
_LINEAR_PASS_ALONE = CompileSpec("dqlinear_partitioner", b"")


class _WholeGraph(Partitioner):
    """Everything into one XNNPACK delegate; what XNNPACK can't take fails in its own preprocessing, by name."""

    def __init__(self, specs: list[CompileSpec]) -> None:
        super().__init__()
        self._specs = specs

    def ops_to_not_decompose(self, ep):
        return [torch.ops.aten.linear.default], None

    def partition(self, ep) -> PartitionResult:
        for node in ep.graph.nodes:
            if node.op == "call_function":
                node.meta["delegation_tag"] = "segment"
                if is_dequant(node):  # as XnnpackPartitioner does: a linear with a bias asks for it
                    tag_as_implicit_q_dq(node)
        tag_constant_data(ep)
        return PartitionResult(ep, {"segment": DelegationSpec(XnnpackBackend.__name__, self._specs)})


def named_data(value: Packed | torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Key and bytes (as a tensor) of each named datum that XNNPACK's lowering makes of one matrix, packed or in float32."""
    if isinstance(value, torch.Tensor):
        return [(_hash(value), value)]
    data = [(_hash(value.codes), value.codes), ("scale_" + _hash(value.scales), value.scales)]
    data += [] if value.bias is None else [(_hash(value.bias), value.bias)]
    return data + named_data(value.offsets) if value.offsets else data


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """uint8 [n]: as named data are."""
    return tensor.contiguous().view(torch.uint8).flatten()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return as_bytes(tensor).numpy().data


def _hash(tensor: torch.Tensor) -> str:
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def structure(packed: PackedModel, kind: str, layer: int) -> tuple:
    """What two segments must share to be stamped from one template: their kind and their matrices' bits and groups."""
    parts = segment_parts(packed.config, kind, recipe_of(packed).attention).values()
    return kind, *(packed.form_of(part.name(packed.config, layer)) for part in parts)


def stand_ins(packed: PackedModel, kind: str, layer: int = 0) -> dict[str, Packed]:
    """Random matrices of a segment's shapes, all different."""
    generator = torch.Generator().manual_seed(1)
    matrices = {}
    for name, part in segment_parts(packed.config, kind, recipe_of(packed).attention).items():
        tensor = part.name(packed.config, layer)
        height, width = packed.shape(tensor)
        rows = height if part.rows is None else torch.arange(height)[part.rows].numel()
        matrix = _stand_in(rows, width, packed.matrix_form(tensor), generator)
        matrices[name] = replace(matrix, bias=torch.rand(rows, generator=generator)) if packed.has_bias(tensor) else matrix
    return matrices


def like(values: Mapping[str, Packed | torch.Tensor]) -> dict[str, Packed | torch.Tensor]:
    """Random matrices of the same shapes and forms, with a bias where these have one, all different."""
    generator, found = torch.Generator().manual_seed(1), dict[str, Packed | torch.Tensor]()
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            found[name] = torch.rand(value.shape, generator=generator)
            continue
        bias = None if value.bias is None else torch.rand(value.bias.shape, generator=generator)
        found[name] = replace(_stand_in(*value.shape, value.form, generator), bias=bias)
    return found


def _stand_in(rows: int, width: int, form: Form, generator: torch.Generator) -> Packed:
    codes = torch.randint(0, 255, (rows, width * form.bits // 8), generator=generator, dtype=torch.uint8)
    scales = torch.rand(rows, width // form.group, generator=generator) * 0.01 + 1e-3
    if form.bits == 8:
        return Packed(8, width, codes.view(torch.int8), scales)
    groups = width // form.group
    offsets = _stand_in(rows, groups, Form(8, groups), generator) if form.offsets else None
    return Packed(4, form.group, codes, scales.bfloat16(), offsets=offsets)


def lower(packed: PackedModel, kind: str, chunk: int, layer: int = 0) -> Template:
    """Lower one segment of the structure that it has at `layer`, T dynamic in [1, chunk], to a single delegate.

    Raises RuntimeError if ExecuTorch packs weights in another way than named_data expects.
    """
    config, attention, matrices = packed.config, recipe_of(packed).attention, stand_ins(packed, kind, layer)
    inputs = example_inputs(config, kind, min(3, chunk))
    length = torch.export.Dim("T", min=1, max=chunk)
    first, *rest = [{0: length} if moves else None for _, moves in inputs]
    segment = Segment(config, kind, matrices)
    values, dynamic = [value for value, _ in inputs], (first, tuple(rest))
    return lower_module(segment, values, dynamic, matrices, kind, attention, [_LINEAR_PASS_ALONE])


def lower_module(
    module: nn.Module,
    inputs: Sequence[torch.Tensor],
    dynamic: tuple | None,
    matrices: Mapping[str, Packed | torch.Tensor],
    kind: str,
    attention: str = "",
    specs: Sequence[CompileSpec] = (),
) -> Template:
    """Lower any module to a single delegate; its matrices, all different, are those that a copy has others of.

    dynamic: torch.export's dynamic_shapes. kind, attention: names for the template. specs: what XNNPACK is told; nothing: to
    run all its passes. Raises RuntimeError as `lower` does.
    """
    with torch.no_grad():
        exported = torch.export.export(module.eval(), tuple(inputs), dynamic_shapes=dynamic, strict=False)
        keys = {name: [key for key, _ in named_data(value)] for name, value in matrices.items()}
        return kept(name_of(exported, kind, attention, keys), lambda: _template(exported, kind, attention, keys, [*specs]))


def _template(
    exported: ExportedProgram, kind: str, attention: str, keys: dict[str, list[str]], specs: list[CompileSpec]
) -> Template:
    inputs = sum(spec.kind is InputKind.USER_INPUT for spec in exported.graph_signature.input_specs)
    edge = to_edge_transform_and_lower(
        exported, partitioner=[_WholeGraph(specs)], compile_config=EdgeCompileConfig(_check_ir_validity=False)
    ).exported_program()
    call = next(node for node in edge.graph.nodes if node.target is executorch_call_delegate)
    lowered = getattr(edge.graph_module, call.args[0].target)
    named = lowered.named_data_store_output
    placeholders = [node for node in edge.graph.nodes if node.op == "placeholder"]
    order = tuple(placeholders.index(argument) for argument in call.args[1:])
    outputs = [node.args[1] for node in edge.graph.output_node().args[0]]  # each is (the call)[index]
    own = {key for names in keys.values() for key in names}
    shared = {
        key: (named.buffers[entry.buffer_index], entry.alignment) for key, entry in named.pte_data.items() if key not in own
    }
    missing = [name for name, own in keys.items() if any(key not in named.pte_data for key in own)]
    if missing or len(placeholders) != inputs or outputs != list(range(len(outputs))):
        raise RuntimeError(f"segment {kind}: XNNPACK's lowering packs {missing or 'inputs or outputs'} in another way")
    return Template(kind, attention, lowered.processed_bytes, keys, shared, order)


class Results:
    """Stands in for the lowered program in a LoweredBackendModule: outputs of the right shapes, at no cost."""

    def __init__(self, x_at: int, shapes: Shapes) -> None:
        self._x_at, self._shapes = x_at, shapes

    def module(self) -> Callable[..., tuple[torch.Tensor, ...]]:
        return self._run

    def _run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = inputs[self._x_at]
        return tuple(x.new_empty(x.shape[0], *shape) for shape in self._shapes)

    @property
    def graph(self) -> torch.fx.Graph:
        graph = torch.fx.Graph()
        graph.output((graph.placeholder("x"),) * len(self._shapes))
        return graph


def output_shapes(config: DecoderConfig, kind: str, attention: str) -> Shapes:
    """Of what a decoder's segment makes, without the leading T."""
    projected = projected_shapes(config, attention)
    hidden, logits = (config.hidden_size,), (config.vocab_size,)
    shapes: dict[str, list[tuple[int, ...]]] = {
        **{START: projected, MIDDLE: [hidden, *projected], END: [logits]},
        **{TO_EXPERTS: [hidden, hidden], FROM_EXPERTS: [hidden, *projected], FROM_LAST: [logits]},
    }
    return shapes[kind]


def stamp(
    template: Template, shapes: Shapes, matrices: Mapping[str, Packed | torch.Tensor], scratch: Path
) -> LoweredBackendModule:
    """The template with these matrices; their bytes go to files in `scratch` until the program is written.

    shapes: of the outputs, behind the first dimension of the module's first input.
    """
    payload, store = template.payload, NamedDataStore()
    for key, (shared, alignment) in template.shared.items():
        store.add_named_data(key, shared, alignment)
    for name, value in matrices.items():
        for old, (new, data) in zip(template.keys[name], named_data(value), strict=True):
            payload = payload.replace(old.encode(), new.encode())
            path = scratch / new
            if not path.exists():
                path.write_bytes(_bytes(data))
            digest = bytes.fromhex(new.removeprefix("scale_"))
            store.add_named_data(new, FileBackedData(str(path), sha256=digest), ALIGNMENT)
    stand_in = Results(template.order.index(0), shapes)
    module = LoweredBackendModule(stand_in, XnnpackBackend.__name__, payload, [], store.get_named_data_store_output())
    module.meta = {"debug_handle_map": {}}
    return module


def segment_matrices(packed: PackedModel, kind: str, layer: int) -> dict[str, Packed]:
    """A segment's real matrices."""
    whole: dict[str, Packed] = {}
    matrices = {}
    for name, part in segment_parts(packed.config, kind, recipe_of(packed).attention).items():
        source = part.name(packed.config, layer)
        if source not in whole:
            whole[source] = packed.matrix(source)
        matrices[name] = whole[source] if part.rows is None else whole[source].rows(part.rows)
    return matrices
