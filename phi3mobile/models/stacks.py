"""Tensors that lie in a stack: a part called "NAME[3]" is number 3 of the first dimension of NAME."""

from __future__ import annotations

import re

_ITEM = re.compile(r"(.+)\[(\d+)\]")


def item_of(part: str) -> tuple[str, int | None]:
    """A stored part -> the tensor it lies in, and its number in the stack; None where it is the whole tensor."""
    match = _ITEM.fullmatch(part)
    return (match[1], int(match[2])) if match else (part, None)


def unstacked(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of stored tensors, stacks of matrices item by item."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        found |= {f"{name}[{item}]": shape[1:] for item in range(shape[0])} if len(shape) == 3 else {name: shape}
    return found
