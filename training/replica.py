"""This process's part of a model in training: alone, sharded by FSDP2, or in DeepSpeed's hands."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from phi3mobile.errors import InputError
from phi3mobile.training.config import Optimizer, Run


@dataclass(frozen=True)
class Place:
    """Which process this is, and its device."""

    rank: int
    world: int
    device: torch.device

    def sums(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def find_place(run: Run) -> Place:
    """Join the process group that torchrun, accelerate launch or deepspeed describes in the environment, if there is one."""
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if run.engine == "torch" and world > 1:
        raise InputError(f"run: engine 'torch' is one process, and {world} were started; take fsdp2 or deepspeed")
    try:
        name = ("cuda" if torch.cuda.is_available() else "cpu") if run.device == "auto" else run.device
        device = torch.device(name, int(os.environ.get("LOCAL_RANK", 0)) if name == "cuda" else None)
    except RuntimeError:
        raise InputError(f"run: device {run.device!r}; take auto, cpu or cuda") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError("run: device 'cuda' is not here; take auto or cpu")
        torch.cuda.set_device(device)
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Place(rank, world, device)


class Replica:
    """Model and AdamW of one process; under FSDP2 a shard of both. One step = backward of each part, then `step`."""

    def __init__(self, model: torch.nn.Module, groups: list[dict], optimizer: Optimizer, run: Run, place: Place) -> None:
        self.place, self.clip, self.run = place, optimizer.clip, run
        self.sharded = run.engine == "fsdp2" or (run.engine == "auto" and dist.is_initialized())
        model.to(place.device)
        names = {id(weight): name for name, weight in model.named_parameters()}
        grouped = [{**group, "params": [names[id(weight)] for weight in group["params"]]} for group in groups]
        if self.sharded:
            _shard(model, run, place)
        weights = dict(model.named_parameters())  # FSDP2 put its own in place of those that `groups` holds
        groups = [{**group, "params": [weights[name] for name in group["params"]]} for group in grouped]
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(groups, lr=optimizer.lr, betas=tuple(optimizer.betas), eps=optimizer.eps)
        self.ema = {name: w.detach().clone() for name, w in weights.items() if w.requires_grad} if run.ema else {}

    def precision(self) -> AbstractContextManager:
        if self.run.dtype == "bfloat16" and not self.sharded:  # FSDP2 casts by its own policy
            return torch.autocast(self.place.device.type, torch.bfloat16)
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """`loss`: this process's share of the step's mean loss."""
        (loss * self.place.world).backward()  # gradients are averaged over processes

    def step(self, lr: float) -> float:
        """Clip, update, clear; returns the gradient norm before clipping. A norm that is not finite changes nothing."""
        norm = torch.nn.utils.clip_grad_norm_([w for w in self.model.parameters() if w.requires_grad], self.clip)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if norm == norm and norm != float("inf"):
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            self.optimizer.step()
            self._average()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Any]:
        """What exact resuming needs, in torch.distributed.checkpoint's form; frozen weights are left out."""
        options = StateDictOptions(ignore_frozen_params=True)
        state = {
            "model": get_model_state_dict(self.model, options=options),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer, options=options),
        }
        return {**state, "ema": self.ema} if self.ema else state

    def load(self, state: dict[str, Any]) -> None:
        """Take over a `state` that torch.distributed.checkpoint has filled; the averaged weights it filled in place."""
        options = StateDictOptions(ignore_frozen_params=True, strict=False)
        set_model_state_dict(self.model, state["model"], options=options)
        set_optimizer_state_dict(self.model, self.optimizer, state["optimizer"], options=options)

    def full_weights(self, averaged: bool = False) -> dict[str, torch.Tensor]:
        """All weights on the CPU under HF names, on rank 0. Every process must call it."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self.model, options=options)
        if averaged:
            full = {name: w.full_tensor() if hasattr(w, "full_tensor") else w for name, w in self.ema.items()}
            weights |= {name: weight.cpu() for name, weight in full.items()}
        return weights

    @torch.no_grad()
    def _average(self) -> None:
        for name, weight in self.model.named_parameters():
            if name in self.ema:
                _local(self.ema[name]).lerp_(_local(weight), 1 - self.run.ema)


def _shard(model: torch.nn.Module, run: Run, place: Place) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(place.device.type, (place.world,))
    low = run.dtype == "bfloat16"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32) if low else MixedPrecisionPolicy()
    for module in list(model.modules()):
        if type(module).__name__.endswith("DecoderLayer"):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
