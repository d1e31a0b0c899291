"""Supervised fine-tuning on conversations: loss on the assistant's tokens, all weights or adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from phi3mobile.errors import InputError
from phi3mobile.models.config import DecoderConfig
from phi3mobile.training.batches import Rows, pack
from phi3mobile.training.chats import conversations, open_encoder
from phi3mobile.training.config import Sft
from phi3mobile.training.loop import Job, NextToken, train
from phi3mobile.training.lora import add_lora, merge
from phi3mobile.training.model import build_model, check_tokenizer, load_hf, save_hf
from phi3mobile.training.pretrain import finish, tokenizer_of
from phi3mobile.training.replica import Place, find_place
from phi3mobile.training.sources import PackedSource


def sft(config: Sft) -> dict[str, Any]:
    """Train to the end (or resume); writes OUT/final, with adapters merged (and OUT/adapter)."""
    place = find_place(config.run)
    model, shape, rows = prepare(config, conversations)
    batch = config.batch
    source = PackedSource(rows, batch.rows, config.run.seed, place.rank, place.world)
    replica, loss = train(Job(config, adapted(model, config), shape, source, NextToken(), "sft"), place)
    finish_adapted(config, shape, replica, place)
    return {"out": str(Path(config.out) / "final"), "loss": loss, "rows": len(rows), "learned_tokens": rows.targets}


def prepare(config: Any, read: Any) -> tuple[torch.nn.Module, DecoderConfig, Rows]:
    """The checkpoint's model, its shape, and all examples packed."""
    if not config.model.folder:
        raise InputError("model: give folder, the checkpoint to go on from")
    tokenizer = tokenizer_of(config.model)
    model, shape = build_model(config.model)
    check_tokenizer(tokenizer, shape)
    encoder = open_encoder(tokenizer, config.data.template)
    length = config.batch.length
    if length > shape.max_position_embeddings:
        raise InputError(f"batch: length {length}; the model takes {shape.max_position_embeddings} positions")
    pad = shape.pad_token_id if shape.pad_token_id is not None else shape.eos_token_ids[0]
    return model, shape, pack(read(config.data, encoder, length), length, pad)


def adapted(model: torch.nn.Module, config: Any) -> torch.nn.Module:
    """With adapters, if the config asks for them; their random start follows the seed."""
    if not config.lora.rank:
        return model
    if config.run.ema:
        raise InputError("run: ema is for training all weights; set it to 0 with lora")
    torch.manual_seed(config.run.seed)
    return add_lora(model, config.lora, torch.bfloat16 if config.run.dtype == "bfloat16" else torch.float32)


def finish_adapted(config: Any, shape: DecoderConfig, replica: Any, place: Place) -> None:
    """OUT/final: what was trained, as an ordinary checkpoint folder."""
    out, tokenizer = Path(config.out), tokenizer_of(config.model)
    if not config.lora.rank:
        finish(out, shape, replica, place, config.run.save_dtype, tokenizer)
    elif not (out / "final").exists():
        adapters = {name: w for name, w in replica.full_weights().items() if "lora_" in name}
        if place.rank == 0:
            base, _ = load_hf(config.model.folder)
            merged = merge(base, config.lora, adapters, out / "adapter")
            save_hf(out / "final", shape, merged.state_dict(), tokenizer, config.run.save_dtype)
        place.barrier()
