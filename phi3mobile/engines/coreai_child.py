"""The process that Core AI's runtime runs in: `python -m phi3mobile.engines.coreai_child FD`, started by engines/coreai.py.

Over the pipe FD come JSON messages: {"program", "functions", "cache", "rows"} once, then {"function", "tokens", "position"}.
Each is answered by a byte, 1 or 0, and by the logits as float32 or by what is wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

STATES = "keyCache", "valueCache"


class Cache:
    """Both states [layers, 1, Hkv, rows, D], the host's: as many rows as the sequence has needed so far."""

    def __init__(self, shape: list[int], first: int, dtype: str) -> None:
        self._shape, self._first, self._dtype = shape, first, dtype
        self.states: dict[str, Any] = {}
        self._rows = 0

    def hold(self, rows: int) -> dict[str, Any]:
        """The states, with at least so many rows."""
        from coreai.runtime import NDArray

        if rows > self._rows:
            self._rows = max(self._first, self._rows)
            while self._rows < rows:
                self._rows *= 2
            for name in STATES:
                layers, batch, heads, width = self._shape
                values = np.zeros((layers, batch, heads, self._rows, width), self._dtype)
                if name in self.states:
                    old = self.states[name].numpy()
                    values[:, :, :, : old.shape[3]] = old
                self.states[name] = NDArray(values)
        return self.states


async def serve(pipe: Connection) -> None:
    """Answer until the pipe is closed."""
    from coreai.authoring import AIModelAsset
    from coreai.runtime import NDArray

    asked = json.loads(pipe.recv_bytes())
    try:
        loading = AIModelAsset.load(asked["program"]).executable()
        model = await loading.__aenter__()
        functions = {name: model.load_function(name) for name in asked["functions"]}
        dtype = str(next(iter(functions.values())).desc.state_descriptor(STATES[0]).dtype)
        cache = Cache(asked["cache"], asked["rows"], dtype)
    except Exception as error:
        answer(pipe, 0, _line(error))
        return
    answer(pipe, 1, b"")
    try:
        while True:
            asked = json.loads(pipe.recv_bytes())
            try:
                tokens, end = asked["tokens"], asked["position"] + len(asked["tokens"])
                inputs = {"input_ids": np.array([tokens], np.int32), "position_ids": np.arange(end, dtype=np.int32)[None]}
                given = {name: NDArray(value) for name, value in inputs.items()}
                out = await functions[asked["function"]](given, state=cache.hold(end))
                logits = out["logits"].numpy().astype(np.float32)
            except Exception as error:
                answer(pipe, 0, _line(error))
            else:
                answer(pipe, 1, logits.tobytes())
    finally:
        await loading.__aexit__(None, None, None)


def answer(pipe: Connection, ok: int, what: bytes) -> None:
    pipe.send_bytes(bytes([ok]))
    pipe.send_bytes(what)


def _line(error: Exception) -> bytes:
    return (" ".join(str(error).split())[:300] or type(error).__name__).encode()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    try:
        asyncio.run(serve(Connection(int(sys.argv[1]))))
    except (EOFError, OSError):  # whoever asked has gone
        sys.exit(0)
