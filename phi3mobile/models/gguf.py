"""What a GGUF file says of its model: metadata, RoPE factors, values. A family says how its architectures read."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from phi3mobile.errors import InputError
from phi3mobile.models.config import DecoderConfig, RopeScaling
from phi3mobile.models.finite import require_finite
from phi3mobile.models.gguf_names import special_id
from phi3mobile.models.gguf_parts import GgufFile, value_of
from phi3mobile.models.tensors import Tensor

FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight")


# Metadata without effect on the graph: what is read, a family says. Others may change it, and are refused. (The yarn_ keys
# belong to a rope scaling type that is refused; the expert_ keys to mixtures, which are.)
HARMLESS = frozenset(
    """vocab_size tensor_data_layout rope.scaling.finetuned rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
    rope.scaling.yarn_ext_factor rope.scaling.yarn_attn_factor rope.scaling.yarn_log_multiplier
    attention.layer_norm_epsilon pooling_type classifier.output_labels decoder_start_token_id leading_dense_block_count
    expert_used_count expert_feed_forward_length expert_shared_feed_forward_length expert_weights_scale
    expert_weights_norm expert_gating_func expert_group_count expert_group_used_count expert_group_scale
    interleave_moe_layer_step moe_every_n_layers""".split()  # noqa: SIM905
)
# Metadata of which only these values are the graph's.
FIXED: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.scale": (0.0,),  # 0 is how files say: as usual
    **dict.fromkeys(("logit_scale", "residual_scale", "embedding_scale"), (0.0, 1.0)),
    **dict.fromkeys(("attention.clamp_kqv", "attention.max_alibi_bias", "rope.scaling.alpha"), (0.0,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (0.0,)),
    **dict.fromkeys(("expert_shared_count", "nextn_predict_layers", "n_deepstack_layers", "attention.shared_kv_layers"), (0,)),
    "attention.sliding_window_pattern": (1,),
    "use_parallel_residual": (False,),
    "hidden_activation": ("silu", "swish"),
}


@dataclass(frozen=True)
class Metadata:
    """What a file says of its model, without the architecture before each key."""

    path: Path
    architecture: str
    reader: gguf.GGUFReader
    tensors: dict[str, gguf.ReaderTensor]

    @cached_property
    def values(self) -> dict[str, Any]:
        prefix = self.architecture + "."
        keys = [key for key in self.reader.fields if key.startswith(prefix)]
        return {key.removeprefix(prefix): value_of(self.path, self.reader, key) for key in keys}

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number above 0, which may be given once for each layer."""
        value = given = self.values.get(key, default)
        if isinstance(given, list) and len({*map(str, given)}) == 1 and len(given) == self.values.get("block_count"):
            value = given[0]
        if type(value) is not int or value < 1:
            name = f"{self.architecture}.{key}"
            raise InputError(f"{self.path}: metadata {name} is {given!r}; it must be one whole number above 0")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if type(value) is not float or not 0 < value < float("inf"):
            raise InputError(f"{self.path}: metadata {self.architecture}.{key} is {value!r}; it must be a number above 0")
        return _short(value)

    def token(self, which: str) -> int | None:
        """The id of a special token ("bos", "eos", "padding"); None if the file names none that the model has."""
        value, model = (value_of(self.path, self.reader, f"tokenizer.ggml.{key}") for key in (f"{which}_token_id", "model"))
        return special_id(value, model, which, self.rows("token_embd.weight"))

    def has(self, name: str) -> bool:
        return name in self.tensors

    def rows(self, name: str) -> int:
        """Rows of a matrix of the file."""
        if name not in self.tensors:
            raise InputError(f"{self.path}: tensor {name} is missing")
        return int(self.tensors[name].shape[-1])

    def vector(self, name: str) -> tuple[float, ...]:
        """A tensor's values, as short decimals. InputError for one that is NaN or infinite."""
        values = dequantized(self.path, self.tensors[name], self.tensors[name].data).ravel()
        require_finite(name, torch.from_numpy(np.array(values)), self.path)
        return tuple(_short(value) for value in values)


@dataclass(frozen=True)
class GgufLayout:
    """How files of one architecture hold a family's model."""

    keys: frozenset[str]  # metadata that is read
    parts: Callable[[str, Tensor, Container[str]], list[str]]  # architecture, ours, the file's names -> its names, in row order
    config: Callable[[Metadata], DecoderConfig]
    interleaved: tuple[str, ...] = ()  # names end so: rows are pairs (0, 1), (2, 3) ... for RoPE, not halves


