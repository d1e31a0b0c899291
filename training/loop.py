"""The one training loop: every stage is a model, a source of rows and an objective.

A step's loss is the sum over all its targets divided by their number over all processes and micro-batches, so that neither
the number of processes nor the size of a micro-batch changes what is learned.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn import functional

from phi3mobile.errors import InputError
from phi3mobile.models.config import DecoderConfig
from phi3mobile.training.batches import IGNORED, Rows
from phi3mobile.training.checkpoints import checkpoint_folders, resume, save_checkpoint
from phi3mobile.training.config import as_dict
from phi3mobile.training.metrics import Metrics, peak_flops, read_metrics
from phi3mobile.training.model import flops_per_token, param_groups
from phi3mobile.training.replica import Place, Replica
from phi3mobile.training.schedule import lr_factor
from phi3mobile.training.sources import Source


class Objective(Protocol):
    """What is minimised: `loss` returns a sum over `count` targets, and further sums to log."""

    def count(self, rows: Rows) -> int: ...

    def loss(self, model: torch.nn.Module, rows: Rows) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...


class NextToken:
    """Cross entropy of the labelled tokens."""

    def count(self, rows: Rows) -> int:
        return rows.targets

    def loss(self, model: torch.nn.Module, rows: Rows) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return token_losses(model, rows).sum(), {}


def logits_of(model: torch.nn.Module, rows: Rows) -> torch.Tensor:
    """float [B, T, V]; attention stays within each document."""
    return model(input_ids=rows.tokens, position_ids=rows.positions, use_cache=False).logits


def token_losses(model: torch.nn.Module, rows: Rows) -> torch.Tensor:
    """-log p of each label, float32 [B, T]; 0 where there is none."""
    logits = logits_of(model, rows).float()
    return functional.cross_entropy(logits.transpose(1, 2), rows.labels, reduction="none", ignore_index=IGNORED)


@torch.no_grad()
def mean_loss(model: torch.nn.Module, rows: Rows, micro: int = 8) -> float:
    """Loss per target of held-out rows. InputError if it is not finite: nothing is to be chosen or told by that."""
    model.eval()
    total = sum(float(token_losses(model, part).sum(dtype=torch.float64)) for part in rows.micro(micro))
    model.train()
    if not math.isfinite(total):
        raise InputError(f"the loss on held-out rows is {total}: the model's weights or activations are not finite")
    return total / rows.targets


@dataclass
class Job:
    """A stage ready to run. `config` has out, optimizer, schedule, batch and run; `shape` is the model's."""

    config: Any
    model: torch.nn.Module
    shape: DecoderConfig
    source: Source
    objective: Objective
    title: str


def train(job: Job, place: Place) -> tuple[Replica, float]:
    """Run or resume a job to its last step; returns the replica and the last loss. The caller saves the finished folder.

    Raises InputError: a loss or gradient that is not finite, a full disk, a checkpoint of another config.
    """
    config, out = job.config, Path(job.config.out)
    run, schedule, micro = config.run, config.schedule, config.batch.micro
    torch.manual_seed(run.seed + place.rank)
    replica = make_replica(job, place)
    plain = as_dict(config)
    step = resume(out, plain, job.source, replica, place)
    metrics = _metrics(out, step, job, place) if place.rank == 0 else None
    peak = peak_flops(place.device, run.dtype) * place.world
    before = read_metrics(out)
    loss = before[-1]["loss"] if step and before else math.nan
    while step < schedule.steps:
        start, lr = time.perf_counter(), config.optimizer.lr * lr_factor(schedule, step)
        rows = job.source.next()
        size, tokens = rows.tokens.shape[1], rows.tokens.numel()
        (count,) = place.sums(job.objective.count(rows))
        totals: dict[str, float] = {"loss": 0.0}
        for part in rows.micro(micro):
            with replica.precision():
                total, extra = job.objective.loss(replica.model, part.to(place.device))
            replica.backward(total / max(count, 1))
            for name, value in {"loss": total, **extra}.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach())
        *sums, tokens = place.sums(*totals.values(), tokens)
        values = {name: value / max(count, 1) for name, value in zip(totals, sums, strict=True)}
        loss = values["loss"]
        _require_finite("loss", loss, step, out)
        norm = replica.step(lr)
        _require_finite("gradient norm", norm, step, out)
        step += 1
        seconds = time.perf_counter() - start
        flops = flops_per_token(job.shape, size) * tokens
        if metrics is not None and (step % run.log_every == 0 or step == schedule.steps):
            metrics.write(
                step,
                {
                    **values,
                    "lr": lr,
                    "grad_norm": norm,
                    "tokens": tokens,
                    "tokens_per_s": tokens / seconds,
                    "mfu": flops / seconds / peak,
                },
            )
        if step % run.checkpoint_every == 0 or step == schedule.steps:
            save_checkpoint(out, step, plain, job.source.state(), replica, place, run.keep)
    if metrics is not None:
        metrics.close()
    return replica, loss


def make_replica(job: Job, place: Place) -> Any:
    """The model in the configured engine's hands."""
    config = job.config
    base = getattr(getattr(config, "model", None), "mup_base_width", 0)
    if getattr(config, "model", None) is not None and config.model.checkpoint_activations:
        job.model.gradient_checkpointing_enable({"use_reentrant": False})
        if hasattr(job.model, "enable_input_require_grads"):
            job.model.enable_input_require_grads()  # frozen embeddings under LoRA
    groups = param_groups(job.model, config.optimizer.weight_decay, base, job.shape.hidden_size)
    if config.run.engine == "deepspeed":
        from phi3mobile.training.deepspeed_replica import DeepSpeedReplica

        return DeepSpeedReplica(job.model, groups, config.optimizer, config.run, place, config.batch)
    return Replica(job.model, groups, config.optimizer, config.run, place)


def _metrics(out: Path, step: int, job: Job, place: Place) -> Metrics:
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(as_dict(job.config), indent=1))
    return Metrics(out, step, job.config.run.tensorboard, job.title, job.config.schedule.steps)


def _require_finite(what: str, value: float, step: int, out: Path) -> None:
    if not math.isfinite(value):
        last = checkpoint_folders(out)
        kept = f"the last good checkpoint is {last[-1]}" if last else "no checkpoint was written yet"
        raise InputError(f"{what} is {value} in step {step + 1}: training stopped, {kept}; lower optimizer.lr or raise warmup")
