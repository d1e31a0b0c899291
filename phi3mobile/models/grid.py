"""Matrices that are integers already where they are stored: GGUF blocks, and the packed layers of the hub's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Grid:
    """A matrix [N, K] as a file stores it: weight = code * scale + offset, the latter two for each group of columns."""

    codes: torch.Tensor  # int8 [N, K], of at most 8 bits
    scales: torch.Tensor  # float32 [N, K/group], of any sign
    offsets: torch.Tensor  # float32 [N, K/group]

    @property
    def group(self) -> int:
        """Columns of a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    def rows(self, index: torch.Tensor | slice) -> Grid:
        """Some of the rows, in this order."""
        return Grid(self.codes[index], self.scales[index], self.offsets[index])

    def grouped(self, group: int) -> Grid:
        """The same with more groups: `group` divides the present one."""
        count = self.group // group
        return Grid(self.codes, *(part.repeat_interleave(count, 1) for part in (self.scales, self.offsets)))

    def values(self) -> torch.Tensor:
        """float32 [N, K]."""
        groups = self.codes.float().unflatten(1, (self.scales.shape[1], -1))
        return (groups * self.scales[..., None] + self.offsets[..., None]).flatten(1)


def stacked_grids(grids: list[Grid | None]) -> Grid | None:
    """Matrices of one width, one below the other; None where one is no grid, or its groups don't divide those of another."""
    found = [grid for grid in grids if grid is not None]
    group = min((grid.group for grid in found), default=0)
    if len(found) < len(grids) or any(grid.group % group for grid in found):
        return None
    parts = [grid.grouped(group) for grid in found]
    return Grid(*(torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales", "offsets")))