def metadata_of(file: GgufFile, architecture: str, layout: GgufLayout) -> Metadata:
    """InputError for a key that is not known, or of which the graph knows another value only."""
    given = Metadata(file.path, architecture, file.reader, file.tensors)
    for key, value in given.values.items():
        if key in FIXED and value not in FIXED[key]:
            allowed = " or ".join(map(repr, FIXED[key]))
            raise InputError(f"{file.path}: metadata {architecture}.{key} is {value!r}; this graph allows {allowed} only")
    if unknown := sorted(given.values.keys() - layout.keys - HARMLESS - FIXED.keys()):
        value = str(given.values[unknown[0]])[:80]
        raise InputError(f"{file.path}: unknown metadata {architecture}.{unknown[0]} = {value!r}; it may change the model")
    return given


def dequantized(path: Path, tensor: gguf.ReaderTensor, data: np.ndarray) -> np.ndarray:
    try:
        return gguf.dequantize(data, tensor.tensor_type)
    except (NotImplementedError, ValueError) as error:
        kind = tensor.tensor_type.name
        raise InputError(f"{path}: {tensor.name} is stored as {kind}, which can't be dequantized ({error})") from None


def _short(value: Any) -> float:
    """The shortest decimal that gives this float32, as the original config.json had it."""
    return float(str(np.float32(value)))


def gguf_shape(given: Metadata) -> dict[str, Any]:
    """The fields of DecoderConfig that every architecture's metadata has alike; no rope scaling: see gguf_rope_scaling."""
    heads, hidden, eos = given.whole("attention.head_count"), given.whole("embedding_length"), given.token("eos")
    return {
        "hidden_size": hidden,
        "num_hidden_layers": given.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": given.whole("attention.head_count_kv", heads),
        "head_dim": given.whole("attention.key_length", hidden // heads),
        "vocab_size": given.rows("token_embd.weight"),
        "rms_norm_eps": given.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": given.number("rope.freq_base", 10000.0),
        "max_position_embeddings": (context := given.whole("context_length")),
        "original_max_position_embeddings": given.whole("rope.scaling.original_context_length", context),
        "sliding_window": given.values.get("attention.sliding_window") or None,  # 0 is how phi-4-mini files say none
        "tie_word_embeddings": not given.has("output.weight"),
        "bos_token_id": given.token("bos"),
        "eos_token_ids": () if eos is None else (eos,),
        "pad_token_id": given.token("padding"),
    }


def gguf_rope_scaling(given: Metadata, config: DecoderConfig) -> RopeScaling | None:
    """LongRoPE's lists of factors, Llama 3's divisors, or linear scaling, from tensors and metadata.

    As llama.cpp reads them: a type left out is linear, the factor has an older name, 0 means none, and it and attn_factor (on
    cos and sin) count beside factors in tensors as well.
    """
    path, kind = given.path, given.values.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "longrope"):
        raise InputError(f"{path}: rope scaling of type {kind!r}; known are none, linear, longrope")
    scale = next((key for key in ("rope.scaling.factor", "rope.scale_linear") if key in given.values), None)
    factor = given.number(scale) if scale and given.values[scale] != 0 and kind != "none" else 1.0
    mscale = given.number("rope.scaling.attn_factor") if "rope.scaling.attn_factor" in given.values else None
    if given.has("rope_freqs.weight"):  # llama 3: divisors of the frequencies, at every length
        divisors = _scaled(given.vector("rope_freqs.weight"), factor)
        return RopeScaling(divisors, divisors, mscale or 1.0, mscale or 1.0)
    if given_lists := [name for name in FACTORS[:2] if given.has(name)]:
        if len(given_lists) == 1:
            raise InputError(f"{path} has {given_lists[0]} and not the other list of rope factors; both are needed")
        short, long = (_scaled(given.vector(f"rope_factors_{which}.weight"), factor) for which in ("short", "long"))
        scaling = RopeScaling(short, long)
        derived = replace(config, rope_scaling=scaling).mscales[0]
        return scaling if mscale is None or abs(mscale - derived) < 1e-6 else RopeScaling(short, long, mscale, mscale)
    if kind == "longrope":
        raise InputError(f"{path}: rope scaling is longrope and the tensors {', '.join(FACTORS[:2])} are missing")
    if (factor, mscale or 1.0) != (1.0, 1.0):
        divisors = (factor,) * (config.rotary_dim // 2)
        return RopeScaling(divisors, divisors, mscale or 1.0, mscale or 1.0)
    return None


def _scaled(factors: tuple[float, ...], by: float) -> tuple[float, ...]:
    return factors if by == 1.0 else tuple(factor * by for factor in factors)
