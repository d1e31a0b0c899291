"""From a checkpoint folder to a model that runs: the reference for exports and evaluation."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from phi3mobile.models.config import Phi3Config, Phi3SmallConfig
from phi3mobile.models.phi3 import Phi3ForCausalLM
from phi3mobile.models.phi3small import Phi3SmallForCausalLM
from phi3mobile.models.weights import Checkpoint, open_checkpoint


def new_model(config: Phi3Config, context: int | None = None) -> Phi3ForCausalLM:
    """The model of a config, its weights not yet filled. `context`: see load_model."""
    return (Phi3SmallForCausalLM if isinstance(config, Phi3SmallConfig) else Phi3ForCausalLM)(config, context)


def load_model(path: str | Path, context: int | None = None) -> Phi3ForCausalLM:
    """The checkpoint folder at `path` (model_type phi3, llama, mistral or phi3small) in fp32, eval mode, KV cache inside.

    `context`: positions of the cache, by default min(max_position_embeddings, 4096). forward(tokens int64 [1, T],
    position) -> logits float32 [1, T, V]. Raises InputError for a folder that is not such a checkpoint.
    """
    return model_from(open_checkpoint(path), context)


def model_from(checkpoint: Checkpoint, context: int | None = None) -> Phi3ForCausalLM:
    """The model of an open checkpoint, its weights checked first."""
    checkpoint.check()
    with torch.device("meta"):  # no time or memory spent on random weights
        model = new_model(checkpoint.config, context)
    for name in checkpoint.names():
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, nn.Parameter(checkpoint.tensor(name), requires_grad=False))
    if checkpoint.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.allocate()
    return model.eval()
