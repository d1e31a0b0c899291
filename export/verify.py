"""A bundle's program against torch holding the same integers, on real prompts: what `phi3mobile verify` measures.

weights    the integers, norms and biases that the program holds, read back from it, against what it was made from
...        the program against torch with those integers: its target says how, and what is required (Target.checks)
pictures   a tower's integers, and what it makes of views against torch with them
4 bit      the program against the unquantized checkpoint: what quantization costs, reported only
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from phi3mobile.bundle import Bundle
from phi3mobile.engines import BaseEngine, Engine
from phi3mobile.export.forwards import stages
from phi3mobile.export.layer_result import Layers
from phi3mobile.export.layerwise import LayerCheck, compare_layers
from phi3mobile.export.packed import PackedModel
from phi3mobile.export.target import Check
from phi3mobile.export.targets import target_of
from phi3mobile.export.tower_check import TowerResult, compare_tower, packed_vision_of
from phi3mobile.export.weights import Source, Weights, compare_weights, source_of
from phi3mobile.models.decoder import Decoder
from phi3mobile.models.loading import model_from
from phi3mobile.progress import Progress, silent

__all__ = ["Comparison", "Error", "compare", "run_check", "source_of", "verify"]

_NEVER = -1e30  # logits below it are of ids that the model never says


@dataclass
class Error:
    """Squared error against a reference, and the reference's greatest magnitude."""

    squares: float = 0.0
    count: int = 0
    peak: float = 0.0

    def add(self, reference: np.ndarray, values: np.ndarray) -> None:
        """One pair of arrays of one shape. A value that is not finite, on either side, makes the error infinite."""
        with np.errstate(invalid="ignore"):  # of two infinities
            difference = np.asarray(reference, np.float64) - values
        self.squares += float(np.square(difference).sum()) if np.isfinite(difference).all() else np.inf
        self.count += difference.size
        self.peak = max(self.peak, float(np.abs(reference).max(initial=0)))

    @property
    def finite(self) -> bool:
        """Whether something was compared, and all of it was finite."""
        return bool(self.count) and math.isfinite(self.squares)

    @property
    def psnr(self) -> float:
        """Peak signal to noise ratio in dB; 200 where there is no noise, -200 where something was not finite."""
        if not self.finite:
            return -200.0
        if not self.squares:
            return 200.0
        return float(max(10 * np.log10(max(self.peak, 1e-30) ** 2 * self.count / self.squares), -200.0))


@dataclass
class Comparison:
    """One comparison: per stage and per layer."""

    name: str
    gate: float | None
    stages: dict[str, Error] = field(default_factory=dict)
    layers: list[Error] = field(default_factory=list)
    agreed: int = 0  # positions with the same likeliest token
    positions: int = 0

    @property
    def passed(self) -> bool:
        """Whether every stage was compared, all of it finite and, if there is a gate, as exact as that."""
        layers = [error for error in self.layers if error.count]
        finite = bool(self.stages) and all(error.finite for error in (*self.stages.values(), *layers))
        return finite and (self.gate is None or all(error.psnr >= self.gate for error in self.stages.values()))

    @property
    def required(self) -> str:
        return "" if self.gate is None else f"required: {self.gate:g} dB"

    def document(self) -> dict[str, object]:
        """For the JSON line."""
        return {
            "gate_dB": self.gate,
            "passed": self.passed,
            "logits_dB": {stage: round(error.psnr, 1) for stage, error in self.stages.items()},
            "layers_dB": [round(error.psnr, 1) for error in self.layers if error.count],
            "same_token": round(self.agreed / max(self.positions, 1), 4),
        }

    def rows(self) -> dict[str, str]:
        """For the card."""
        found = {f"logits, {stage}": f"{error.psnr:.1f} dB" for stage, error in self.stages.items()}
        if layers := [error.psnr for error in self.layers if error.count]:
            found["layers, first to last"] = " ".join(f"{value:.0f}" for value in layers) + " dB"
        return found | {"same likeliest token": f"{self.agreed} of {self.positions}"}


