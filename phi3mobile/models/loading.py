"""From a checkpoint folder to a model that runs: the reference for exports and evaluation."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from phi3mobile.models.checkpoint import Checkpoint, open_checkpoint
from phi3mobile.models.decoder import Decoder


def load_model(path: str | Path, context: int | None = None) -> Decoder:
    """The checkpoint folder at `path`, of any family, in fp32, eval mode, KV cache inside.

    `context`: positions of the cache, by default min(max_position_embeddings, 4096). forward(tokens int64 [1, T],
    position) -> logits float32 [1, T, V]. Raises InputError for a folder that is not such a checkpoint.
    """
    return model_from(open_checkpoint(path), context)


def model_from(checkpoint: Checkpoint, context: int | None = None) -> Decoder:
    """The model of an open checkpoint, its weights checked first."""
    checkpoint.check()
    with torch.device("meta"):  # no time or memory spent on random weights
        model = Decoder(checkpoint.config, context)
    for name in checkpoint.names():
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, nn.Parameter(checkpoint.tensor(name), requires_grad=False))
    if checkpoint.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.allocate()
    return model.eval()
