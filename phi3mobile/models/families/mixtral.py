"""mixtral: Mixtral 8x7B and 8x22B. RMSNorm, no biases, SwiGLU experts, the softmax of the best two router logits.

Parity with transformers' MixtralForCausalLM to 1e-4.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from phi3mobile.errors import InputError
from phi3mobile.models.experts import (
    FUSED,
    GGUF_KEYS,
    MixtureConfig,
    MixtureLayer,
    gguf_mixture,
    gguf_parts,
    layout_in,
    mixture_values,
    stored_parts,
)
from phi3mobile.models.gguf import GgufLayout, Metadata, gguf_rope_scaling
from phi3mobile.models.hf import agreed, eos_value, first, head_size, rope_parameters, sliding_window
from phi3mobile.models.keys import FIXED, HARMLESS, refuse_unknown, stop_ids, token_id
from phi3mobile.models.pieces import Block
from phi3mobile.models.routing import SOFTMAX, Routing
from phi3mobile.models.tensors import Tensor

MODEL_TYPES = ("mixtral",)
Layer = MixtureLayer

_NEEDED = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"),
    *("num_local_experts", "num_experts_per_tok"),
)
# What transformers 5 gives a key left out.
_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
# The router's noise is added in training alone; a released file says 0.
_FIXED = {key: values for key, values in FIXED.items() if key != "num_local_experts"}
_HARMLESS = HARMLESS | {"router_aux_loss_coef", "output_router_logits", "router_jitter_noise"}
_READ = frozenset(
    (
        *_NEEDED,
        *_DEFAULTS,
        "head_dim",
        "rope_scaling",
        "rope_parameters",
        "layer_types",
        "use_sliding_window",
        "max_window_layers",
    )
)


@dataclass(frozen=True)
class MixtralConfig(MixtureConfig):
    """The shapes of a mixture of experts, and nothing else."""

    family: ClassVar[str] = "mixtral"
    layouts: ClassVar[tuple[str, ...]] = (*MODEL_TYPES, *(kind + FUSED for kind in MODEL_TYPES))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_bias or self.lm_head_bias or self.rope_scaling is not None:
            raise InputError("config: mixtral has no attention_bias, no lm_head_bias and no rope_scaling")

    def block(self, layer: int) -> Block:
        return Block(window=self.sliding_window, routing=Routing(SOFTMAX, self.num_local_experts, self.num_experts_per_tok))

    def to_hf(self) -> dict[str, Any]:
        return write(self)


def read(hf: dict[str, Any]) -> MixtralConfig:
    """A config.json of model_type mixtral, in the layout of transformers 4 or 5."""
    refuse_unknown(hf, _FIXED, _HARMLESS | _READ)
    mixture_values(hf, _NEEDED, hf["model_type"])
    values = {**_DEFAULTS, **hf}
    if values.get("head_dim") is None:
        values["head_dim"] = head_size(values["hidden_size"], values["num_attention_heads"])
    rope = rope_parameters(values)
    if rope["rope_type"] != "default":
        raise InputError(f"config: rope type {rope['rope_type']} in rope_scaling; mixtral has plain RoPE")
    given, vocab = ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"), values["vocab_size"]
    return MixtralConfig(
        **{key: values[key] for key in (*_NEEDED, *given)},
        head_dim=values["head_dim"],
        rope_theta=first(agreed(hf, rope, "rope_theta"), values["rope_theta"]),
        original_max_position_embeddings=values["max_position_embeddings"],
        sliding_window=sliding_window(values),
        bos_token_id=token_id(values["bos_token_id"], vocab),
        pad_token_id=token_id(values["pad_token_id"], vocab),
        eos_token_ids=stop_ids(values["eos_token_id"]),
        source_model_type=hf["model_type"],
    )


def write(config: MixtralConfig) -> dict[str, Any]:
    """The config.json that `read` and transformers read back as `config`."""
    hf: dict[str, Any] = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu"}
    hf |= {key: getattr(config, key) for key in (*_NEEDED, *(key for key in _DEFAULTS if key != "eos_token_id"), "head_dim")}
    return hf | {"eos_token_id": eos_value(config.eos_token_ids)}


def source_layout(config: MixtralConfig, names: Container[str]) -> str:
    """The layout of a folder that holds these tensors."""
    return layout_in(config, names)


def stored(config: MixtralConfig, tensor: Tensor) -> dict[str, tuple[int, ...]]:
    """The tensors that one is stored as in the config's source layout, in row order, with shapes."""
    return stored_parts(config, tensor, "gate")


def reference() -> tuple[Any, Any]:
    """transformers' classes: the config and the model."""
    from transformers import MixtralConfig as ReferenceConfig
    from transformers import MixtralForCausalLM

    return ReferenceConfig, MixtralForCausalLM


def read_gguf(given: Metadata) -> MixtralConfig:
    """The config of a file of architecture llama with experts."""
    shape = MixtralConfig(**gguf_mixture(given))
    if gguf_rope_scaling(given, shape) is not None:
        raise InputError(f"{given.path}: mixtral has plain RoPE, and the file scales it")
    return shape


GGUF = {
    "llama+experts": GgufLayout(
        GGUF_KEYS,
        lambda _, tensor, present: gguf_parts(tensor, present),
        read_gguf,
        interleaved=("attn_q.weight", "attn_k.weight"),
    )
}

_MIXTRAL = MixtralConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=32000,
    rope_theta=1e6,
    original_max_position_embeddings=32768,
    max_position_embeddings=32768,
    eos_token_ids=(2,),
)
_TINY = replace(
    _MIXTRAL,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=256,
    rope_theta=10000.0,
    original_max_position_embeddings=256,
    max_position_embeddings=256,
    num_local_experts=4,
)

PRESETS: dict[str, MixtralConfig] = {
    "mixtral-8x7b": _MIXTRAL,
    "mixtral-tiny": _TINY,
    "mixtral-tiny-window": replace(_TINY, sliding_window=12, num_local_experts=8, num_experts_per_tok=3),
}
SHAPES: dict[str, MixtralConfig] = {}
