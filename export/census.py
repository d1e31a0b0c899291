"""What a Core ML program is made of, and what in it keeps which unit of an Apple chip from running it.

The rules are known limits of the Neural Engine (ANE), the GPU and the CPU; which unit really runs an operator, only the device
tells (MLComputePlan).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from phi3mobile.engines.mil import Function, Program
from phi3mobile.engines.mil.spec import Blob, Name, Op
from phi3mobile.screen import size

ANE_WIDTH = 16384  # largest size of a dimension
ANE_RANK = 5
_ANE_TYPES = {"float16", "int8", "uint8", "int16", "uint16", "int4", "uint4", "uint1", "uint2", "uint3", "uint6", "bool"}
_INDEXING = {"int32", "string"}  # positions and parameters: small work, which the CPU does in any case


@dataclass
class Census:
    """Of one function: operators by type and, for each reason that keeps operators off the ANE, their names."""

    function: str
    operators: Counter[str] = field(default_factory=Counter)
    off_ane: dict[str, list[str]] = field(default_factory=dict)
    weights: Counter[str] = field(default_factory=Counter)  # bytes in the weight file by element type
    states: int = 0  # bytes

    @property
    def total(self) -> int:
        return sum(self.operators.values())

    def report(self) -> dict[str, Any]:
        """For JSON: counts, weight bytes, and per reason the number of operators and the first one's name."""
        return {
            "operators": dict(self.operators.most_common()),
            "weights": dict(self.weights),
            "states": self.states,
            "off_ane": {reason: {"operators": len(names), "first": names[0]} for reason, names in self.off_ane.items()},
        }

    def rows(self) -> dict[str, str]:
        """Rows of a card."""
        common = ", ".join(f"{name} {count}" for name, count in self.operators.most_common(8))
        rest = len(self.operators) - 8
        reasons = "; ".join(f"{reason}: {len(names)}, first {names[0]}" for reason, names in self.off_ane.items())
        return {
            f"{self.function}: operators": f"{self.total} of {len(self.operators)} types: {common}"
            + (f" and {rest} more" if rest > 0 else ""),
            f"{self.function}: weights": ", ".join(f"{kind} {size(count)}" for kind, count in self.weights.most_common())
            + f"; states {size(self.states)}",
            f"{self.function}: not for the ANE": reasons or "nothing known",
        }


def census(program: Program) -> list[Census]:
    """One for every function."""
    return [_census(name, function) for name, function in program.functions.items()]


def _census(name: str, function: Function) -> Census:
    found = Census(name)
    shapes = {value: kind for op in function.block.walk() for value, kind in op.outputs} | dict(function.block.inputs)
    constant: set[str] = set()
    seen: set[Blob] = set()
    for op in function.block.walk():
        if op.type == "const" or op.type.startswith("constexpr_"):
            constant.update(value for value, _ in op.outputs)
            _count_weights(op, found, seen)
            continue
        found.operators[op.type] += 1
        for reason in _reasons(op, shapes, constant):
            found.off_ane.setdefault(reason, []).append(op.name)
    found.states = sum(_bytes(state.dtype, state.shape) for state in function.states.values())
    if function.states:
        found.off_ane.setdefault("KV cache in states, contested on the ANE", []).extend(function.states)
    return found


def _count_weights(op: Op, found: Census, seen: set[Blob]) -> None:
    """Constants in the weight file, each once."""
    for blob in op.arguments.values():
        if isinstance(blob, Blob) and blob not in seen:
            seen.add(blob)
            found.weights[blob.type.dtype] += _bytes(blob.type.dtype, blob.type.shape)
    scale = op.arguments.get("scale")
    shape = scale.type.shape if isinstance(scale, Blob) else getattr(scale, "shape", ())
    if op.type == "constexpr_blockwise_shift_scale" and any(length != 1 for length in shape[1:]):
        found.off_ane.setdefault("weights with a scale per block", []).append(op.name)


def _bytes(dtype: str, shape: tuple[int | None, ...]) -> int:
    elements = math.prod(length or 1 for length in shape)
    digits = "".join(character for character in dtype.partition("e")[0] if character.isdigit())
    return elements * int(digits or 8) // 8


def _reasons(op: Op, shapes: dict[str, Any], constant: set[str]) -> list[str]:
    used = [
        item.name
        for value in op.arguments.values()
        for item in (value if isinstance(value, list) else [value])
        if isinstance(item, Name) and item.name in shapes
    ]
    kinds = [shapes[name] for name in used if name not in constant] + [kind for _, kind in op.outputs]
    tables = [shapes[name] for name in used]
    work = [kind for kind in kinds if kind.dtype not in _INDEXING]
    reasons = []
    if wrong := sorted({kind.dtype for kind in work} - _ANE_TYPES):
        reasons.append(f"{', '.join(wrong)} values")
    if any(None in kind.shape for kind in work):
        reasons.append("shapes known at run time")
    if any(len(kind.shape) > ANE_RANK for kind in work):
        reasons.append(f"rank over {ANE_RANK}")
    if any(length and length > ANE_WIDTH for kind in tables for length in kind.shape):
        reasons.append(f"a dimension over {ANE_WIDTH}")
    if op.type in ("gather", "gather_nd", "gather_along_axis") and work:
        reasons.append("gathers")
    if op.type.startswith("scatter"):
        reasons.append("scatters")
    if op.type == "slice_update" and not _fixed(op, constant):
        reasons.append("slice_update at a place computed at run time")
    return reasons


def _fixed(op: Op, constant: set[str]) -> bool:
    spans = (op.arguments.get(key) for key in ("begin", "end"))
    return all(not isinstance(span, Name) or span.name in constant for span in spans)
