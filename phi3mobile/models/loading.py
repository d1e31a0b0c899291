"""From a checkpoint folder to a model that runs: the reference for exports and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from phi3mobile.errors import InputError
from phi3mobile.models.checkpoint import Checkpoint, open_checkpoint
from phi3mobile.models.clip import Vision
from phi3mobile.models.decoder import Decoder
from phi3mobile.models.vision_config import PREFIX


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
    fill(model, checkpoint.names(), checkpoint.tensor)
    if checkpoint.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.allocate()
    return model.eval()


def load_vision(path: str | Path) -> Vision:
    """What turns pictures into rows that the decoder of `load_model(path)` takes, in fp32.

    Raises InputError for a folder that is not such a checkpoint, or whose model takes no pictures.
    """
    return vision_from(open_checkpoint(path))


def vision_from(checkpoint: Checkpoint) -> Vision:
    """The tower and projector of an open checkpoint, its weights checked first."""
    if (config := checkpoint.config.vision) is None:
        raise InputError(f"{checkpoint.folder}: model_type {checkpoint.config.family} takes no pictures; give a vision model")
    checkpoint.check()
    with torch.device("meta"):
        vision = Vision(config)
    fill(vision, config.tensors(), checkpoint.tensor, PREFIX)
    return vision.eval()


def fill(root: nn.Module, names: Iterable[str], weights: Callable[[str], torch.Tensor], prefix: str = "") -> None:
    """Give a module the weights of these names, one after the other; `prefix` leads to the root."""
    for name in names:
        module, _, attribute = name.removeprefix(prefix).rpartition(".")
        setattr(root.get_submodule(module), attribute, nn.Parameter(weights(name), requires_grad=False))
