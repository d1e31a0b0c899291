"""Packed tower and projector -> vision.pte, and the separators beside it.

The program: encode(view float32 [1, 3, 336, 336]) -> float32 [1, 576, C] and project(rows float32 [T, 4 C]) -> float32
[T, the decoder's hidden], T in [1, rows]. What lies between them, models.vision.merge, is the caller's.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from torch import nn

from phi3mobile.export.packed_vision import PackedVision, write_separators
from phi3mobile.export.targets.executorch import clip, stamp
from phi3mobile.export.targets.executorch.write import LoweredSegment, operators_of
from phi3mobile.models.vision_config import VisionConfig
from phi3mobile.progress import Progress, silent

PROGRAM = "vision.pte"


class Encode(nn.Module):
    """The whole tower, by its pieces."""

    def __init__(self, config: VisionConfig, patches: nn.Module, layers: list[nn.Module]) -> None:
        super().__init__()
        self.positions, self.width = config.positions, config.hidden_size
        self.patches, self.layers = patches, nn.ModuleList(layers)

    def forward(self, view: torch.Tensor) -> torch.Tensor:
        (x,) = self.patches((view,))
        x = x.view(self.positions, self.width)
        for layer in self.layers:
            (x,) = layer((x,))
        return x[1:].view(1, self.positions - 1, self.width)


class Project(nn.Module):
    """The projector."""

    def __init__(self, segment: nn.Module) -> None:
        super().__init__()
        self.segment = segment

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.segment((rows,))[0]


def write_vision(
    packed: PackedVision, folder: Path, rows: int, progress: Progress = silent
) -> tuple[dict[str, Any], list[str], int]:
    """Write both files into `folder`. rows: most that one call projects.

    Returns of the manifest's section what the files say, the program's operators, and bytes of activations.
    """
    config, length = packed.config, torch.export.Dim("T", min=1, max=rows)
    with TemporaryDirectory(dir=folder, prefix=".packed-") as scratch, torch.no_grad():
        made = Stamper(packed, Path(scratch), length)
        layers: list[nn.Module] = []
        for layer in range(config.layers):
            progress("lower the tower", layer, config.layers)
            layers.append(made.segment(clip.LAYER, layer))
        encode = Encode(config, made.segment(clip.PATCHES), layers).eval()
        project = Project(made.segment(clip.PROJECT)).eval()
        view, example = clip.first_input(config, clip.PATCHES), clip.first_input(config, clip.PROJECT)[:rows]
        methods = {
            "encode": torch.export.export(encode, (view,), strict=False),
            "project": torch.export.export(project, (example,), dynamic_shapes=({0: length},), strict=False),
        }
        program = to_edge(methods, compile_config=EdgeCompileConfig(_check_ir_validity=False)).to_executorch(
            ExecutorchBackendConfig(
                extract_delegate_segments=True,
                sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
                memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            )
        )
        with (folder / PROGRAM).open("wb") as file:
            program.write_to_file(file)
    section = write_separators(packed, folder, PROGRAM, rows)
    plans = program.executorch_program.execution_plan
    return section, operators_of(plans), sum(sum(plan.non_const_buffer_sizes) for plan in plans)


class Stamper:
    """Segments with their own weights, each kind lowered once."""

    def __init__(self, packed: PackedVision, scratch: Path, rows: torch.export.Dim | int, views: int = 1) -> None:
        """rows: that are projected at once, any number of them or this one. views: that a layer takes at once."""
        self._packed, self._scratch, self._rows, self._views = packed, scratch, rows, views
        self._templates: dict[str, stamp.Template] = {}

    def segment(self, kind: str, layer: int = 0) -> LoweredSegment:
        config, matrices = self._packed.config, clip.matrices_of(self._packed, kind, layer)
        vectors = clip.vectors_of(self._packed, kind, layer)
        if kind not in self._templates:
            stand_ins = stamp.like(matrices)
            rows = self._rows if isinstance(self._rows, int) else None
            inputs = [clip.first_input(config, kind, self._views, rows or 3), *vectors]
            dynamic = ({0: self._rows},) if kind == clip.PROJECT and rows is None else None
            module = clip.segment(config, kind, stand_ins, self._views)
            self._templates[kind] = stamp.lower_module(module, inputs, dynamic, stand_ins, kind)
        template = self._templates[kind]
        lowered = stamp.stamp(template, [clip.output_shape(config, kind)], matrices, self._scratch)
        return LoweredSegment(lowered, template.order, vectors)
