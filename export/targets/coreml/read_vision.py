"""What a bundle's vision.mlpackage holds, against the integers that it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phi3mobile.engines.mil.program import Program, load
from phi3mobile.engines.mil.spec import Blob
from phi3mobile.engines.mil.weights import WeightFiles
from phi3mobile.export.packed_vision import PackedVision, separators_difference
from phi3mobile.export.targets.coreml.tower import FUNCTIONS, constants

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle

_PARTS = {"data": "codes", "scale": "scales", "offset": "offsets"}  # of a packed matrix -> how matrices.py names them


def tower_difference(bundle: Bundle, packed: PackedVision) -> str:
    """The first constant that is not what would be written, to the bit, and its name; "": all are."""
    assert bundle.vision is not None
    program = load(bundle.folder / bundle.vision["program"])
    found, files = _constants(program), WeightFiles(program.folder)
    for name, value in constants(packed).values.items():
        if name not in found:
            return f"the tower lacks {name}"
        own, wanted = found[name], value()
        held = files.read(own) if isinstance(own, Blob) else own
        if held.shape != wanted.shape or not np.array_equal(held, wanted.astype(held.dtype)):
            return f"{name} of the tower holds other values than its source"
    return separators_difference(bundle.folder / bundle.vision["separators"], packed)


def _constants(program: Program) -> dict[str, Blob | np.ndarray]:
    found: dict[str, Blob | np.ndarray] = {}
    for op in (op for name in FUNCTIONS for op in program.function(name).block.walk()):
        if op.type == "const":
            found[op.name] = op.arguments["val"]
        elif op.type.startswith("constexpr_"):
            found |= {f"{op.name}_{part}": op.arguments[key] for key, part in _PARTS.items() if key in op.arguments}
    return found
