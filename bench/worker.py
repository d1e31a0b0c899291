"""One runtime in a process of its own, so that its memory and its load time are its own.

Parent and child talk in JSON, one object a line: {"do": action, ...} down, {"ok": ...} or {"error": ...} up, with
{"progress": [stage, done, total]} before it where work is long. The child's stdout and stderr go to a file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from phi3mobile.bench.measure import memory_now, seconds
from phi3mobile.errors import InputError

SETTLE_S = 0.1  # threads of the worker that computed before spin a little before they sleep


class WorkerDied(Exception):
    """The runtime failed or its process ended; the reason in one line."""


class Worker:
    """The parent's end."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  lives as long as the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", "phi3mobile.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | dict(environment or {}),
        )

    def ask(self, do: str, progress: Callable[[str, int, int], None] | None = None, **arguments: Any) -> Any:
        """Run an action and wait. Raises InputError for wrong input, WorkerDied for everything else."""
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerDied(self._reason()) from None
        for line in self._process.stdout:
            answer = json.loads(line)
            if "ok" in answer:
                return answer["ok"]
            if "error" in answer:
                raise (InputError if answer["input"] else WorkerDied)(answer["error"])
            if progress:
                progress(*answer["progress"])
        raise WorkerDied(self._reason())

    def close(self) -> None:
        """End the child, at once if it does not by itself."""
        with suppress(BrokenPipeError):  # a line that never went out is flushed here
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _reason(self) -> str:
        code = self._process.wait()
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return f"its process {how}" + (f": {lines[-1][:200]}" if lines else "")


class _Runner:
    """The child's end: one method an action."""

    def __init__(self, report: Callable[[str, int, int], None]) -> None:
        self._report, self._engine = report, None

    def load(self, runtime: str, path: str, context: int, threads: int) -> dict[str, float]:
        """Seconds, and bytes above what the interpreter with numpy had before the runtime was imported."""
        from phi3mobile.bench.runtimes import RUNTIMES

        self._before = memory_now()
        start = time.perf_counter()
        self._engine = RUNTIMES[runtime](Path(path), context, threads)
        return {"load_s": time.perf_counter() - start, **self.memory()}

    def memory(self) -> dict[str, int]:
        now = memory_now()
        return {"anonymous_bytes": now.anonymous - self._before.anonymous, "peak_bytes": now.peak - self._before.resident}

    def fill(self, start: int, end: int) -> None:
        """Positions start..end-1, if any; those before must be filled."""
        self._prefill(end, start)

    def prefill(self, count: int) -> float:
        """Seconds from position 0 to the first greedy token."""
        time.sleep(SETTLE_S)
        return seconds(lambda: int(self._prefill(count).argmax()))

    def logits(self, count: int) -> list[float]:
        """float [V] after `count` tokens."""
        return self._prefill(count).tolist()

    def decode(self, depth: int, count: int) -> list[float]:
        """Seconds of each of `count` greedy tokens at `depth`; the positions before it must be filled."""
        self._engine.forward([0], depth)  # untimed: brings back rows that an evicting cache dropped
        time.sleep(SETTLE_S)
        times, token = [], 0
        for step in range(count):
            start = time.perf_counter()
            token = int(self._engine.forward([token], depth + step).argmax())
            times.append(time.perf_counter() - start)
        return times

    def picture(self, tokens: int, views: int) -> dict[str, float]:
        """Seconds of a picture's parts: see runtimes.Ours.picture."""
        time.sleep(SETTLE_S)
        return self._engine.picture(tokens, views)

    def export(self, source: str, out: str, recipe: str, context: int) -> dict[str, float]:
        """A bundle: seconds it took and this process's peak memory in bytes."""
        from phi3mobile.export.build import export

        took = seconds(lambda: export(source, out, recipe, context, method="rtn", progress=self._report))
        return {"export_s": took, "export_peak_bytes": memory_now().peak}

    def session(self, path: str, question: str, count: int) -> dict[str, Any]:
        """Memory of a session that answered `question` with at most `count` tokens, above that of the interpreter."""
        from phi3mobile.session.session import Session

        self._before = memory_now()
        with Session(path) as session:
            for _ in session.generate([{"role": "user", "content": question}], max_tokens=count):
                pass
            packed = getattr(session.engine, "packed_cache", None)
            return self.memory() | {"packed": packed, "torch": "torch" in sys.modules}

    def gguf(self, source: str, out: str, kind: str, table_kind: str) -> None:
        from phi3mobile.bench.to_gguf import Kind, write_gguf
        from phi3mobile.models.checkpoint import open_checkpoint

        write_gguf(open_checkpoint(Path(source)), Path(out), Kind[kind], Kind[table_kind], self._report)

    def _prefill(self, end: int, begin: int = 0):
        """Seeded tokens at positions begin..end-1 in the runtime's own chunks; logits [V] of the last."""
        import numpy as np

        engine = self._engine
        tokens, last = np.random.default_rng(0).integers(0, engine.vocab, end).tolist(), None
        for start in range(begin, end, engine.chunk):
            last = engine.forward(tokens[start : start + engine.chunk], start)
        return last


def main() -> None:
    """Answer until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what runtimes print must not get between the answers

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")

    runner = _Runner(lambda stage, done, total: say(progress=[stage, done, total]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say(ok=getattr(runner, request.pop("do"))(**request))
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            wrong_input = isinstance(error, InputError)
            say(error=text if wrong_input else f"{type(error).__name__}: {text}", input=wrong_input)


if __name__ == "__main__":
    main()
