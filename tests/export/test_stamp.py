"""Stamped layers are the same program as the straight export of the whole graph, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

from phi3mobile.export.packed import EMBEDDING, PackedModel
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.targets.executorch import stamp, templates
from phi3mobile.export.targets.executorch.segments import Segment, segment_vectors
from phi3mobile.export.targets.executorch.templates import Template, kept, name_of
from phi3mobile.export.targets.executorch.write import (
    ExportedDecoder,
    LoweredSegment,
    PackedEmbedding,
    TraceSpec,
    lowered_segments,
    register_operators,
    to_executorch,
)
from phi3mobile.models.checkpoint import open_checkpoint

CONTEXT, CHUNK = 64, 32


def straight_export(packed: PackedModel, path: Path) -> None:
    """The usual way: trace every layer with its own weights, let XNNPACK's partitioner find what it can take."""
    register_operators(packed.recipe)
    config, modules = packed.config, []
    kinds = ["start"] + ["middle"] * (config.num_hidden_layers - 1) + ["end"]
    for index, kind in enumerate(kinds):
        layer = max(index - 1, 0)
        segment = Segment(config, kind, stamp.segment_matrices(packed, kind, layer))
        vectors = segment_vectors(packed, kind, layer)
        count = len(vectors) + {"start": 3, "middle": 4, "end": 2}[kind]
        modules.append(LoweredSegment(_tuple_output(segment, kind), tuple(range(count)), vectors))
    spec = TraceSpec(CONTEXT, CHUNK)
    embedding = PackedEmbedding(packed.tensor(EMBEDDING), config.embedding_multiplier)
    decoder = ExportedDecoder(config, packed.recipe, CONTEXT, embedding, modules, []).eval()
    with torch.no_grad():
        exported = torch.export.export(decoder, spec.example, dynamic_shapes=spec.dynamic, strict=False)
        program = to_edge_transform_and_lower(
            exported, partitioner=[XnnpackPartitioner()], compile_config=EdgeCompileConfig(_check_ir_validity=False)
        ).to_executorch(
            ExecutorchBackendConfig(
                sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
                memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            )
        )
    path.write_bytes(program.buffer)


class _tuple_output(torch.nn.Module):
    def __init__(self, segment: Segment, kind: str) -> None:
        super().__init__()
        self.segment, self.kind = segment, kind

    def forward(self, *inputs):
        result = self.segment(*inputs)
        return (result,) if self.kind == "end" else result


def run(path: Path, tokens: list[int], splits: list[int]) -> np.ndarray:
    """Logits of all tokens, given in chunks of `splits`."""
    from executorch.extension.pybindings import portable_lib
    from executorch.kernels import quantized  # noqa: F401

    module, at, logits = portable_lib._load_for_executorch(str(path)), 0, []
    for count in splits:
        logits.append(module.forward((torch.tensor([tokens[at : at + count]]), torch.tensor([at])))[0][0].numpy())
        at += count
    return np.concatenate(logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-gqa", "small-tiny", "tiny-partial"])
def test_same_logits_as_the_straight_export(name, checkpoint_of, tmp_path):
    packed = PackedModel(open_checkpoint(checkpoint_of(name)), find_recipe("android-cpu"))
    to_executorch(packed, tmp_path / "stamped.pte", CONTEXT, CHUNK, [2])
    straight_export(packed, tmp_path / "straight.pte")
    tokens = np.random.default_rng(0).integers(0, packed.config.vocab_size, 40).tolist()
    splits = [17, 1, 1, 20, 1]
    ours, reference = run(tmp_path / "stamped.pte", tokens, splits), run(tmp_path / "straight.pte", tokens, splits)
    assert np.array_equal(ours, reference)


@pytest.mark.slow  # test_phi3small_export.py has one by default
def test_each_kind_is_lowered_once(checkpoint_of, tmp_path, monkeypatch):
    lowered = []
    real = stamp.lower
    monkeypatch.setattr(stamp, "lower", lambda packed, kind, *rest: lowered.append(kind) or real(packed, kind, *rest))
    packed = PackedModel(open_checkpoint(checkpoint_of("tiny-partial")), find_recipe("android-cpu"))
    assert packed.config.num_hidden_layers == 3
    assert len(lowered_segments(packed, CHUNK, tmp_path, lambda *_: None)) == 4
    assert lowered == ["start", "middle", "end"]


def test_a_changed_packing_is_an_error(checkpoint_of, monkeypatch):
    packed = PackedModel(open_checkpoint(checkpoint_of("tiny-gqa")), find_recipe("android-cpu"))
    monkeypatch.setattr(stamp, "named_data", lambda value: [("0" * 64, value.codes)])
    with pytest.raises(RuntimeError, match=r"packs .* in another way"):
        stamp.lower(packed, "start", CHUNK)


def test_what_was_lowered_once_is_not_lowered_again(checkpoint_of, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lowered, real = [], stamp.to_edge_transform_and_lower
    monkeypatch.setattr(stamp, "to_edge_transform_and_lower", lambda *rest, **more: lowered.append(1) or real(*rest, **more))
    packed = PackedModel(open_checkpoint(checkpoint_of("tiny-gqa")), find_recipe("android-cpu"))
    first = stamp.lower(packed, "start", CHUNK)
    assert stamp.lower(packed, "start", CHUNK) == first and len(lowered) == 1
    assert stamp.lower(packed, "start", CHUNK + 1).kind == "start" and len(lowered) == 2  # another range of T


def test_a_damaged_or_forbidden_cache_costs_time_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    template = Template("start", "stock", b"\0payload", {"qkv": ["a", "b"]}, {"eps": (b"\1\2", 16)}, (1, 0))
    made: list[int] = []
    assert kept("x", lambda: made.append(1) or template) == template == kept("x", lambda: pytest.fail("it is there"))
    (path,) = (tmp_path / "phi3mobile" / "lowered").iterdir()
    whole = path.read_bytes()
    for damage in (b"", b"{}", b"[1]", b"null", b'"x"', whole[:-20], b"\xff", whole.replace(b'"kind"', b'"k"')):
        path.write_bytes(damage)
        made.clear()
        assert kept("x", lambda: made.append(1) or template) == template and made
        assert path.read_bytes() == whole
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    made.clear()
    assert kept("x", lambda: made.append(1) or template) == template and made


def test_a_name_says_all_that_a_lowering_depends_on(monkeypatch):
    class Scaled(torch.nn.Module):
        def __init__(self, scale: float, times: float) -> None:
            super().__init__()
            self.times = times
            self.register_buffer("scale", torch.tensor([scale]))

        def forward(self, x):
            return x * self.scale * self.times

    def name(scale=2.0, times=3.0, width=4, top=8, *more):
        shapes = ({0: torch.export.Dim("T", min=1, max=top)},)
        return name_of(torch.export.export(Scaled(scale, times), (torch.ones(3, width),), dynamic_shapes=shapes), *more)

    others = [name(2.5), name(2.0, 3.5), name(2.0, 3.0, 5), name(2.0, 3.0, 4, 9), name(2.0, 3.0, 4, 8, "end")]
    monkeypatch.setattr(templates, "version", lambda package: "1.2.3")
    assert len({name(), *others}) == 6 and name() == name()
    monkeypatch.undo()
    assert name() not in {*others}
