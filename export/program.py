"""What a target that is written from the config (Core ML, LiteRT) tells the manifest of its program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Program:
    """What was written: the manifest's `runtime` (but kind and version), bytes of activations (estimated), of KV per token."""

    runtime: dict[str, Any]
    activations: int
    kv_per_token: int
    back: int | None = None  # tokens that a position may go back; None: any number

    def kv_bytes(self, tokens: int) -> int:
        return self.kv_per_token * tokens
