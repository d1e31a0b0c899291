"""Engines run a model one forward at a time; everything above them (sampling, chat, reuse) is the Session's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from phi3mobile.errors import InputError

LONG_REGIME = 1 << 30  # in a program's input_pos: the long RoPE factors apply even if this forward ends before the switch


@dataclass(frozen=True)
class EngineInfo:
    """What a Session must know of the model behind an engine."""

    vocab: int  # width of the logits
    max_context: int  # positions the KV cache holds
    max_chunk: int  # most tokens one forward takes
    original_context: int | None = None  # LongRoPE: sequences longer than this use the long factors; None: no switch
    back: int | None = None  # tokens a position may go back from the farthest since position 0; None: any number


class Engine(Protocol):
    """A decoder with its KV cache inside."""

    info: EngineInfo

    def forward(self, tokens: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        """Run `tokens` int64 [T] at positions position..position+T-1; logits float32 [T, V].

        Cache rows from `position` on are overwritten, so `position` may go back (prefix reuse, rejected drafts): to 0, or
        by at most info.back from the farthest end of a forward since the last one at 0.
        LongRoPE: the rows of this forward get the long factors when `long` or when position+T > info.original_context.
        A sequence is exact only if all its rows have one kind: pass `long` for the early chunks of a long prompt.
        """
        ...

    def reset(self) -> None:
        """Forget the sequence."""
        ...

    def close(self) -> None:
        """Give the memory back; the engine can't be used after."""
        ...


def check_forward(info: EngineInfo, tokens: np.ndarray, position: int) -> None:
    """InputError for tokens or positions that the model can't take."""
    count, end = len(tokens), position + len(tokens)
    if not 0 < count <= info.max_chunk:
        raise InputError(f"{count} tokens were given: 1..{info.max_chunk} fit one forward")
    if position < 0 or end > info.max_context:
        raise InputError(f"positions {position}..{end - 1} were given: the context has {info.max_context}")
    if min(tokens) < 0 or max(tokens) >= info.vocab:
        raise InputError(f"token {min(tokens)}..{max(tokens)} was given: the vocabulary has {info.vocab}")


def check_version(exported: str, installed: str) -> None:
    """A .pte of 1.N runs on 1.N and 1.N+1 (ExecuTorch's promise, runtime/COMPATIBILITY.md), and on nothing older."""
    made, here = (tuple(int(part) for part in text.split(".")[:2]) for text in (exported, installed))
    if made[0] != here[0] or not 0 <= here[1] - made[1] <= 1:
        raise InputError(
            f"the bundle was made for ExecuTorch {exported}, installed is {installed}: "
            f"allowed are {made[0]}.{made[1]} and {made[0]}.{made[1] + 1}; export it again or install one of these"
        )


def check_operators(needed: list[str], present: list[str]) -> None:
    """InputError naming the operators that the runtime lacks."""
    missing = sorted(set(needed) - set(present))
    if missing:
        raise InputError(
            f"this ExecuTorch lacks the operators {', '.join(missing)}; export with a recipe that does without, "
            "or build the runtime with them"
        )


def check_memory(memory: dict[str, Any], context: int, weights_on_heap: bool) -> None:
    """InputError with both numbers if this machine has less memory free than the bundle's KV cache and activations take.

    Weights count only where the runtime copies them to the heap: pages of a file can be dropped and read again.
    """
    import psutil

    cache = memory["kv_per_token"] * context
    needed = cache + memory["activations"] + (memory["weights"] if weights_on_heap else 0)
    available = psutil.virtual_memory().available
    if needed > available:
        raise InputError(
            f"this bundle needs {needed / 1e9:.1f} GB of memory ({cache / 1e9:.1f} GB KV cache for {context} positions), "
            f"{available / 1e9:.1f} GB are free; close programs or export with a smaller --context"
        )
