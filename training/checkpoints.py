"""Checkpoints to resume from: whole or absent, bound to their config, the last few kept.

OUT/checkpoints/step-00000500/ holds state/ (torch.distributed.checkpoint: every process writes its shard, and another number
of processes can read it), meta.json (step, config, data position) and each process's random state.
"""

from __future__ import annotations

import errno
import json
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from phi3mobile.errors import InputError
from phi3mobile.files import require_space
from phi3mobile.training.replica import Place, Replica

MAY_CHANGE = ("device", "engine", "zero_stage", "checkpoint_every", "keep", "tensorboard", "save_dtype", "log_every")


def checkpoint_folders(out: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in (out / "checkpoints").glob("step-*") if (path / "meta.json").is_file())


def save_checkpoint(
    out: Path, step: int, config: dict[str, Any], data: dict[str, Any], replica: Any, place: Place, keep: int
) -> None:
    """Write the state after `step` steps beside, rename, drop old ones. InputError: disk full; the last good one stays."""
    final = out / "checkpoints" / f"step-{step:08}"
    partial = final.with_name(f".{final.name}.partial")
    if place.rank == 0:
        for left in final.parent.glob(".step-*.partial"):  # of a run that was killed: only one writes here
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
    place.barrier()
    with _disk_errors(out):
        state = replica.state() if isinstance(replica, Replica) else None
        if state is not None:
            require_space(out, _bytes(state))
            dcp.save(state, checkpoint_id=partial / "state", no_dist=not dist.is_initialized())
        else:
            replica.save(partial)
        torch.save(_random_state(), partial / f"random-{place.rank}.pt")
        place.barrier()
        if place.rank == 0:
            meta = {"step": step, "config": config, "data": data, "world": place.world}
            (partial / "meta.json").write_text(json.dumps(meta))
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            for old in checkpoint_folders(out)[:-keep]:
                shutil.rmtree(old)
    place.barrier()


def resume(out: Path, config: dict[str, Any], source: Any, replica: Any, place: Place) -> int:
    """Load the last checkpoint of `out` into replica and source; returns its step, 0 where there is none.

    Raises InputError if it was made with another config (see MAY_CHANGE for what may differ).
    """
    folders = checkpoint_folders(out)
    if not folders:
        return 0
    folder = folders[-1]
    meta = json.loads((folder / "meta.json").read_text())
    if differing := differences(meta["config"], config):
        raise InputError(f"{folder} was made with another config: {'; '.join(differing[:6])}; restore it, or give another out")
    if isinstance(replica, Replica):
        state = replica.state()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(state, checkpoint_id=folder / "state", no_dist=not dist.is_initialized())
        replica.load(state)
    else:
        replica.restore(folder)
    source.load(meta["data"])
    own = folder / f"random-{place.rank}.pt"
    if own.is_file():
        saved = torch.load(own)
        torch.set_rng_state(saved["cpu"])
        if "cuda" in saved and torch.cuda.is_available():
            torch.cuda.set_rng_state(saved["cuda"])
    return meta["step"]


def differences(saved: dict[str, Any], given: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys whose values differ, as `run.seed was 0, is 1`."""
    found = []
    for key in sorted(set(saved) | set(given)):
        old, new = saved.get(key), given.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new and not (prefix == "run." and key in MAY_CHANGE):
            found.append(f"{prefix}{key} was {old!r}, is {new!r}")
    return found


def _random_state() -> dict[str, torch.Tensor]:
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def _bytes(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        local = state.to_local() if hasattr(state, "to_local") else state
        return local.nbytes
    return sum(map(_bytes, state.values())) if isinstance(state, dict) else 0


@contextmanager
def _disk_errors(out: Path):
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except (OSError, dcp.api.CheckpointException) as error:
        text = str(error)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text or "PytorchStreamWriter" in text:
            last = checkpoint_folders(out)
            kept = f"the last good checkpoint is {last[-1]}" if last else "no checkpoint was written yet"
            raise InputError(f"the disk of {out} is full; {kept}; make room and run again") from None
        raise
