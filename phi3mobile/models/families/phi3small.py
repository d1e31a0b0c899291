"""phi3small: LayerNorm and linears with biases, gegelu, muP multipliers, masked ids, block-sparse layers among dense ones.

Formulas: modeling_phi3_small.py of microsoft/Phi-3-small-8k-instruct; parity with tests/reference_phi3small.py to 1e-4. Keys
and defaults are those of the released configuration_phi3_small.py. The ids that are masked in the logits come from the released
tokenizer's code, not from config.json; a config saved again by transformers may carry them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import nn

from phi3mobile.errors import InputError
from phi3mobile.models.blocksparse import Pattern
from phi3mobile.models.config import DecoderConfig, ramp
from phi3mobile.models.hf import eos_value, head_size, original_context, refuse_layer_types, rope_parameters, rope_scaling
from phi3mobile.models.keys import FIXED, HARMLESS, refuse_unknown, stop_ids, token_id
from phi3mobile.models.modules import Halves, gegelu, norm
from phi3mobile.models.pieces import Block
from phi3mobile.models.rope import apply_rope
from phi3mobile.models.tensors import (
    ATTENTION_NORM,
    DOWN,
    EMBED,
    FINAL_NORM,
    GATE_UP,
    HEAD,
    MLP_NORM,
    QKV,
    O,
    Tensor,
    bias_of,
    table,
)

MODEL_TYPES = ("phi3small",)
GGUF: dict = {}  # llama.cpp knows no such architecture

# Read as they are, with the value that the class gives a key left out.
_PLAIN: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 100352,
    "max_position_embeddings": 8192,
    "gegelu_limit": 20.0,
    "blocksparse_block_size": 64,
    "blocksparse_num_local_blocks": 16,
    "blocksparse_vert_stride": 8,
    "blocksparse_homo_head_pattern": False,
    "mup_use_scaling": True,
    "mup_attn_multiplier": 1.0,
    "mup_embedding_multiplier": 10.0,
    "mup_width_multiplier": 8.0,
    "tie_word_embeddings": True,
}
_OTHER: dict[str, Any] = {
    "layer_norm_epsilon": 1e-5,
    "rope_embedding_base": 1000000,
    "rope_scaling": None,
    "rope_parameters": None,  # a config saved again by transformers 5; a rope_theta in it is that class's default, never read
    "bos_token_id": 100257,
    "pad_token_id": None,
    "eos_token_id": 100257,
    "layer_types": None,
    "dense_attention_every_n_layers": 2,
    "ff_dim_multiplier": None,
    "ff_intermediate_size": 14336,
    "gegelu_pad_to_256": True,
    "dummy_token_indices": None,
    "original_max_position_embeddings": None,
}
_FIXED = {key: values for key, values in FIXED.items() if key not in ("hidden_act", "attention_bias")} | {
    "hidden_act": ("gegelu",),
    "rope_position_scale": (1.0,),
    "partial_rotary_factor": (1.0, None),
    "sliding_window": (None,),
}
# attention_bias: released as false, and the released code gives every linear a bias all the same. rope_theta: it reads
# rope_embedding_base.
_HARMLESS = HARMLESS | {
    "attention_bias",
    "rope_theta",
    "use_sliding_window",
    "max_window_layers",
    "reorder_and_upcast_attn",
    "pad_sequence_to_multiple_of_64",
    "blocksparse_triton_kernel_block_size",
}
# cl100k has no token 100256 and 100267 to 100275; phi-3-small never says its fim and endofprompt tokens, nor the padding.
_CL100K_DUMMIES = (100256, 100258, 100259, 100260, 100264, 100265, *range(100267, 100352))


@dataclass(frozen=True)
class Phi3SmallConfig(DecoderConfig):
    """phi-3-small: LayerNorm and biases, gegelu, muP multipliers, block-sparse layers. `rms_norm_eps` is the LayerNorms'.

    The fields below are config.json's own.
    """

    family: ClassVar[str] = "phi3small"
    layouts: ClassVar[tuple[str, ...]] = MODEL_TYPES

    gegelu_limit: float = 20.0
    blocksparse_block_size: int = 64
    blocksparse_num_local_blocks: int = 16
    blocksparse_vert_stride: int = 8
    blocksparse_homo_head_pattern: bool = False
    dense_attention_every_n_layers: int = 2  # 0: none is dense
    mup_use_scaling: bool = True
    mup_attn_multiplier: float = 1.0
    mup_embedding_multiplier: float = 10.0
    mup_width_multiplier: float = 8.0
    dummy_token_indices: tuple[int, ...] = ()  # ids that the model never says

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("block_size", "num_local_blocks", "vert_stride"):
            value = getattr(self, f"blocksparse_{name}")
            if type(value) is not int or value < 1:
                raise InputError(f"config: blocksparse_{name} is {value!r}; it must be a whole number above 0")
        every = self.dense_attention_every_n_layers
        if type(every) is not int or every < 0:
            raise InputError(f"config: dense_attention_every_n_layers is {every!r}; it must be a whole number, 0 for none")
        for name in ("gegelu_limit", "mup_attn_multiplier", "mup_embedding_multiplier", "mup_width_multiplier"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise InputError(f"config: {name} is {value!r}; it must be a number above 0")
        for name in ("blocksparse_homo_head_pattern", "mup_use_scaling"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"config: {name} is {getattr(self, name)!r}; it must be true or false")
        for token in self.dummy_token_indices:
            if type(token) is not int or not 0 <= token < self.vocab_size:
                raise InputError(f"config: dummy_token_indices has {token!r}; ids run from 0 to {self.vocab_size - 1}")
        if len(set(self.dummy_token_indices)) == self.vocab_size:
            raise InputError("config: dummy_token_indices names every id of the vocabulary; one at least must be left")
        if self.head_dim * self.num_attention_heads != self.hidden_size or self.partial_rotary_factor != 1:
            raise InputError(f"config: phi3small has heads of hidden_size / num_attention_heads, not of {self.head_dim}")
        if self.sliding_window is not None:
            raise InputError("config: phi3small has no sliding_window")

    @property
    def attention_scale(self) -> float:
        return self.mup_attn_multiplier / self.head_dim if self.mup_use_scaling else self.head_dim**-0.5

    @property
    def embedding_multiplier(self) -> float:
        return self.mup_embedding_multiplier

    @property
    def masked_ids(self) -> tuple[int, ...]:
        return self.dummy_token_indices

    @property
    def logit_divisor(self) -> float:
        return self.mup_width_multiplier

    def tensors(self) -> dict[str, Tensor]:
        return _tensors(self)

    def block(self, layer: int) -> Block:
        pattern, every = None, self.dense_attention_every_n_layers
        if not every or (layer + 1) % every:
            heads, stride = self.num_attention_heads, self.blocksparse_vert_stride
            head_step = 0 if self.blocksparse_homo_head_pattern else max(1, stride // heads)
            blocks = self.blocksparse_block_size, self.blocksparse_num_local_blocks
            pattern = Pattern(heads, self.num_key_value_heads, *blocks, stride, head_step)
        return Block("layernorm", "gegelu", self.gegelu_limit, bias=True, pattern=pattern)

    def to_hf(self) -> dict[str, Any]:
        return write(self)


def read(hf: dict[str, Any]) -> Phi3SmallConfig:
    """A config.json of model_type phi3small, as released or saved again by transformers."""
    refuse_unknown(hf, _FIXED, _HARMLESS | _PLAIN.keys() | _OTHER.keys())
    values = {**_PLAIN, **_OTHER, **hf}
    head_dim = head_size(values["hidden_size"], values["num_attention_heads"])
    rope, vocab = rope_parameters(values), values["vocab_size"]
    refuse_layer_types(values, "full_attention")
    if rope["rope_type"] not in ("default", "longrope"):
        raise InputError(f"config: rope type {rope['rope_type']} in rope_scaling; phi3small knows longrope and su")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise InputError(f"config: partial_rotary_factor is {rope['partial_rotary_factor']!r}; phi3small turns whole heads")
    dummies = values["dummy_token_indices"]
    if dummies is None:
        dummies = _CL100K_DUMMIES if values["vocab_size"] == 100352 else ()
    if not isinstance(dummies, list | tuple):
        raise InputError(f"config: dummy_token_indices is {dummies!r}; it must be a list of ids")
    config = Phi3SmallConfig(
        **{key: values[key] for key in _PLAIN},
        intermediate_size=_intermediate_size(values),
        head_dim=head_dim,
        rms_norm_eps=values["layer_norm_epsilon"],
        rope_theta=values["rope_embedding_base"],
        original_max_position_embeddings=original_context(values, rope),
        dense_attention_every_n_layers=values["dense_attention_every_n_layers"] or 0,
        bos_token_id=token_id(values["bos_token_id"], vocab),
        pad_token_id=token_id(values["pad_token_id"], vocab),
        eos_token_ids=stop_ids(values["eos_token_id"]),
        dummy_token_indices=tuple(dummies),
    )
    scaling = rope_scaling(config, rope)
    return config if scaling is None else replace(config, rope_scaling=scaling)


def write(config: Phi3SmallConfig) -> dict[str, Any]:
    """The config.json that `read` reads back as `config`, with every key that its function depends on."""
    hf: dict[str, Any] = {"architectures": ["Phi3SmallForCausalLM"], "model_type": "phi3small", "hidden_act": "gegelu"}
    hf |= {key: getattr(config, key) for key in (*_PLAIN, "bos_token_id", "pad_token_id")}
    hf |= {
        "ff_intermediate_size": config.intermediate_size,
        "layer_norm_epsilon": config.rms_norm_eps,
        "rope_embedding_base": config.rope_theta,
        "rope_position_scale": 1.0,
        "rope_scaling": None,
        "dense_attention_every_n_layers": config.dense_attention_every_n_layers,
        "blocksparse_triton_kernel_block_size": config.blocksparse_block_size,
        "eos_token_id": eos_value(config.eos_token_ids),
        "dummy_token_indices": list(config.dummy_token_indices),
    }
    if config.rope_scaling is not None:
        scaling = {key: value for key, value in vars(config.rope_scaling).items() if value is not None}
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in scaling.items()}
        original = config.original_max_position_embeddings
        hf["rope_scaling"] = {"type": "su", "original_max_position_embeddings": original, **lists}
        hf["original_max_position_embeddings"] = original
    return hf


def _intermediate_size(values: dict[str, Any]) -> int:
    given, multiplier = values["ff_intermediate_size"], values["ff_dim_multiplier"]
    if (given is None) == (multiplier is None):
        raise InputError(f"config: give ff_intermediate_size ({given!r}) or ff_dim_multiplier ({multiplier!r}), not both")
    if multiplier is None:
        return given
    if type(multiplier) is not int or multiplier < 1:
        raise InputError(f"config: ff_dim_multiplier is {multiplier!r}; it must be a whole number above 0")
    size = multiplier * (values["hidden_size"] // 3) * 2
    return -(-size // 256) * 256 if values["gegelu_pad_to_256"] else size


@lru_cache(maxsize=16)
def _tensors(config: Phi3SmallConfig) -> dict[str, Tensor]:
    """Rows of the fused projection are [q.. | k | v] per KV head; even rows of up_proj are the gelu branch.

    gegelu adds 1 to its linear branch, so no factor passes from down_proj to up_proj; o_proj's reach v through a bias.
    """
    hidden, inner, dim, kv_heads = config.hidden_size, config.intermediate_size, config.head_dim, config.num_key_value_heads
    groups = torch.arange(hidden + 2 * kv_heads * dim).view(kv_heads, -1, dim)
    parts = {"q": groups[:, :-2], "k": groups[:, -2], "v": groups[:, -1]}
    q_k_v = {name: rows.flatten().tolist() for name, rows in parts.items()}
    halves = {"gate": slice(0, None, 2), "up": slice(1, None, 2)}
    found = [Tensor("model.embed_tokens.weight", (config.vocab_size, hidden), EMBED)]
    for layer in range(config.num_hidden_layers):
        base = f"model.layers.{layer}."
        for tensor in (
            Tensor(f"{base}input_layernorm.weight", (hidden,), ATTENTION_NORM, layer),
            Tensor(f"{base}self_attn.query_key_value.weight", (groups.numel(), hidden), QKV, layer, ATTENTION_NORM, rows=q_k_v),
            Tensor(f"{base}self_attn.dense.weight", (hidden, hidden), O, layer),
            Tensor(f"{base}post_attention_layernorm.weight", (hidden,), MLP_NORM, layer),
            Tensor(f"{base}mlp.up_proj.weight", (2 * inner, hidden), GATE_UP, layer, MLP_NORM, rows=halves),
            Tensor(f"{base}mlp.down_proj.weight", (hidden, inner), DOWN, layer),
        ):
            found += [tensor, bias_of(tensor)]
    final = Tensor("model.final_layernorm.weight", (hidden,), FINAL_NORM)
    found += [final, bias_of(final)]
    if not config.tie_word_embeddings:
        found.append(Tensor("lm_head.weight", (config.vocab_size, hidden), HEAD, reads=FINAL_NORM))
    return table(found)


def stored(config: Phi3SmallConfig, tensor: Tensor) -> dict[str, tuple[int, ...]]:
    """The tensors that one is stored as, in row order, with shapes: itself."""
    return {tensor.name: tensor.shape}


def reference() -> None:
    """transformers has no class of this family; tests/reference_phi3small.py is written from its formulas."""


class Attention(nn.Module):
    """The projections of one attention block; rows of query_key_value are [q.. | k | v] per KV head."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.query_key_value = nn.Linear(hidden, hidden + 2 * config.num_key_value_heads * config.head_dim)
        self.dense = nn.Linear(hidden, hidden)


