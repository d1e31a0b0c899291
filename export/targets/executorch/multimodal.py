"""A tower for ExecuTorch's own multimodal runner: its method vision_encoder, of pictures that are cut into one grid of crops.

The runner gives a method one image, and takes what comes back for rows of the decoder; nothing says how large the picture was.
So all that lies between pixels and rows is in the graph: views, tower, merge, projector. Resizing and padding are the app's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from phi3mobile.export.packed_vision import PackedVision
from phi3mobile.export.targets.executorch import clip
from phi3mobile.export.targets.executorch.vision import Stamper
from phi3mobile.models.vision import MEAN, SIDE, STD, rows_of, taps
from phi3mobile.models.vision_config import VisionConfig
from phi3mobile.progress import Progress, silent

METHOD = "vision_encoder"


class VisionEncoder(nn.Module):
    """picture uint8 [3, 336 down, 336 across], fitted as models.vision.fit does -> rows float32 [1, tokens, hidden]."""

    mean: torch.Tensor
    deviation: torch.Tensor
    sub_separator: torch.Tensor
    global_separator: torch.Tensor
    down_taps: torch.Tensor
    across_taps: torch.Tensor

    def __init__(
        self,
        config: VisionConfig,
        grid: tuple[int, int],
        separators: tuple[torch.Tensor, torch.Tensor],
        patches: nn.Module,
        layers: list[nn.Module],
        project: nn.Module,
    ) -> None:
        """grid: crops (across, down). layers: of all views at once. project: of all rows."""
        super().__init__()
        self.config, (self.across, self.down) = config, grid
        self.patches, self.layers, self.project = patches, nn.ModuleList(layers), project
        for name, values in (("mean", MEAN), ("deviation", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))
        for name, separator in zip(("sub_separator", "global_separator"), separators, strict=True):
            self.register_buffer(name, separator.view(1, 1, -1))
        for name, factor in (("down_taps", self.down), ("across_taps", self.across)):
            at = [np.arange(start, SIDE * factor + start, factor).clip(0, SIDE * factor - 1) for start, _ in taps(factor)]
            self.register_buffer(name, torch.from_numpy(np.stack(at)))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        views = self._views((picture.to(torch.float32) / 255 - self.mean) / self.deviation)
        x = torch.cat([self.patches((view.reshape(1, 3, SIDE, SIDE),))[0] for view in views])
        x = x.view(-1, self.config.hidden_size)
        for layer in self.layers:
            (x,) = layer((x,))
        features = x.view(len(views), self.config.positions, -1)[:, 1:]
        crops, whole = self._tokens(features[1:], self.across, self.down), self._tokens(features[:1], 1, 1)
        (rows,) = self.project((torch.cat([crops, self.global_separator[0], whole]),))
        return rows.view(1, *rows.shape)

    def _views(self, picture: torch.Tensor) -> list[torch.Tensor]:
        """models.vision.cut: the whole, then the crops row by row, each float32 [3, 336, 336]."""
        whole = torch.zeros(3, SIDE, SIDE)
        for row, (_, y_weight) in enumerate(taps(self.down)):
            rows = picture.index_select(1, self.down_taps[row])
            for column, (_, x_weight) in enumerate(taps(self.across)):
                whole = whole + rows.index_select(2, self.across_taps[column]) * (y_weight * x_weight)
        crops = [part for band in picture.split(SIDE, 1) for part in band.split(SIDE, 2)]
        return [whole, *crops]

    def _tokens(self, features: torch.Tensor, across: int, down: int) -> torch.Tensor:
        """models.vision.merge of one picture: patches [across * down, 576, C] -> [12 down * (12 across + 1), 4 C]."""
        side = int(self.config.patches**0.5) // 2
        tiles = features.reshape(down, across, side, 2, side, 2, -1).permute(0, 2, 1, 4, 3, 5, 6)
        tokens = tiles.reshape(side * down, side * across, -1)
        ends = self.sub_separator.expand(side * down, 1, -1)
        return torch.cat([tokens, ends], 1).reshape(side * down * (side * across + 1), -1)


def vision_encoder(
    packed: PackedVision, grid: tuple[int, int], scratch: Path, progress: Progress = silent
) -> torch.export.ExportedProgram:
    """The method for pictures of `grid` (crops across, down). Its weights lie in `scratch` until the program is written."""
    config, (across, down), layers = packed.config, grid, list[nn.Module]()
    made = Stamper(packed, scratch, rows_of(grid), 1 + across * down)
    for layer in range(config.layers):
        progress("lower the tower for one grid", layer, config.layers)
        layers.append(made.segment(clip.LAYER, layer))
    patches, project = made.segment(clip.PATCHES), made.segment(clip.PROJECT)
    module = VisionEncoder(config, grid, packed.separators(), patches, layers, project).eval()
    picture = torch.zeros(3, SIDE * down, SIDE * across, dtype=torch.uint8)
    return torch.export.export(module, (picture,), strict=False)
