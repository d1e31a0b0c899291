"""Pretraining: random weights or a checkpoint, a mixture of token shards in phases, next-token loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.training.config import Pretrain
from phi3mobile.training.loop import Job, NextToken, train
from phi3mobile.training.model import build_model, check_mup, check_tokenizer, check_trainable, save_hf
from phi3mobile.training.replica import Place, find_place
from phi3mobile.training.sources import TextSource


def pretrain(config: Pretrain) -> dict[str, Any]:
    """Train to the end (or resume), write OUT/final (and OUT/final-ema): HF folders for `phi3mobile export`."""
    check_trainable(config.model)
    place, out = find_place(config.run), Path(config.out)
    tokenizer = tokenizer_of(config.model)
    source = TextSource(config.data, config.batch.rows, config.batch.length, place.rank, place.world)
    model, shape = build_model(config.model, config.run.seed)
    check_mup(config.model, shape)
    if config.batch.length > shape.max_position_embeddings:
        raise InputError(f"batch: length {config.batch.length}; the model takes {shape.max_position_embeddings} positions")
    if tokenizer:
        check_tokenizer(tokenizer, shape)
    source.check(config.schedule.steps, shape.vocab_size, tokenizer)
    job = Job(config, model, shape, source, NextToken(), "pretrain")
    replica, loss = train(job, place)
    finish(out, shape, replica, place, config.run.save_dtype, tokenizer)
    return {"out": str(out / "final"), "loss": loss, "steps": config.schedule.steps, "parameters": shape.parameters()}


def tokenizer_of(model: Any) -> str:
    """The folder whose tokenizer files go along; "" if none was named."""
    return model.tokenizer or model.folder


def finish(out: Path, shape: Any, replica: Any, place: Place, dtype: str, tokenizer: str) -> None:
    """OUT/final, and OUT/final-ema where averaged weights are kept; folders that are there already stay."""
    for name, averaged in (("final", False), *((("final-ema", True),) if replica.ema else ())):
        if (out / name).exists():
            continue
        weights = replica.full_weights(averaged)
        if place.rank == 0:
            save_hf(out / name, shape, weights, tokenizer or None, dtype)
        place.barrier()
