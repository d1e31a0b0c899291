"""The same replica in DeepSpeed's hands: ZeRO stage 1 to 3, its own checkpoints. Needs the package deepspeed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from phi3mobile.errors import InputError
from phi3mobile.training.config import Batch, Optimizer, Run
from phi3mobile.training.replica import Place


class DeepSpeedReplica:
    """As replica.Replica. Its checkpoints hold DeepSpeed's files in place of torch.distributed.checkpoint's."""

    ema: dict[str, torch.Tensor] = {}  # noqa: RUF012  there is never one

    def __init__(
        self, model: torch.nn.Module, groups: list[dict], optimizer: Optimizer, run: Run, place: Place, batch: Batch
    ) -> None:
        try:
            import deepspeed
        except ImportError:
            raise InputError("run: engine 'deepspeed' needs the package: pip install deepspeed; or take fsdp2") from None
        if run.ema:
            raise InputError("run: ema is not kept under deepspeed; take fsdp2, or ema = 0")
        self.place, self.run = place, run
        rows = batch.rows // place.world
        micro = min(batch.micro or rows, rows)
        adam = torch.optim.AdamW(groups, lr=optimizer.lr, betas=tuple(optimizer.betas), eps=optimizer.eps)
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=model,
            optimizer=adam,
            config={
                "train_micro_batch_size_per_gpu": micro,
                "gradient_accumulation_steps": -(-rows // micro),
                "gradient_clipping": optimizer.clip,
                "bf16": {"enabled": run.dtype == "bfloat16"},
                "zero_optimization": {"stage": run.zero_stage},
                "zero_allow_untested_optimizer": True,
            },
        )
        self.model = self.engine

    def precision(self) -> AbstractContextManager:
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss * self.place.world, scale_wrt_gas=False)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # counts the part; the last one's step is `step`

    def step(self, lr: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag="state")

    def restore(self, folder: Path) -> None:
        self.engine.load_checkpoint(str(folder), tag="state")

    def full_weights(self, averaged: bool = False) -> dict[str, Any]:
        if self.run.zero_stage < 3:
            return {name: weight.detach().float().cpu() for name, weight in self.engine.module.state_dict().items()}
        import deepspeed

        weights = {}
        for name, weight in self.engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters(weight):
                weights[name] = weight.detach().float().cpu().clone()
        return weights
