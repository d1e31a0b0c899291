"""phimoe: Phi-3.5-MoE, Phi-mini-MoE and Phi-tiny-MoE, and their ancestor GRIN-MoE.

LayerNorm with bias, biases on the attention's linears and the head, 16 SwiGLU experts of which SparseMixer takes two with
independent weights (models/routing.py), NeoX RoPE over whole heads. Parity with transformers' PhimoeForCausalLM to 1e-4; its
rotary embedding keeps the short list past the switch, which the oracle mends (tests/reference_phimoe.py).
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from phi3mobile.errors import InputError
from phi3mobile.models.config import RopeScaling, ramp
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
from phi3mobile.models.hf import (
    agreed,
    eos_value,
    first,
    head_size,
    original_context,
    rope_parameters,
    rope_scaling,
    sliding_window,
)
from phi3mobile.models.keys import FIXED, HARMLESS, refuse_unknown, stop_ids, token_id
from phi3mobile.models.pieces import Block
from phi3mobile.models.routing import SPARSEMIXER, Routing
from phi3mobile.models.tensors import Tensor

MODEL_TYPES = ("phimoe", "grinmoe")
Layer = MixtureLayer
JITTER = 0.01  # of every released router; what config.json calls router_jitter_noise
MSCALE = 1.243163121016122  # of 3.5-MoE in both regimes; GGUF files carry another one, derived
_ROUNDS = 2  # of SparseMixer, whatever the config says

_NEEDED = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"),
    *("num_local_experts", "num_experts_per_tok", "router_jitter_noise"),
)
# What transformers 5 gives a key left out; the released files leave none of these out.
_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "attention_bias": False,
    "lm_head_bias": False,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_FIXED = {key: values for key, values in FIXED.items() if key not in ("attention_bias", "lm_head_bias", "num_local_experts")}
_HARMLESS = HARMLESS | {"input_jitter_noise", "router_aux_loss_coef", "output_router_logits"}
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
        "original_max_position_embeddings",
    )
)


@dataclass(frozen=True)
class PhimoeConfig(MixtureConfig):
    """`rms_norm_eps` is the LayerNorms'. router_jitter_noise is half the width of the router's band."""

    family: ClassVar[str] = "phimoe"
    layouts: ClassVar[tuple[str, ...]] = (*MODEL_TYPES, *(kind + FUSED for kind in MODEL_TYPES))

    num_local_experts: int = 16
    attention_bias: bool = True
    lm_head_bias: bool = True
    router_jitter_noise: float = JITTER

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_experts_per_tok != _ROUNDS:
            raise InputError(f"config: num_experts_per_tok is {self.num_experts_per_tok}; SparseMixer has {_ROUNDS} rounds")
        noise = self.router_jitter_noise
        if type(noise) not in (int, float) or not 0 <= noise < 0.5:
            raise InputError(f"config: router_jitter_noise is {noise!r}; it must be a number from 0 to below 0.5")
        if (scaling := self.rope_scaling) is not None:  # never derived, unlike phi-3's
            filled = replace(scaling, short_mscale=scaling.short_mscale or MSCALE, long_mscale=scaling.long_mscale or MSCALE)
            object.__setattr__(self, "rope_scaling", filled)

    def block(self, layer: int) -> Block:
        routing = Routing(SPARSEMIXER, self.num_local_experts, _ROUNDS, float(self.router_jitter_noise))
        return Block("layernorm", bias=self.attention_bias, window=self.sliding_window, routing=routing)

    def to_hf(self) -> dict[str, Any]:
        return write(self)


def read(hf: dict[str, Any]) -> PhimoeConfig:
    """A config.json of model_type phimoe or grinmoe, in the layout of transformers 4 or 5."""
    refuse_unknown(hf, _FIXED, _HARMLESS | _READ)
    mixture_values(hf, _NEEDED, hf["model_type"])
    values = {**_DEFAULTS, **hf}
    if values.get("head_dim") is None:
        values["head_dim"] = head_size(values["hidden_size"], values["num_attention_heads"])
    rope = rope_parameters(values)
    if rope["rope_type"] not in ("default", "longrope"):
        raise InputError(f"config: rope type {rope['rope_type']} in rope_scaling; this family knows longrope and su")
    given, vocab = ("max_position_embeddings", "rms_norm_eps"), values["vocab_size"]
    shape = PhimoeConfig(
        **{key: values[key] for key in (*_NEEDED, *given, "tie_word_embeddings", "attention_bias", "lm_head_bias")},
        head_dim=values["head_dim"],
        rope_theta=first(agreed(hf, rope, "rope_theta"), values["rope_theta"]),
        original_max_position_embeddings=original_context(values, rope),
        sliding_window=sliding_window(values),
        bos_token_id=token_id(values["bos_token_id"], vocab),
        pad_token_id=token_id(values["pad_token_id"], vocab),
        eos_token_ids=stop_ids(values["eos_token_id"]),
        source_model_type=hf["model_type"],
    )
    if rope["rope_type"] == "longrope":
        for key in ("short_mscale", "long_mscale"):
            if rope.get(key) is None:
                raise InputError(f"config: rope type longrope of this family needs {key}; it never derives it")
    scaling = rope_scaling(shape, {key: value for key, value in rope.items() if key not in ("factor", "attention_factor")})
    return shape if scaling is None else replace(shape, rope_scaling=scaling)


def write(config: PhimoeConfig) -> dict[str, Any]:
    """The config.json that `read` and transformers read back as `config`."""
    hf: dict[str, Any] = {"architectures": ["PhiMoEForCausalLM"], "model_type": "phimoe", "hidden_act": "silu"}
    hf |= {key: getattr(config, key) for key in (*_NEEDED, *(key for key in _DEFAULTS if key != "eos_token_id"), "head_dim")}
    hf |= {"eos_token_id": eos_value(config.eos_token_ids), "rope_scaling": None}
    if config.rope_scaling is not None:
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(config.rope_scaling).items()}
        original = config.original_max_position_embeddings  # transformers 5 looks for it here, 4 at the top
        hf["rope_scaling"] = {"type": "longrope", **lists, "original_max_position_embeddings": original}
    if config.original_max_position_embeddings != config.max_position_embeddings or config.rope_scaling is not None:
        hf["original_max_position_embeddings"] = config.original_max_position_embeddings
    return hf


def source_layout(config: PhimoeConfig, names: Container[str]) -> str:
    """The layout of a folder that holds these tensors."""
    return layout_in(config, names)


def stored(config: PhimoeConfig, tensor: Tensor) -> dict[str, tuple[int, ...]]:
    """The tensors that one is stored as in the config's source layout, in row order, with shapes."""
    return stored_parts(config, tensor, "router")