def verify(
    bundle: Bundle, source: Source, prompts: list[list[int]], progress: Progress = silent
) -> list[Weights | Layers | Comparison | TowerResult]:
    """Every comparison. prompts: token ids, each at least one. Raises InputError for a program of another structure."""
    target = target_of(source.recipe)
    progress("weights", 0, 1)
    packed = PackedModel(target.integers(bundle, source.config), source.recipe)
    done: list[Weights | Layers | Comparison | TowerResult] = [compare_weights(packed, source)]
    checks = target.checks(bundle, packed)
    for number, check in enumerate(checks):
        progress(check.name, number, len(checks))
        done.append(run_check(check, prompts))
    if bundle.vision is not None:
        progress("pictures", 0, 1)
        tower = packed_vision_of(source)
        difference = target.tower_difference(bundle, tower)
        done += [compare_tower(check, difference) for check in target.tower_checks(bundle, tower)]
    if (floats := source.floats) is not None:
        progress("4 bit", 0, 1)
        against = lambda: model_from(floats, bundle.info.max_context)  # noqa: E731
        done.append(run_check(Check("4 bit", None, against, checks[-1].open), prompts))
    return done


def run_check(check: Check | LayerCheck, prompts: list[list[int]]) -> Layers | Comparison:
    """One of them: what it needs is opened, compared and closed."""
    if isinstance(check, LayerCheck):
        return compare_layers(check, prompts)
    engine = check.open()
    try:
        return compare(check.name, check.gate, engine, check.reference(), prompts)
    finally:
        engine.close()


def compare(name: str, gate: float | None, engine: Engine, model: Decoder, prompts: list[list[int]]) -> Comparison:
    """Run both through the same forwards."""
    result = Comparison(name, gate, layers=[Error() for _ in range(model.config.num_hidden_layers)])
    for prompt in prompts:
        for stage, forwards in stages(engine.info, prompt):
            error = result.stages.setdefault(stage, Error())
            following: list[int] = []
            for tokens, position, long in forwards(following):
                reference, logits, layers, ours = _both(engine, model, tokens, position, long)
                said = ~(reference <= _NEVER)  # NaN is said: it is compared, and does not pass
                error.add(reference[said], logits[said])
                if not (np.where(said, -np.inf, logits).max(-1) < np.where(said, reference, -np.inf).max(-1)).all():
                    error.squares = np.inf  # an id that is never said would be, or is NaN
                for total, (expected, found) in zip(result.layers, zip(layers, ours, strict=True), strict=False):
                    total.add(expected, found[: len(tokens)])
                result.agreed += int((reference.argmax(-1) == logits.argmax(-1)).sum())
                result.positions += len(tokens)
                following.append(int(reference[-1].argmax()))
    return result


def _both(engine: Engine, model: Decoder, tokens: list[int], position: int, long: bool):
    """Logits [T, V] of the reference and of the engine, and what each had after its layers (empty if it can't tell)."""
    model.filled = max(model.filled, position)
    with _recorded(model) as expected:
        reference = model(torch.tensor([tokens]), position, long)[0].numpy()
    found: dict[str, np.ndarray] = {}

    def trace(name: str, kind: str, outputs: dict[str, np.ndarray]) -> None:
        if name.startswith("layer_"):
            value = outputs[name]
            found[name] = np.array(value[0] if value.ndim == 3 else value[0, :, 0].T)  # Conv2d layout: [1, C, 1, T]

    if isinstance(engine, BaseEngine):
        engine.trace = trace
    logits = engine.forward(np.array(tokens), position, long)
    ours = [found[f"layer_{layer}"] for layer in range(len(found))]
    return reference, logits, expected if ours else [], ours


@contextmanager
def _recorded(model: Decoder) -> Iterator[list[np.ndarray]]:
    """While it is open, every layer's output [T, hidden] is appended to the list."""
    outputs: list[np.ndarray] = []

    def recording(run):
        def finished(x, attended):
            result = run(x, attended)
            outputs.append(result[0].numpy())
            return result

        return finished

    layers = model.model.layers
    for layer in layers:
        layer.attention_output = recording(layer.attention_output)
    try:
        yield outputs
    finally:
        for layer in layers:
            del layer.attention_output  # the method of the class again
