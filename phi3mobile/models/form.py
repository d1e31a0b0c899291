"""How a matrix is packed; the integers themselves are in quantized.py."""

from __future__ import annotations

from typing import NamedTuple


class Form(NamedTuple):
    """4 bits with a scale per `group` columns and maybe an offset, or 8 bits with a scale a row: then group is the row.

    signed: 4-bit scales may be negative, so that the code -8 stands at the longer side of every group.
    """

    bits: int
    group: int
    offsets: bool = False
    signed: bool = False

    def holds(self, other: Form) -> bool:
        """Whether what is packed as `other` is of this form too."""
        return self._replace(signed=other.signed) == other and self.signed >= other.signed

    def bits_per_weight(self, width: int) -> float:
        """Of rows of `width`, scales and offsets included."""
        if self.bits == 8:
            return 8 + 32 / width
        groups = width // self.group
        return 4 + (16 * groups + (8 * groups + 32 if self.offsets else 0)) / width
