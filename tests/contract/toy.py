"""A whole target in one file: the packed integers as arrays in an .npz, and an engine that computes with them in torch.

tests/contract/test_targets.py puts it where targets are looked for, and touches nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from phi3mobile.engines.eager import EagerEngine
from phi3mobile.export.integers import Integers
from phi3mobile.export.packed import HEAD, PackedModel, load_packed
from phi3mobile.export.recipe import Recipe
from phi3mobile.export.target import Check, Target, Written
from phi3mobile.models.form import Form
from phi3mobile.models.quantized import Packed
from phi3mobile.models.registry import read_config

PROGRAM = "model.npz"


class ToyTarget(Target):
    recipes = (Recipe(name="toy", about="arrays, for tests", max_context=128, chunk=16),)

    def pieces(self, recipe):
        return "rmsnorm", "swiglu", "window"

    def engine(self, recipe):
        return f"{__name__}:open_toy"

    def write(self, packed, folder, plan, progress):
        arrays = {"config": np.array(json.dumps(packed.config.to_hf()))}
        for name in {*packed.checkpoint.names(), HEAD}:
            value = packed.tensor(name)
            if isinstance(value, Packed):
                arrays[f"{name}/codes"], arrays[f"{name}/scales"] = value.codes.numpy(), value.scales.float().numpy()
                arrays[f"{name}/form"] = np.array([value.bits, value.group])
            else:
                arrays[name] = value.numpy()
        np.savez(folder / PROGRAM, **arrays)
        runtime = {"name": "Toy", "version": "1.0", "program": PROGRAM, "operators": []}
        return Written(runtime, activations=1 << 20, kv_per_token=int(packed.config.kv_bytes_per_token(4)))

    def finish(self, folder, plan):
        (folder / "README").write_text(f"{plan.context} positions, {plan.chunk} tokens at a time\n")

    def checks(self, bundle, packed):
        reference = lambda: load_packed(packed, bundle.info.max_context)  # noqa: E731
        return [Check("arrays", 120.0, reference, lambda: open_toy(bundle))]

    def integers(self, bundle, config):
        return Stored(bundle.program)


class Stored(Integers):
    """What the file holds."""

    def __init__(self, path: Path) -> None:
        self._arrays = np.load(path)
        self.config = read_config(json.loads(str(self._arrays["config"])))

    def form_of(self, name):
        found = self._arrays.get(f"{name}/form")
        return None if found is None else Form(*found.tolist())

    def shape(self, name):
        return tuple(self.tensor(name).shape)

    def tensor(self, name):
        if name in self._arrays:
            return torch.from_numpy(self._arrays[name])
        codes, scales = (torch.from_numpy(self._arrays[f"{name}/{part}"]) for part in ("codes", "scales"))
        bits, group = self._arrays[f"{name}/form"].tolist()
        return Packed(bits, group, codes, scales.bfloat16() if bits == 4 else scales)


def open_toy(bundle, threads=0):
    return EagerEngine(
        load_packed(PackedModel(Stored(bundle.program), TARGET.recipes[0]), bundle.info.max_context), bundle.info.max_chunk
    )


TARGET = ToyTarget()
