"""What a comparison of layers measured, and whether it passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

GATE, FLOOR, IDS = 60.0, 10.0, 30.0  # dB: of three in four tokens, of every token, of every id's logits


@dataclass
class Layers:
    """Noise over signal of what layers add to the hidden states, and of logits: (stage, layer) -> sequence -> per token."""

    name: str
    names: list[str]  # of the layers
    noise: dict[tuple[str, str], dict[int, list[float]]] = field(default_factory=dict)
    ids: dict[str, dict[int, list[np.ndarray]]] = field(default_factory=dict)  # stage -> sequence -> [noise, signal] of each id
    undecided: int = 0  # tokens of a mixture that go to other experts if torch's own input moves a little: not compared
    agreed: int = 0
    positions: int = 0
    difference: str = ""  # what rules the comparison out

    def add(self, stage: str, sequence: int, layer: str, values: Sequence[float]) -> None:
        self.noise.setdefault((stage, layer), {}).setdefault(sequence, []).extend(values)

    def add_ids(self, stage: str, sequence: int, noise: np.ndarray, signal: np.ndarray) -> None:
        """Errors and logits [T, V]."""
        sums = self.ids.setdefault(stage, {}).setdefault(sequence, [np.zeros(noise.shape[1]), np.zeros(noise.shape[1])])
        sums[0] += np.square(noise, dtype=np.float64).sum(0)
        sums[1] += np.square(signal, dtype=np.float64).sum(0)

    def worst_id(self, stage: str) -> float:
        """dB of the id that is the farthest off all of a sequence, in the best sequence: a row of the head shows there."""
        ratios = (float(noise.max() / max(signal.mean(), 1e-30)) for noise, signal in self.ids.get(stage, {}).values())
        return _decibels(min(ratios, default=math.inf))

    def typical(self, stage: str, layer: str) -> float:
        """dB that three of four tokens reach, in the best sequence."""
        found = [values for values in self.noise.get((stage, layer), {}).values() if values]
        return _decibels(min((float(np.quantile(values, 0.75, method="higher")) for values in found), default=math.inf))

    def worst(self, stage: str, layer: str) -> float:
        """dB of the worst token of all."""
        found = [max(values) for values in self.noise.get((stage, layer), {}).values() if values]
        return _decibels(max(found, default=math.inf))

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(stage for stage, _ in self.noise))

    def lowest(self, stage: str) -> str:
        """The layer that is the farthest off."""
        return min(self.names, key=lambda layer: self.typical(stage, layer))

    @property
    def failure(self) -> str:
        """What is wrong, in a line; "": nothing."""
        for stage in self.stages:
            layer = self.lowest(stage)
            if (typical := self.typical(stage, layer)) < GATE:
                return f"{stage}: {layer} is not what torch computes, {typical:.1f} dB where {GATE:g} are required"
            layer = min(self.names, key=lambda layer: self.worst(stage, layer))
            if (worst := self.worst(stage, layer)) < FLOOR:
                return f"{stage}: a token of {layer} has {worst:.1f} dB where {FLOOR:g} are required"
            if (worst := self.worst_id(stage)) < IDS:
                return f"{stage}: the logits of an id have {worst:.1f} dB where {IDS:g} are required"
        return self.difference or ("" if self.noise else "nothing was compared")

    @property
    def passed(self) -> bool:
        return not self.failure

    @property
    def required(self) -> str:
        return f"required of every layer: {GATE:g} dB, of every token {FLOOR:g} dB"

    def document(self) -> dict[str, object]:
        """For the JSON line."""
        lowest = {stage: self.lowest(stage) for stage in self.stages}
        return {
            "gate_dB": GATE,
            "token_gate_dB": FLOOR,
            "id_gate_dB": IDS,
            "passed": self.passed,
            "failure": self.failure or None,
            "reached_dB": {s: round(min(self.typical(s, layer) for layer in self.names), 1) for s in lowest},
            "worst_id_dB": {s: round(self.worst_id(s), 1) for s in lowest},
            "worst_token_dB": {s: round(min(self.worst(s, layer) for layer in self.names), 1) for s in lowest},
            "lowest_layer": lowest,
            "layers_dB": [round(min(self.typical(s, layer) for s in lowest), 1) for layer in self.names],
            "undecided": self.undecided,
            "same_token": round(self.agreed / max(self.positions, 1), 4),
        }

    def rows(self) -> dict[str, str]:
        """For the card."""
        found = {}
        for stage in self.stages:
            typical = min(self.typical(stage, layer) for layer in self.names)
            worst = min(self.worst(stage, layer) for layer in self.names)
            found[stage] = f"{typical:.1f} dB in {self.lowest(stage)}, worst token {worst:.1f} dB"
        layers = (min(self.typical(stage, layer) for stage in self.stages) for layer in self.names)
        found["embedding, layers, logits"] = " ".join(f"{value:.0f}" for value in layers) + " dB"
        found["same likeliest token"] = f"{self.agreed} of {self.positions}"
        return found | ({"failed": self.failure} if self.failure else {})


def _decibels(noise: float) -> float:
    """Of noise over signal: from -200, where it is not finite, to 200."""
    return max(-200.0, min(200.0, -10 * math.log10(max(noise, 1e-20)))) if math.isfinite(noise) else -200.0
