"""phi3: phi-3-mini, 3.5-mini, medium and phi-4-mini; Llama's and Mistral's layouts, fused into the same graph on reading.

RMSNorm, SwiGLU, NeoX RoPE, grouped KV heads, no biases: the graph expresses all of them exactly. Names are HF's. Parity with
transformers' Phi3ForCausalLM (and Llama, Mistral once fused) is tested to 1e-4.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.errors import InputError
from phi3mobile.models.config import SHAPE_KEYS, DecoderConfig, ramp
from phi3mobile.models.gguf import GgufLayout, Metadata, gguf_rope_scaling, gguf_shape
from phi3mobile.models.hf import (
    agreed,
    eos_value,
    first,
    head_size,
    original_context,
    refuse_layer_types,
    rope_parameters,
    rope_scaling,
    sliding_window,
)
from phi3mobile.models.keys import FIXED, HARMLESS, refuse_unknown, stop_ids, token_id
from phi3mobile.models.modules import Attention, Halves, norm
from phi3mobile.models.pieces import Block
from phi3mobile.models.tensors import ATTENTION_NORM, DOWN, EMBED, FINAL_NORM, GATE_UP, HEAD, MLP_NORM, QKV, O, Tensor, table

MODEL_TYPES = ("phi3", "llama", "mistral")

# Where a config.json may leave a key out, the value that transformers 5 gives the class.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "phi3": {
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "pad_token_id": 32000,
        "sliding_window": None,
    },
    "llama": {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "sliding_window": None,
    },
    "mistral": {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "sliding_window": 4096,
        "num_key_value_heads": 8,
    },
}

_READ = frozenset(
    (
        *SHAPE_KEYS,
        *(key for defaults in _DEFAULTS.values() for key in defaults),
        "head_dim",
        "tie_word_embeddings",
        "rope_theta",
        "partial_rotary_factor",
        "rope_scaling",
        "rope_parameters",
        "original_max_position_embeddings",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
    )
)


@dataclass(frozen=True)
class Phi3Config(DecoderConfig):
    """The shapes of a decoder, and nothing else."""

    family: ClassVar[str] = "phi3"
    layouts: ClassVar[tuple[str, ...]] = MODEL_TYPES

    def tensors(self) -> dict[str, Tensor]:
        return _tensors(self)

    def block(self, layer: int) -> Block:
        return Block(window=self.sliding_window)

    def to_hf(self) -> dict[str, Any]:
        return write(self)


def read(hf: dict[str, Any]) -> Phi3Config:
    """A config.json of model_type phi3, llama or mistral, in the layout of transformers 4 or 5."""
    model_type = hf["model_type"]
    refuse_unknown(hf, FIXED, HARMLESS | _READ)
    if missing := [key for key in SHAPE_KEYS if hf.get(key) is None]:
        raise InputError(f"config: {', '.join(missing)} missing; a {model_type} config must give them")

    values = {**_DEFAULTS[model_type], **hf}
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    head_dim = values.get("head_dim")
    if head_dim is None:
        head_dim = head_size(hidden, heads)
    rope, vocab = rope_parameters(values), values["vocab_size"]
    if model_type == "llama":  # which has no window, whatever the config says of one
        refuse_layer_types(values, "full_attention")
    plain = {key: values[key] for key in (*SHAPE_KEYS, "rms_norm_eps", "max_position_embeddings")}
    shape = Phi3Config(
        **plain,
        num_key_value_heads=first(values.get("num_key_value_heads"), heads),
        head_dim=head_dim,
        rope_theta=first(agreed(values, rope, "rope_theta"), 10000.0),
        partial_rotary_factor=first(agreed(values, rope, "partial_rotary_factor"), 1.0),
        original_max_position_embeddings=original_context(values, rope),
        sliding_window=None if model_type == "llama" else sliding_window(values),
        tie_word_embeddings=first(values.get("tie_word_embeddings"), False),
        bos_token_id=token_id(values["bos_token_id"], vocab),
        pad_token_id=token_id(values["pad_token_id"], vocab),
        eos_token_ids=stop_ids(values["eos_token_id"]),
        source_model_type=model_type,
    )
    scaling = rope_scaling(shape, rope)
    return shape if scaling is None else replace(shape, rope_scaling=scaling)


def write(config: Phi3Config) -> dict[str, Any]:
    """The config.json of the same function as model_type phi3."""
    hf: dict[str, Any] = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu"}
    ours = {"rope_scaling", "head_dim", "eos_token_ids", "source_model_type"}
    hf |= {field.name: getattr(config, field.name) for field in fields(config) if field.name not in ours}
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        hf["head_dim"] = config.head_dim  # phi3 configs derive it otherwise
    hf["eos_token_id"] = eos_value(config.eos_token_ids)
    hf["rope_scaling"] = None
    if config.rope_scaling is not None:
        scaling = {key: value for key, value in vars(config.rope_scaling).items() if value is not None}
        short, long = scaling.get("short_mscale"), scaling.get("long_mscale")
        if short is not None and short == long:
            scaling["attention_factor"] = short  # the name by which transformers reads it
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in scaling.items()}
        hf["rope_scaling"] = {"type": "longrope", **lists}
    return hf


@lru_cache(maxsize=16)
def _tensors(config: Phi3Config) -> dict[str, Tensor]:
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * dim, config.num_key_value_heads * dim
    q_k_v = {"q": slice(0, queries), "k": slice(queries, queries + keys), "v": slice(queries + keys, None)}
    gate_up = {"gate": slice(0, inner), "up": slice(inner, None)}
    found = [Tensor("model.embed_tokens.weight", (config.vocab_size, hidden), EMBED)]
    for layer in range(config.num_hidden_layers):
        base = f"model.layers.{layer}."
        found += [
            Tensor(f"{base}input_layernorm.weight", (hidden,), ATTENTION_NORM, layer),
            Tensor(f"{base}self_attn.qkv_proj.weight", (queries + 2 * keys, hidden), QKV, layer, ATTENTION_NORM, rows=q_k_v),
            Tensor(f"{base}self_attn.o_proj.weight", (hidden, queries), O, layer, QKV),
            Tensor(f"{base}post_attention_layernorm.weight", (hidden,), MLP_NORM, layer),
            Tensor(f"{base}mlp.gate_up_proj.weight", (2 * inner, hidden), GATE_UP, layer, MLP_NORM, rows=gate_up),
            Tensor(f"{base}mlp.down_proj.weight", (hidden, inner), DOWN, layer, GATE_UP),
        ]
    found.append(Tensor("model.norm.weight", (hidden,), FINAL_NORM))
    if not config.tie_word_embeddings:
        found.append(Tensor("lm_head.weight", (config.vocab_size, hidden), HEAD, reads=FINAL_NORM))
    return table(found)


def stored(config: Phi3Config, tensor: Tensor) -> dict[str, tuple[int, ...]]:
    """The tensors that one is stored as in the config's source layout, in row order, with shapes."""
    if config.source_model_type != "phi3" and tensor.role in (QKV, GATE_UP):
        height, width = tensor.shape
        fused = tensor.module.rpartition(".")[2]
        sizes = {name: len(range(height)[rows]) for name, rows in tensor.rows.items() if isinstance(rows, slice)}
        return {tensor.name.replace(fused, f"{name}_proj"): (size, width) for name, size in sizes.items()}
    return {tensor.name: tensor.shape}


