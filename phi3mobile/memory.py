"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from phi3mobile.errors import InputError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_memory(text: str | int) -> int:
    """Bytes of "4GB", "512MiB" or a number. InputError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    factor = _UNITS.get(match[2].upper()) if match else None
    if match is None or factor is None or float(match[1]) * factor < 1:
        raise InputError(f"experts memory {text!r}: give bytes above 0, such as 4GB, 1.5GB, 512MiB or 2000000000")
    return int(float(match[1]) * factor)
