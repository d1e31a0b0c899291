"""What phones do with a mixture of experts that does not fit their memory: rows for the card of `inspect`.

What memory does not hold of a token's experts comes from flash: 1 / ((1 - hits) * cycle / flash + read / bandwidth), with
nothing overlapped. Hits are those of uniform routing, the worst case of a cache by layer. Memory that a process gets, flash and
bandwidth are those of docs/moe.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FLASH, BANDWIDTH = 2.3e9, 30e9  # bytes a second: UFS 4 with two reads in flight, usable of LPDDR5X
PROCESS = {8: 3.5e9, 12: 5.5e9, 16: 8.5e9, 24: 16e9}  # GB of RAM -> bytes that one process gets


def share_held(manifest: Mapping[str, Any], room: float) -> float:
    """Of the experts, what `room` bytes hold beside the weights that are none, which come first: where uniform routing hits."""
    mixture = manifest["runtime"]["experts"]
    dense = manifest["memory"]["weights"] - mixture["bytes"]
    return min(1.0, max(0.0, room - dense) / mixture["bytes"])


def expected(manifest: Mapping[str, Any], ram_gb: int) -> tuple[float, float]:
    """Share of experts found in memory, and tokens per second. The rest of the model is resident."""
    mixture, memory = manifest["runtime"]["experts"], manifest["memory"]
    undroppable = memory["kv_per_token"] * manifest["model"]["context"] + memory["activations"]
    hits = share_held(manifest, PROCESS[ram_gb] - undroppable)
    cycle = mixture["bytes"] * mixture["used"] / mixture["experts"]
    table = manifest["model"]["vocab"] * manifest["model"]["hidden"]
    read = memory["weights"] - mixture["bytes"] - table * manifest["recipe"].get("embedding_bits", 8) / 8 + cycle
    return hits, 1 / ((1 - hits) * cycle / FLASH + read / BANDWIDTH)


def card_rows(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Rows for a mixture's bundle; none for another."""
    mixture = manifest["runtime"].get("experts")
    if mixture is None:
        return {}
    count = mixture["layers"] * mixture["experts"]
    one = mixture["bytes"] / count
    memory = mixture.get("memory")
    rows = {
        "experts": f"{mixture['layers']} layers x {mixture['experts']}, {mixture['used']} a token; {one / 1e6:.2f} MB each, "
        f"{mixture['bytes'] / 1e9:.2f} GB in {mixture['file']}; memory for them: "
        + (f"{memory / 1e9:.1f} GB" if memory else "all that they need")
    }
    for ram in PROCESS:
        hits, rate = expected(manifest, ram)
        fits = "all experts fit" if hits >= 1 else f"{hits:.0%} of experts in memory"
        rows[f"expected, {ram} GB phone"] = f"{fits}, about {rate:.1f} tokens/s (bound: flash 2.3 GB/s, memory 30 GB/s)"
    return rows
