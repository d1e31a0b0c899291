"""What every engine is and does alike: the contract, its checks, the mark of the LongRoPE regime.

An engine is a subclass of BaseEngine that implements `_run`; registry.py says which one runs a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from phi3mobile.errors import InputError
from phi3mobile.info import EngineInfo

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle

LONG_REGIME = 1 << 30  # in a program's input_pos: the long RoPE factors apply even if this forward ends before the switch
LAST_ROW = 1 << 31  # in a program's input_pos, where get_last_row is true: of the logits only the last row is wanted

Trace = Callable[[str, str, dict[str, np.ndarray]], None]  # name and type of an operator, its outputs by name


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

    def forward_embeddings(self, rows: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        """As forward, of embeddings float32 [T, hidden] in place of tokens: a picture's. InputError where it takes none."""
        ...

    def reset(self) -> None:
        """Forget the sequence."""
        ...

    # An engine may also have BaseEngine's `prefill` and `prefill_embeddings`; without them a session takes forward's last row.

    def close(self) -> None:
        """Give the memory back; the engine can't be used after."""
        ...


class BaseEngine:
    """Checks what is given, then lets the subclass compute: `_run`, and where it can `_run_embeddings` and `_run_hidden`."""

    borrows = False  # what `_run` returns is the runtime's memory: valid until the next call
    load_s = 0.0  # seconds that loading took
    trace: Trace | None = None  # called after every operator of a forward, by engines that compute operator by operator

    def __init__(self, info: EngineInfo) -> None:
        self.info, self.closed = info, False

    def forward(self, tokens: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        """See Engine.forward. The result is the caller's: it stays valid after the next call. Raises InputError."""
        logits = self.forward_view(tokens, position, long)
        return logits.copy() if self.borrows else logits

    def forward_view(self, tokens: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        """As forward, but the logits may be the runtime's memory: valid until the next call."""
        return self._run(self._checked(tokens, position), int(position), self._is_long(position + len(tokens), long))

    def forward_embeddings(self, rows: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        """As forward, of embeddings float32 [T, hidden] in place of tokens. InputError where the engine takes none."""
        logits = self.forward_embeddings_view(rows, position, long)
        return logits.copy() if self.borrows else logits

    def forward_embeddings_view(self, rows: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        """As forward_embeddings, but the logits may be the runtime's memory: valid until the next call."""
        rows = self._checked_rows(rows, position)
        return self._run_embeddings(rows, int(position), self._is_long(position + len(rows), long))

    def prefill(self, tokens: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        """As forward, but logits float32 [V] of the last token alone: a program that is told so leaves out the others' head."""
        return self.forward(tokens, position, long)[-1]

    def prefill_embeddings(self, rows: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        """As forward_embeddings, but logits float32 [V] of the last row alone."""
        return self.forward_embeddings(rows, position, long)[-1]

    def embed(self, tokens: np.ndarray) -> np.ndarray:
        """The rows float32 [T, hidden] that tokens int64 [T] become. InputError where the engine takes no rows."""
        if type(self)._embed is BaseEngine._embed or self.info.hidden is None:
            raise InputError(f"{type(self).__name__} takes tokens only, no embeddings; run the model with EagerEngine")
        return self._embed(self._checked(tokens, 0))

    def forward_hidden(self, tokens: np.ndarray, position: int, long: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """As forward, and what the head reads, float32 [T, hidden], after the logits. InputError where it can't be had."""
        if type(self)._run_hidden is BaseEngine._run_hidden:
            raise InputError(f"{type(self).__name__} gives logits only, no hidden states; run the model with EagerEngine")
        return self._run_hidden(self._checked(tokens, position), int(position), self._is_long(position + len(tokens), long))

    def reset(self) -> None:
        """Nothing to forget: a new sequence overwrites the cache from position 0 before it reads it."""

    def close(self) -> None:
        """Give the memory back, once; the engine can't be used after."""
        if not self.closed:
            self.closed = True
            self._release()

    def _run(self, tokens: np.ndarray, position: int, long: bool) -> np.ndarray:
        """Logits float32 [T, V] of checked tokens int64 [T]; long: these rows get LongRoPE's long factors."""
        raise NotImplementedError

    def _run_embeddings(self, rows: np.ndarray, position: int, long: bool) -> np.ndarray:
        raise NotImplementedError

    def _embed(self, tokens: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _run_hidden(self, tokens: np.ndarray, position: int, long: bool) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def _release(self) -> None:
        """Drop what holds memory."""

    def _checked(self, tokens: np.ndarray, position: int) -> np.ndarray:
        self._check_open()
        return check_forward(self.info, tokens, position)

    def _checked_rows(self, rows: np.ndarray, position: int) -> np.ndarray:
        if type(self)._run_embeddings is BaseEngine._run_embeddings or self.info.hidden is None:
            raise InputError(f"{type(self).__name__} takes tokens only, no embeddings; run the model with EagerEngine")
        rows = np.ascontiguousarray(rows, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.info.hidden:
            hidden = f"here [T, {self.info.hidden}]"
            raise InputError(f"embeddings of shape {list(rows.shape)} were given: they are [T, hidden], {hidden}")
        self._check_open()
        check_positions(self.info, len(rows), position)
        return rows

    def _check_open(self) -> None:
        if self.closed:
            raise InputError("the engine is closed: open the model again")

    def _is_long(self, end: int, long: bool) -> bool:
        """Whether the rows of a forward that ends at `end` get the long factors; False in models without a switch."""
        original = self.info.original_context
        return original is not None and (long or end > original)


def marked(position: int, long: bool) -> int:
    """The position as programs take it, which are told the LongRoPE regime in it."""
    return position + LONG_REGIME if long else position


def refuse_pictures(pte: Path, info: EngineInfo) -> None:
    """InputError for a program whose decoder takes rows of pictures: phones' own engines call `forward`, which it lacks."""
    if info.hidden is not None:
        raise InputError(
            f"{pte} is of a model that sees pictures, and this phone's own engine runs programs of text alone: take a "
            "bundle of a text model; apps with ExecuTorch's multimodal runner take recipe android-multimodal"
        )


def check_forward(info: EngineInfo, tokens: np.ndarray, position: int) -> np.ndarray:
    """The tokens as int64 [T]. InputError for tokens or positions that the model can't take."""
    given = np.asarray(tokens)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise InputError(f"tokens of shape {list(given.shape)} and type {given.dtype} were given: they are integers [T]")
    check_positions(info, len(given), position)
    if given.min() < 0 or given.max() >= info.vocab:
        raise InputError(f"token {given.min()}..{given.max()} was given: the vocabulary has {info.vocab}")
    return np.ascontiguousarray(given, np.int64)


def check_positions(info: EngineInfo, count: int, position: int) -> None:
    """InputError for more tokens than one forward takes, or positions outside of the context."""
    if not 0 < count <= info.max_chunk:
        raise InputError(f"{count} tokens were given: 1..{info.max_chunk} fit one forward")
    if position < 0 or position + count > info.max_context:
        raise InputError(f"positions {position}..{position + count - 1} were given: the context has {info.max_context}")


def check_bundle(
    bundle: Bundle, installed: str, operators: Collection[str] | None, check: Callable[[str, str], None] | None = None
) -> None:
    """InputError if the runtime of version `installed` can't run the bundle, or this machine lacks the memory.

    operators: those that the runtime has; None: it tells when it loads. check: of versions, default check_version.
    """
    runtime = bundle.manifest["runtime"]
    (check or check_version)(runtime["version"], installed)
    if operators is not None:
        check_operators(runtime["operators"], operators)
    check_memory(bundle.manifest["memory"], bundle.info.max_context, not bundle.manifest["weights_mapped"])


def check_version(exported: str, installed: str) -> None:
    """A .pte of 1.N runs on 1.N and 1.N+1 (ExecuTorch's promise, runtime/COMPATIBILITY.md), and on nothing older."""
    made, here = (tuple(int(part) for part in text.split(".")[:2]) for text in (exported, installed))
    if made[0] != here[0] or not 0 <= here[1] - made[1] <= 1:
        raise InputError(
            f"the bundle was made for ExecuTorch {exported}, installed is {installed}: "
            f"allowed are {made[0]}.{made[1]} and {made[0]}.{made[1] + 1}; export it again or install one of these"
        )


def check_operators(needed: Collection[str], present: Collection[str]) -> None:
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
