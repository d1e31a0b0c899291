"""Engine over Core AI's own runtime: an .aimodel, compiled and run in a process of its own.

The runtime ends its process where it meets what it can't do: that must not end ours. coreai_child.py is the other side.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from phi3mobile import extras
from phi3mobile.engines.base import BaseEngine, check_bundle
from phi3mobile.errors import InputError
from phi3mobile.info import EngineInfo

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle

ROWS = 256  # of the cache at first; they double
LEAST_LIMIT = 120.0  # seconds that loading or a forward may take, and besides:
BYTES_PER_S = 2e6  # of a program being compiled and loaded, at the slowest
WEIGHTS_PER_S = 1e6  # times tokens of a forward: ten times what a busy machine takes in float16


def open_coreai(bundle: Bundle, threads: int = 0) -> CoreaiEngine:
    """The engine of a bundle; `load_s` on it is the time this took. InputError without coreai-core, or with another one.

    threads: the runtime has its own.
    """
    require_coreai()
    start = time.perf_counter()
    check_bundle(bundle, version("coreai-core"), None, check_coreai)
    engine = CoreaiEngine(bundle.program, bundle.info, bundle.manifest["runtime"], bundle.manifest["model"]["parameters"])
    engine.load_s = time.perf_counter() - start
    return engine


def require_coreai() -> None:
    """InputError with what to install if Core AI's wheel is missing."""
    if importlib.util.find_spec("coreai") is None:
        raise InputError(f"the engine coreai needs coreai-core: {extras.command('coreai')}, or take another bundle")


def check_coreai(exported: str, installed: str) -> None:
    """A beta promises nothing about another beta's files."""
    if exported != installed:
        raise InputError(
            f"the bundle was made by coreai-core {exported}, installed is {installed}: "
            f"pip install coreai-core=={exported}, or export it again"
        )


class CoreaiEngine(BaseEngine):
    """Functions over one KV cache in two states (export/targets/coreai/decoder.py says what they take)."""

    def __init__(
        self, program: Path, info: EngineInfo, runtime: dict[str, Any], weights: int, least_limit: float = LEAST_LIMIT
    ) -> None:
        """runtime: the manifest's, with `functions` and `cache`. weights: how many there are. InputError for a bad program."""
        if lacking := [key for key in ("functions", "cache") if key not in runtime]:
            raise InputError(f"the manifest's runtime lacks {', '.join(lacking)}; export with the recipe ios-coreai")
        super().__init__(info)
        self._program, self._weights, self._least = program, weights, least_limit
        self._short, *long = runtime["functions"]
        self._long = long[0] if long else self._short
        self._errors = TemporaryFile()  # noqa: SIM115  what the runtime says before it ends
        # What it compiles, as large as the weights: a child that is ended leaves it.
        self._compiled = TemporaryDirectory(prefix="phi3mobile-coreai-")
        self._pipe, theirs = Pipe()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "phi3mobile.engines.coreai_child", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env=os.environ | {"TMPDIR": self._compiled.name},
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        size = sum(path.stat().st_size for path in program.rglob("*") if path.is_file())
        asked = {"program": str(program.resolve()), "functions": list(runtime["functions"])}
        try:
            self._ask(asked | {"cache": runtime["cache"], "rows": ROWS}, least_limit + size / BYTES_PER_S, "load")
        except BaseException:
            self.close()
            raise

    def _run(self, tokens: np.ndarray, position: int, long: bool) -> np.ndarray:
        asked = {"function": self._long if long else self._short, "tokens": tokens.tolist(), "position": position}
        limit = self._least + self._weights * len(tokens) / WEIGHTS_PER_S
        logits = np.frombuffer(self._ask(asked, limit, "run"), np.float32)
        return logits.reshape(len(tokens), self.info.vocab)

    def _ask(self, message: dict[str, Any], limit: float, doing: str) -> bytes:
        """What the child answers. InputError: it ended, took longer than `limit` seconds, or tells what is wrong."""
        connection: Connection = self._pipe
        try:
            connection.send_bytes(json.dumps(message).encode())
            if not connection.poll(limit):
                self._child.kill()
                raise InputError(f"Core AI's runtime took more than {limit:.0f} s to {doing} {self._program}: it was ended")
            ok, answer = connection.recv_bytes()[0], connection.recv_bytes()
        except (EOFError, OSError):
            raise InputError(f"Core AI's runtime ended {self._ending()}while it was to {doing} {self._program}") from None
        if not ok:
            raise InputError(f"Core AI's runtime can't {doing} {self._program}: {answer.decode()}; export it again")
        return answer

    def _ending(self) -> str:
        """How the child ended, and the last line that it left."""
        code = self._child.wait()
        how = f"by {signal.Signals(-code).name} " if code < 0 else f"with {code} "
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        said = next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
        return f"{how}({said}) " if said else how

    def _release(self) -> None:
        self._pipe.close()
        try:
            self._child.wait(5)  # it ends when its pipe does
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._errors.close()
        self._compiled.cleanup()
