"""A bundle's tower against torch with the same integers: what `phi3mobile verify` says of pictures.

Both see the same views. Three of four patches must be as exact as the gate of the target's check, in the best of the views.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from phi3mobile.export.packed_vision import PackedVision
from phi3mobile.export.solve.rotate import Rotated
from phi3mobile.export.target import TowerCheck
from phi3mobile.export.tower_pictures import measured_views
from phi3mobile.export.weights import Source
from phi3mobile.models.clip import merged

_VIEWS = 2


@dataclass
class TowerResult:
    """Noise over signal of each patch or row."""

    name: str
    gate: float
    difference: str = ""  # of the integers; "": they are the source's
    noise: dict[str, list[list[float]]] = field(default_factory=dict)  # method -> of each view, of each row

    @property
    def required(self) -> str:
        return f"required: the source's integers, {self.gate:g} dB"

    @property
    def stages(self) -> list[str]:
        return list(self.noise)

    def typical(self, stage: str) -> float:
        """dB that three of four rows reach, in the best view."""
        return max(_decibels(float(np.quantile(values, 0.75))) for values in self.noise[stage])

    def worst(self, stage: str) -> float:
        return min(_decibels(max(values)) for values in self.noise[stage])

    @property
    def failure(self) -> str:
        """What is wrong, in a line; "": nothing."""
        low = [f"{stage} has {self.typical(stage):.1f} dB" for stage in self.noise if self.typical(stage) < self.gate]
        return self.difference or ", ".join(low) or ("" if self.noise else "nothing was compared")

    @property
    def passed(self) -> bool:
        return not self.failure

    def document(self) -> dict[str, object]:
        """For the JSON line."""
        return {
            "gate_dB": self.gate,
            "passed": self.passed,
            "failure": self.failure or None,
            "reached_dB": {stage: round(self.typical(stage), 1) for stage in self.noise},
            "worst_row_dB": {stage: round(self.worst(stage), 1) for stage in self.noise},
        }

    def rows(self) -> dict[str, str]:
        """For the card."""
        found = {s: f"{self.typical(s):.1f} dB, worst row {self.worst(s):.1f} dB" for s in self.noise}
        return found | ({"failed": self.failure} if self.failure else {"integers, norms, biases": "its source's"})


def packed_vision_of(source: Source) -> PackedVision:
    """The integers that the bundle's tower must hold: rounded to nearest whatever the decoder's method, so always known."""
    if source.packed is not None:
        return PackedVision(source.packed.checkpoint, source.recipe.vision_bits)
    assert source.floats is not None
    return PackedVision(Rotated(source.floats) if source.turned else source.floats, source.recipe.vision_bits)


@torch.no_grad()
def compare_tower(check: TowerCheck, difference: str) -> TowerResult:
    """difference: what the target found wrong with the integers."""
    result, tower = TowerResult(check.name, check.gate, difference), check.open()
    try:
        reference, seen = check.reference(), measured_views()[:_VIEWS]
        for view in seen:
            expected = reference.encode(view[None])
            _add(result, "encode", expected[0], tower.encode(view.numpy()))
            rows = torch.cat([merged(expected)[0], torch.stack(reference.separators)])
            _add(result, "project", reference.project(rows), tower.project(rows.numpy()))
    finally:
        tower.close()
    return result


def _add(result: TowerResult, stage: str, expected: torch.Tensor, found: np.ndarray) -> None:
    noise = (torch.from_numpy(found) - expected).double().square().sum(-1) / expected.double().square().sum(-1).clamp(min=1e-30)
    result.noise.setdefault(stage, []).append(noise.nan_to_num(torch.inf, torch.inf).tolist())


def _decibels(noise: float) -> float:
    return float(-10 * np.log10(max(noise, 1e-20))) if np.isfinite(noise) else -200.0
