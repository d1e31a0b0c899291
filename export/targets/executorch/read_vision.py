"""What a bundle's vision.pte holds, against the integers that it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from phi3mobile.export.packed_vision import PackedVision, separators_difference
from phi3mobile.export.targets.executorch import clip, stamp
from phi3mobile.export.targets.executorch.program import Pte

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle


def tower_difference(bundle: Bundle, packed: PackedVision) -> str:
    """The first segment that holds other matrices or vectors, and how; "": all are the same.

    XNNPACK's constants are named by their hashes, so that each segment's graph says whose it has.
    """
    assert bundle.vision is not None
    path, patches, project = bundle.folder / bundle.vision["program"], [(clip.PATCHES, 0)], [(clip.PROJECT, 0)]
    layers = [(clip.LAYER, layer) for layer in range(packed.config.layers)]
    methods = [(path, "encode", [*patches, *layers]), (path, "project", project)]
    if (grid := bundle.vision.get("grid")) is not None:
        methods.append((bundle.program, "vision_encoder", [*patches * (1 + grid[0] * grid[1]), *layers, *project]))
    for path, method, segments in methods:
        pte = Pte(path, method)
        calls = pte.calls()
        if len(calls) != len(segments):
            return f"{method} has {len(calls)} segments, its checkpoint makes {len(segments)}"
        for call, (kind, layer) in zip(calls, segments, strict=True):
            where = f"{kind} {layer}" if kind == clip.LAYER else kind
            named = {entry["named_key"] for entry in pte.graph(call)["constant_data"]}
            for name, matrix in clip.matrices_of(packed, kind, layer).items():
                for key, data in stamp.named_data(matrix):
                    if key not in named or not torch.equal(pte.named(key), stamp.as_bytes(data)):
                        return f"{name} of {where} holds other integers, scales or biases than its source"
            vectors = [value for index in call.args if (value := pte.constant(index)) is not None]
            wanted = clip.vectors_of(packed, kind, layer)
            if len(vectors) != len(wanted) or not all(any(_same(one, other) for other in vectors) for one in wanted):
                return f"{where} has other norms or positions than its source"
    return separators_difference(bundle.folder / bundle.vision["separators"], packed)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