class MLP(nn.Module):
    """x [..., hidden] -> [..., hidden]; even rows of up_proj are the gelu branch, odd ones the linear branch."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.limit = config.gegelu_limit
        self.up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(x)
        return self.down_proj(gegelu(up[..., 0::2], up[..., 1::2], self.limit))


class Layer(Halves):
    """One block, in two halves around attention."""

    def __init__(self, config: Phi3SmallConfig, index: int) -> None:
        super().__init__()
        self.config = config
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = norm(config, index)
        self.post_attention_layernorm = norm(config, index)

    def attention_inputs(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        kv_heads, dim = self.config.num_key_value_heads, self.config.head_dim
        grouped = self.self_attn.query_key_value(self.input_layernorm(x)).unflatten(-1, (kv_heads, -1, dim))
        q, k, v = grouped[..., :-2, :].flatten(2, 3), grouped[..., -2, :], grouped[..., -1, :]
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v

    def attention_output(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn.dense(attended)
        return x + self.mlp(self.post_attention_layernorm(x))


_SMALL = Phi3SmallConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=100352,
    rope_theta=1000000,
    original_max_position_embeddings=8192,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    bos_token_id=100257,
    eos_token_ids=(100257,),
    dummy_token_indices=(100256, 100258, 100259, 100260, 100264, 100265, *range(100267, 100352)),
    source_model_type="phi3small",
)
_SMALL_TINY = replace(
    _SMALL,
    hidden_size=128,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=16,
    vocab_size=256,
    rope_theta=10000.0,
    original_max_position_embeddings=256,
    max_position_embeddings=256,
    gegelu_limit=1.5,
    blocksparse_block_size=8,
    blocksparse_num_local_blocks=3,
    blocksparse_vert_stride=4,
    bos_token_id=1,
    eos_token_ids=(2,),
    dummy_token_indices=(7, 250, 251),
)

PRESETS: dict[str, Phi3SmallConfig] = {
    "phi-3-small-8k": _SMALL,
    "small-tiny": _SMALL_TINY,
    "small-tiny-longrope": replace(
        _SMALL_TINY, rope_scaling=ramp(8, 9.0), original_max_position_embeddings=32, max_position_embeddings=256
    ),
}

# Shapes whose function needs the checkpoint's factor lists: right for sizes and memory, not for logits.
SHAPES: dict[str, Phi3SmallConfig] = {"phi-3-small-128k": replace(_SMALL, max_position_embeddings=131072)}
