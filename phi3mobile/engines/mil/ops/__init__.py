"""MIL operators on numpy: `find("softmax")` is a function whose keyword arguments are the operator's parameters.

Floats arrive and leave as float32, be they declared float16 or float32; the caller rounds and casts the result to its
declared type. Semantics: the MIL operator definitions of coremltools, opsets iOS15 to iOS18.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from phi3mobile.engines.mil.ops import compute, elementwise, indexing, movement, weights

OPERATORS: dict[str, Callable[..., Any]] = {
    **elementwise.OPERATORS,
    **movement.OPERATORS,
    **indexing.OPERATORS,
    **compute.OPERATORS,
    **weights.OPERATORS,
}
# Operators that only carry values: nothing to round, and the result may share memory with an argument.
MOVING = frozenset(movement.OPERATORS) | {"gather", "gather_along_axis", "gather_nd", "select", "cast"}


def find(name: str) -> Callable[..., Any] | None:
    """The operator, or None if it is not known."""
    return OPERATORS.get(name)
