"""What a run writes as it goes: metrics.jsonl, TensorBoard's files, and one line on the screen."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from phi3mobile.errors import InputError
from phi3mobile.files import whole_file


class Metrics:
    """OUT/metrics.jsonl, one object a step; what a killed run wrote past its checkpoint is cut off first."""

    def __init__(self, out: Path, step: int, tensorboard: bool, title: str, steps: int) -> None:
        self.path, self.title, self.steps = out / "metrics.jsonl", title, steps
        kept = [line for line in _lines(self.path) if json.loads(line)["step"] <= step]
        with whole_file(self.path) as partial:
            partial.write_text("".join(line + "\n" for line in kept))
        self.file = self.path.open("a")
        self.board = _board(out, step) if tensorboard else None
        self.shown = 0.0

    def write(self, step: int, values: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if time.monotonic() - self.shown > 5 or step == self.steps:
            self.shown = time.monotonic()
            text = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name in ("loss", "tokens_per_s", "mfu"))
            print(f"{self.title}: step {step}/{self.steps}, {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def read_metrics(out: Path) -> list[dict[str, float]]:
    """All steps of a run."""
    return [json.loads(line) for line in _lines(out / "metrics.jsonl")]


def peak_flops(device: torch.device, dtype: str) -> float:
    """FLOP/s of a large matrix product on this device, measured: what MFU is a fraction of."""
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    size = 8192 if device.type == "cuda" else 768
    a = torch.randn(size, size, device=device, dtype=kind)
    best = float("inf")
    for _ in range(4):
        _wait(device)
        start = time.perf_counter()
        a @ a
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _lines(path: Path) -> list[str]:
    """Whole lines: a killed run may have left half of one."""
    if not path.is_file():
        return []
    return path.read_text().split("\n")[:-1]


def _board(out: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("run: tensorboard = true needs the package: pip install tensorboard; or set it to false") from None
    return SummaryWriter(str(out / "tensorboard"), purge_step=step)