def reference() -> tuple[Any, Any]:
    """transformers' classes: the config and the model."""
    from transformers import Phi3Config as ReferenceConfig
    from transformers import Phi3ForCausalLM

    return ReferenceConfig, Phi3ForCausalLM


class MLP(nn.Module):
    """SwiGLU, x [..., hidden] -> [..., hidden]; rows of gate_up_proj are [gate | up]."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.inner(x))

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., hidden] -> [..., intermediate], what down_proj multiplies."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return functional.silu(gate) * up


class Layer(Halves):
    """One block; what lies between its two halves is `attend`, or a target's own attention."""

    def __init__(self, config: Phi3Config, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = norm(config, index)
        self.post_attention_layernorm = norm(config, index)

    def attention_inputs(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.self_attn.rotated(self.input_layernorm(x), cos, sin)

    def attention_output(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn.o_proj(attended)
        return x + self.mlp(self.post_attention_layernorm(x))


_GGUF_TOP = {EMBED: "token_embd.weight", FINAL_NORM: "output_norm.weight", HEAD: "output.weight"}
_GGUF_LAYER = {
    ATTENTION_NORM: ("attn_norm",),
    QKV: ("attn_q", "attn_k", "attn_v"),
    O: ("attn_output",),
    MLP_NORM: ("ffn_norm",),
    GATE_UP: ("ffn_gate", "ffn_up"),
    DOWN: ("ffn_down",),
}
_GGUF_KEYS = frozenset(
    """block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv
    attention.key_length attention.value_length attention.layer_norm_rms_epsilon attention.sliding_window rope.freq_base
    rope.dimension_count rope.scaling.type rope.scaling.factor rope.scale_linear rope.scaling.attn_factor
    rope.scaling.original_context_length expert_count""".split()  # noqa: SIM905
)


def gguf_parts(architecture: str, tensor: Tensor, present: Container[str]) -> list[str]:
    """The tensors of a GGUF file that one of ours is stored as, in row order."""
    if tensor.layer is None:
        return [_GGUF_TOP[tensor.role]]
    parts = _GGUF_LAYER[tensor.role]
    if architecture == "phi3" and tensor.role == GATE_UP:
        parts = ("ffn_up",)  # holds both halves
    if tensor.role == QKV and f"blk.{tensor.layer}.attn_qkv.weight" in present:
        parts = ("attn_qkv",)
    return [f"blk.{tensor.layer}.{part}.weight" for part in parts]


def read_gguf(given: Metadata) -> Phi3Config:
    """The config of a file of architecture phi3 or llama.

    A phi3 file without attention.sliding_window (the first conversions) declares no window, and is read so.
    """
    if given.values.get("expert_count"):
        raise InputError(
            f"{given.path} is a mixture of {given.values['expert_count']} experts; only dense models are supported"
        )
    plain = gguf_shape(given)
    head_dim = plain["head_dim"]
    if (value_dim := given.whole("attention.value_length", head_dim)) != head_dim:
        raise InputError(f"{given.path}: keys of {head_dim} and values of {value_dim} dimensions; they must be equal")
    rotary = given.whole("rope.dimension_count", head_dim)
    if given.architecture == "llama" and rotary != head_dim:
        raise InputError(f"{given.path}: a llama model that rotates {rotary} of {head_dim} dimensions is not supported")
    shape = Phi3Config(**plain, intermediate_size=given.whole("feed_forward_length"), partial_rotary_factor=rotary / head_dim)
    scaling = gguf_rope_scaling(given, shape)
    return shape if scaling is None else replace(shape, rope_scaling=scaling)


GGUF = {
    "phi3": GgufLayout(_GGUF_KEYS, gguf_parts, read_gguf),
    # q and k rows are interleaved for llama.cpp's RoPE; here they go back to NeoX halves.
    "llama": GgufLayout(_GGUF_KEYS, gguf_parts, read_gguf, interleaved=("attn_q.weight", "attn_k.weight")),
}


_MINI = Phi3Config(
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=96,
    vocab_size=32064,
    sliding_window=2047,
    bos_token_id=1,
    eos_token_ids=(32000,),
    pad_token_id=32000,
)
_MEDIUM = replace(
    _MINI,
    hidden_size=5120,
    intermediate_size=17920,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=10,
    head_dim=128,
)
_SMOLLM2 = Phi3Config(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    vocab_size=49152,
    rope_theta=100000.0,
    original_max_position_embeddings=8192,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_ids=(2,),
    pad_token_id=2,
    source_model_type="llama",
)
_TINY = Phi3Config(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    vocab_size=256,
    original_max_position_embeddings=256,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_ids=(2,),
    pad_token_id=2,
)
_TINY_LONG = replace(_TINY, original_max_position_embeddings=32, max_position_embeddings=256)


PRESETS: dict[str, Phi3Config] = {
    "phi-3-mini-4k": _MINI,
    "phi-3-medium-4k": _MEDIUM,
    "smollm2-135m": _SMOLLM2,
    "tiny-mha": _TINY,
    "tiny-gqa": replace(_TINY, num_key_value_heads=2),
    "tiny-tied": replace(_TINY, num_key_value_heads=1, tie_word_embeddings=True),
    "tiny-partial": replace(
        _TINY_LONG,
        hidden_size=128,
        head_dim=32,
        num_key_value_heads=2,
        num_hidden_layers=3,
        partial_rotary_factor=0.75,
        tie_word_embeddings=True,
        rope_scaling=ramp(12, 9.0),
    ),
    "tiny-window": replace(_TINY, num_key_value_heads=2, sliding_window=12),
    "tiny-longrope": replace(_TINY_LONG, rope_scaling=ramp(8, 9.0)),
}

# Shapes whose function needs the checkpoint's factor lists: right for sizes and memory, not for logits.
SHAPES: dict[str, Phi3Config] = {
    "phi-3-mini-128k": replace(_MINI, max_position_embeddings=131072, sliding_window=262144),
    "phi-3.5-mini": replace(_MINI, max_position_embeddings=131072, sliding_window=262144),
    "phi-3-medium-128k": replace(_MEDIUM, max_position_embeddings=131072, sliding_window=131072),
    "phi-4-mini": replace(
        _MINI,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=200064,
        partial_rotary_factor=0.75,
        max_position_embeddings=131072,
        sliding_window=262144,
        tie_word_embeddings=True,
        bos_token_id=199999,
        eos_token_ids=(199999,),
        pad_token_id=199999,
    ),
}
