"""transformers' model of a family to train, from and to the HF folder that `phi3mobile export` reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from phi3mobile.errors import InputError
from phi3mobile.models.checkpoint import DTYPES, open_checkpoint, write_checkpoint
from phi3mobile.models.companions import companion_files
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.families import DEFAULT
from phi3mobile.models.registry import family_of, model_types, read_config
from phi3mobile.training.config import Model


def check_trainable(model: Model) -> None:
    """InputError where the model is of a family that no class here trains. Reads a folder's config.json at most."""
    if model.folder:
        _refuse_untrained(model.folder, open_checkpoint(model.folder).config)
    else:
        _refuse_untrained("shape", read_config({"model_type": DEFAULT, **model.shape}))


def build_model(model: Model, seed: int = 0) -> tuple[PreTrainedModel, DecoderConfig]:
    """The float32 model of a training config: a checkpoint's weights (Phi-3 or Llama layout), or random ones."""
    if model.folder:
        return load_hf(model.folder, model.attention)
    config = read_config({"model_type": DEFAULT, **model.shape})
    _refuse_untrained("shape", config)
    hf = empty_hf(config, model.attention)
    initialize(hf, model.init_std, model.mup_base_width, seed)
    return hf, config


def empty_hf(config: DecoderConfig, attention: str = "sdpa") -> PreTrainedModel:
    """transformers' model of our config, float32, with its own initial weights."""
    values = {key: value for key, value in config.to_hf().items() if key not in ("model_type", "architectures")}
    if config.pad_token_id is None:
        values["pad_token_id"] = None
    reference = family_of(config).reference()
    assert reference is not None  # _refuse_untrained
    hf_config, hf_model = reference
    return hf_model(hf_config(**values, attn_implementation=attention, use_cache=False)).float()


def load_hf(folder: str | Path, attention: str = "sdpa") -> tuple[PreTrainedModel, DecoderConfig]:
    """A checkpoint folder as transformers' model in float32. InputError as open_checkpoint, or for an untrained family."""
    checkpoint = open_checkpoint(folder)
    _refuse_untrained(str(folder), checkpoint.config)
    checkpoint.check()
    hf = empty_hf(checkpoint.config, attention)
    hf.load_state_dict({name: checkpoint.tensor(name) for name in checkpoint.names()}, strict=False)
    hf.tie_weights()
    return hf, checkpoint.config


def _refuse_untrained(where: str, config: DecoderConfig) -> None:
    if family_of(config).reference() is None:
        trained = [name for name, family in model_types().items() if family.reference() is not None]
        known = f"{', '.join(trained[:-1])} and {trained[-1]}"
        raise InputError(
            f"model: {where} is of model_type {config.family}; training takes {known}: give a checkpoint of one of them"
        )


def save_hf(
    out: Path, config: DecoderConfig, weights: Mapping[str, torch.Tensor], tokenizer: str | Path | None, dtype: str = "bfloat16"
) -> Path:
    """Write `weights` (HF names) as a checkpoint folder with the tokenizer's files. InputError: disk full, `out` exists."""
    names = config.tensors()
    companions = companion_files(Path(tokenizer)) if tokenizer else []
    return write_checkpoint(out, config, ((name, weights[name]) for name in names), DTYPES[dtype], companions)


def check_tokenizer(folder: str | Path, config: DecoderConfig) -> None:
    """InputError if the tokenizer's ids do not fit the model."""
    from phi3mobile.text.vocabularies import load_tokenizer

    count = load_tokenizer(folder).vocab_size
    if count > config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {count} ids, the model {config.vocab_size}; take the model's own tokenizer, or "
            "raise vocab_size"
        )


@torch.no_grad()
def initialize(hf: PreTrainedModel, std: float, base_width: int = 0, seed: int = 0) -> None:
    """Normal initial weights; the two projections that write into the residual stream get std / sqrt(2 layers).

    Under muP (arXiv 2203.03466, table 3, for Adam; head_dim stays fixed): with m = hidden / base_width, hidden matrices
    have variance 1/m and the head 1/m^2 of the proxy's. lr factors: param_groups. No multiplier is left in the graph, so
    the checkpoint is an ordinary phi3.
    """
    config, generator = hf.config, torch.Generator().manual_seed(seed)
    m = config.hidden_size / base_width if base_width else 1.0
    residual = 1 / math.sqrt(2 * config.num_hidden_layers)
    for name, weight in hf.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1.0)
            continue
        spread = std
        if "layers." in name:
            spread *= m**-0.5 * (residual if "o_proj" in name or "down_proj" in name else 1.0)
        elif "lm_head" in name:
            spread /= m
        weight.copy_(torch.randn(weight.shape, generator=generator) * spread)


def param_groups(model: torch.nn.Module, weight_decay: float, base_width: int = 0, hidden: int = 0) -> list[dict]:
    """AdamW's groups with `lr_scale`: norms without decay; under muP hidden matrices and head learn at lr / m."""
    m = hidden / base_width if base_width else 1.0
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            wide = weight.ndim > 1 and ("layers." in name or "lm_head" in name)
            groups.setdefault((weight.ndim > 1, 1 / m if wide else 1.0), []).append(weight)
    return [
        {"params": weights, "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale}
        for (decays, scale), weights in groups.items()
    ]


def check_mup(model: Model, config: DecoderConfig) -> None:
    """InputError where muP's rules have no meaning."""
    if model.mup_base_width and config.tie_word_embeddings:
        raise InputError("mup_base_width needs tie_word_embeddings = false: embedding and head learn at different rates")


def flops_per_token(config: DecoderConfig, length: int) -> float:
    """Training FLOPs of one token: 6 per weight used in a product, and causal attention over length / 2 keys."""
    used = config.parameters() - (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)
    attended = min(length / 2, config.sliding_window or length)
    return 6 * used + 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * attended
