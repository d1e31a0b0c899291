"""The protocol's steps on this machine, one process a run: python -m phi3mobile.bench.steps BUNDLE [threads=N] STEP...

Prints one JSON object a line. phi3mobile/core/src/p3m_bench.cpp takes the same steps and prints the same lines on a phone:
    load                         seconds, packed (created, reused or heap), threads; printed before any step
    prefill:TOKENS:ROUNDS        seconds to the first greedy token, a line a round
    decode:DEPTH:COUNT:ROUNDS    seconds of each greedy token after DEPTH filled positions, a line a round
    sustain:SECONDS:DEPTH:BLOCK  decode in blocks of BLOCK tokens until the time is over, a line a block
    text:COUNT:ID,ID,...         COUNT greedy tokens after a prompt
Every line has `t`, seconds since 1970; memory follows each prefill and decode step. The app on a phone does the same steps with
`perform` (apps/assistant/bench.py).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from phi3mobile.bench.memory import memory


def seeded_tokens(count: int, vocab: int) -> list[int]:
    """The same pseudo-random prompt in every runner: a 64-bit linear congruential generator (Knuth's MMIX constants)."""
    state, tokens = 1, []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        tokens.append((state >> 33) % vocab)
    return tokens


class Steps:
    """Runs steps on an engine and gives their lines."""

    def __init__(self, engine: Any) -> None:
        import numpy as np

        self._array = lambda tokens: np.asarray(tokens, np.int64)
        self._engine, self._info = engine, engine.info
        self._last = getattr(engine, "prefill", lambda *given: engine.forward(*given)[-1])  # logits [V]
        self._filled, self._long, self._farthest = 0, False, 0

    def run(self, step: str) -> Iterator[dict[str, Any]]:
        """Lines of one step. Raises ValueError for a step that is none or does not fit the context."""
        name, _, rest = step.partition(":")
        do: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
            "prefill": self._prefill,
            "decode": self._decode,
            "sustain": self._sustain,
            "text": self._text,
        }
        if name not in do:
            raise ValueError(f"step {step}: give one of {', '.join(do)}")
        try:
            yield from do[name](*rest.split(":"))
        except TypeError:
            raise ValueError(f"step {step}: wrong number of values") from None

    def _prefill(self, tokens: str, rounds: str) -> Iterator[dict[str, Any]]:
        for _ in range(int(rounds)):
            self._filled = 0
            start = time.perf_counter()
            self._fill(int(tokens)).argmax()
            yield {"kind": "prefill", "tokens": int(tokens), "seconds": time.perf_counter() - start}
        yield {"kind": "memory", "tokens": int(tokens), **memory()}

    def _decode(self, depth: str, count: str, rounds: str) -> Iterator[dict[str, Any]]:
        for _ in range(int(rounds)):
            yield {"kind": "decode", "depth": int(depth), "seconds": self._tokens(int(depth), int(count))}
        yield {"kind": "memory", "tokens": int(depth) + int(count), **memory()}

    def _sustain(self, seconds: str, depth: str, block: str) -> Iterator[dict[str, Any]]:
        start, total = time.perf_counter(), 0
        while time.perf_counter() - start < float(seconds):
            took = sum(self._tokens(int(depth), int(block)))
            total += int(block)
            elapsed = time.perf_counter() - start
            yield {"kind": "sustain", "elapsed": elapsed, "tokens": int(block), "seconds": took, "total": total}

    def _text(self, count: str, ids: str) -> Iterator[dict[str, Any]]:
        tokens = [int(token) for token in ids.split(",")]
        row, self._filled = self._run(tokens, 0, len(tokens) + int(count)), 0
        said = []
        for step in range(int(count)):
            said.append(int(row.argmax()))
            row = self._run(said[-1:], len(tokens) + step, len(tokens) + int(count))
        yield {"kind": "text", "tokens": said}

    def _tokens(self, depth: int, count: int) -> list[float]:
        """Seconds of each of `count` tokens after `depth` filled rows."""
        self._fill(depth, depth + count)
        times, token = [], 0
        for step in range(count):
            start = time.perf_counter()
            token = int(self._run([token], depth + step, depth + count).argmax())
            times.append(time.perf_counter() - start)
        return times

    def _fill(self, tokens: int, end: int | None = None) -> Any:
        """Rows 0..tokens-1 of a sequence that grows to `end`; logits [V] of the last that was run."""
        end = end or tokens
        long = self._is_long(end)
        start, back = min(self._filled, tokens), self._info.back
        if long != self._long or (back is not None and self._farthest - start > back):
            start = 0
        last = self._run(seeded_tokens(tokens, self._info.vocab)[start:], start, end) if start < tokens else None
        self._filled, self._long = tokens, long
        return last

    def _is_long(self, end: int) -> bool:
        return self._info.original_context is not None and end > self._info.original_context

    def _run(self, tokens: list[int], position: int, end: int) -> Any:
        """Chunk by chunk; logits [V] of the last token."""
        if end > self._info.max_context:
            raise ValueError(f"{end} positions do not fit the context of {self._info.max_context}")
        long, chunk, last = self._is_long(end), self._info.max_chunk, None
        for at in range(0, len(tokens), chunk):
            part = tokens[at : at + chunk]
            last = self._last(self._array(part), position + at, long)
            self._farthest = max(self._farthest if position + at else 0, position + at + len(part))
        return last


Say = Callable[[dict[str, Any]], None]


def perform(open_engine: Callable[[], Any], steps: Iterable[str], say: Say) -> int:
    """Load, then the steps, line by line to `say`; exit code 1 and a line of kind `error` where one fails."""
    from phi3mobile.errors import InputError

    before, step = memory(), "load"
    try:
        start = time.perf_counter()
        engine = open_engine()
        took = time.perf_counter() - start
        packed = getattr(engine, "packed_cache", "heap").partition(":")[0]
        say({"kind": "load", "interpreter_bytes": before["resident_bytes"], "seconds": took, "packed": packed, **memory()})
        doing = Steps(engine)
        for step in steps:
            for line in doing.run(step):
                say(line)
    except (InputError, ValueError, RuntimeError, MemoryError) as error:
        say({"kind": "error", "step": step, "reason": " ".join(f"{error}".split())[:300]})
        return 1
    return 0


def main(arguments: list[str]) -> int:
    """Exit code 1 and a line of kind `error` where a step fails."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what runtimes print must not get between the lines

    def say(line: dict[str, Any]) -> None:
        out.write(json.dumps(line | {"t": round(time.time(), 3)}) + "\n")

    from phi3mobile.bundle import open_bundle
    from phi3mobile.engines.registry import open_engine
    from phi3mobile.errors import InputError

    path, *rest = arguments
    options = dict(text.split("=") for text in rest if "=" in text)

    try:
        bundle = open_bundle(path)  # hashing is no part of loading
    except InputError as error:
        say({"kind": "error", "step": "load", "reason": " ".join(f"{error}".split())[:300]})
        return 1
    threads = int(options.get("threads", 0))
    return perform(lambda: open_engine(bundle, threads), [text for text in rest if "=" not in text], say)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