def reference() -> tuple[Any, Any]:
    """transformers' classes: the config and the model."""
    from transformers import PhimoeConfig as ReferenceConfig
    from transformers import PhimoeForCausalLM

    return ReferenceConfig, PhimoeForCausalLM


def read_gguf(given: Metadata) -> PhimoeConfig:
    """The config of a file of architecture phimoe: norms, routing and mscale are the family's, whatever the file says."""
    shape = PhimoeConfig(
        **gguf_mixture(given), attention_bias=given.has("blk.0.attn_output.bias"), lm_head_bias=given.has("output.bias")
    )
    scaling = gguf_rope_scaling(given, shape)
    if scaling is None:
        return shape
    return replace(shape, rope_scaling=replace(scaling, short_mscale=MSCALE, long_mscale=MSCALE))


GGUF = {"phimoe": GgufLayout(GGUF_KEYS, lambda _, tensor, present: gguf_parts(tensor, present), read_gguf)}

_MOE = PhimoeConfig(
    hidden_size=4096,
    intermediate_size=6400,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=32064,
    bos_token_id=1,
    eos_token_ids=(32000,),
)
_SLIM = replace(_MOE, intermediate_size=960, sliding_window=2047)
_TINY = PhimoeConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=256,
    original_max_position_embeddings=256,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_ids=(2,),
    num_local_experts=4,
)
_RAMP = ramp(16, 9.0)

PRESETS: dict[str, PhimoeConfig] = {
    "grin-moe": replace(_MOE, sliding_window=2047),
    "phi-mini-moe": _SLIM,
    "phi-tiny-moe": replace(_SLIM, intermediate_size=448, num_attention_heads=16, num_key_value_heads=4),
    "moe-tiny": replace(_TINY, num_local_experts=16),
    "moe-tiny-window": replace(_TINY, sliding_window=12, attention_bias=False, lm_head_bias=False, tie_word_embeddings=True),
    "moe-tiny-longrope": replace(
        _TINY, original_max_position_embeddings=32, rope_scaling=RopeScaling(_RAMP.short_factor, _RAMP.long_factor, 1.2, 1.3)
    ),
}

# Its function needs the checkpoint's factor lists: right for sizes and memory, not for logits.
SHAPES: dict[str, PhimoeConfig] = {"phi-3.5-moe": replace(_MOE, max_position_embeddings=131072, sliding_window=131072)}
