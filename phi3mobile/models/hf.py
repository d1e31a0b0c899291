"""What configs of several families share when a config.json is read: known keys, RoPE values in either layout, refusals.

Scaled RoPE variants of Llama become LongRoPE factor lists whose short and long lists agree. Unknown keys are errors.
"""

from __future__ import annotations

import math
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.models.config import DecoderConfig, RopeScaling, derived_mscale

# Keys that would change the maths: only these values are the graph's.
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "lm_head_bias": (False,),
    "quantization_config": (None,),
    "rope_interleaved": (False,),
    "full_attn_mod": (1,),
    "interpolate_factor": (1,),
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
    "pruned_heads": ({}, None),
    "cross_attention_hidden_size": (None,),
    "layer_types": (None,),
    "tie_encoder_decoder": (False,),
}

# Keys without effect on inference: bookkeeping, training, and what transformers 4 and 5 write for every model.
HARMLESS = frozenset(
    """model_type architectures auto_map torch_dtype dtype transformers_version use_cache initializer_range
    attention_dropout resid_pdrop embd_pdrop hidden_dropout pretraining_tp is_llama_config transformers.js_config
    _name_or_path name_or_path attn_implementation _attn_implementation _attn_implementation_autoset unsloth_version
    unsloth_fixed model_name return_dict return_dict_in_generate output_hidden_states output_attentions output_scores
    torchscript use_bfloat16 tf_legacy_loss id2label label2id problem_type chunk_size_feed_forward finetuning_task
    task_specific_params tokenizer_class prefix sep_token_id decoder_start_token_id max_length min_length do_sample
    early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens""".split()  # noqa: SIM905
)
_ROPE_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "longrope": {
        "short_factor",
        "long_factor",
        "short_mscale",
        "long_mscale",
        "attention_factor",
        "factor",
        "original_max_position_embeddings",
    },
}


def refuse_unknown(hf: dict[str, Any], fixed: dict[str, tuple[Any, ...]], known: frozenset[str]) -> None:
    """InputError for a key that is not known, and for one of `fixed` with another value than the graph's."""
    for key, value in hf.items():
        if key in fixed and value not in fixed[key]:
            allowed = " or ".join(map(repr, fixed[key]))
            raise InputError(f"config: {key} is {value!r}; this graph allows {allowed} only")
        if key not in fixed and key not in known:
            raise InputError(f"config: unknown key {key!r} ({value!r}); remove it if it does not change the model")


def first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def rope_parameters(values: dict[str, Any]) -> dict[str, Any]:
    """The one dict of RoPE values, with `rope_type` settled, from either layout."""
    given = [key for key in ("rope_scaling", "rope_parameters") if values.get(key) is not None]
    if len(given) == 2 and values["rope_scaling"] != values["rope_parameters"]:
        raise InputError("config: rope_scaling and rope_parameters are both given and differ; keep one")
    rope = values[given[0]] if given else {}
    if not isinstance(rope, dict):
        raise InputError(f"config: {given[0]} is {rope!r}; it must be an object or null")
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = "longrope" if kind == "su" else kind  # the first name of the same function
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise InputError(f"config: rope type {kind!r} in {given[0]}; known are {', '.join(_ROPE_KEYS)} and su")
    known = {"type", "rope_type", "rope_theta", "partial_rotary_factor"} | _ROPE_KEYS[kind]
    if unknown := sorted(set(rope) - known):
        raise InputError(f"config: {given[0]} of type {kind} has unknown keys {', '.join(unknown)}")
    return {**{key: value for key, value in rope.items() if value is not None}, "rope_type": kind}


def stop_ids(eos: Any) -> tuple[int, ...]:
    """config.json's eos_token_id, which may be null, one id or a list."""
    return () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)


def head_size(hidden: Any, heads: Any) -> int:
    """hidden_size / num_attention_heads; InputError where that is no whole number."""
    if type(hidden) is not int or type(heads) is not int or heads < 1 or hidden % heads:
        raise InputError(f"config: num_attention_heads {heads!r} does not divide hidden_size {hidden!r}")
    return hidden // heads


def eos_value(ids: tuple[int, ...]) -> int | list[int] | None:
    """The ids as config.json has them."""
    return (list(ids) or None) if len(ids) != 1 else ids[0]


def original_context(values: dict[str, Any], rope: dict[str, Any]) -> int:
    top, inner = values.get("original_max_position_embeddings"), rope.get("original_max_position_embeddings")
    if rope["rope_type"] == "longrope" and None not in (top, inner) and top != inner:
        raise InputError(f"config: original_max_position_embeddings is {top} and, in the rope values, {inner}; they must agree")
    if rope["rope_type"] in ("longrope", "llama3") and (top or inner) is None:
        raise InputError(f"config: rope type {rope['rope_type']} needs original_max_position_embeddings")
    stated: int | None = (inner or top) if rope["rope_type"] == "llama3" else (top or inner)
    return stated or values["max_position_embeddings"]


def _number(rope: dict[str, Any], key: str) -> float:
    value: Any = rope.get(key)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise InputError(f"config: rope type {rope['rope_type']} needs {key}, a number above 0; it is {value!r}")
    return float(value)


def rope_scaling(config: DecoderConfig, rope: dict[str, Any]) -> RopeScaling | None:
    """LongRoPE as given; linear and llama3 scaling as the factor list, with mscale 1, of the same frequencies."""
    kind = rope["rope_type"]
    if kind == "default":
        return None
    if kind == "longrope":
        for key in ("short_factor", "long_factor"):
            if not isinstance(rope.get(key), list):
                raise InputError(f"config: rope type longrope needs the list {key}; it is {rope.get(key)!r}")
        mscale = rope.get("attention_factor")
        if mscale is None and "factor" in rope:
            mscale = derived_mscale(_number(rope, "factor"), config.original_max_position_embeddings)
        return RopeScaling(
            tuple(rope["short_factor"]),
            tuple(rope["long_factor"]),
            rope.get("short_mscale", mscale),
            rope.get("long_mscale", mscale),
        )
    factor = _number(rope, "factor")
    factors = (factor,) * (config.rotary_dim // 2)
    if kind == "llama3":
        low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
        if high <= low:
            raise InputError(f"config: high_freq_factor {high} must be above low_freq_factor {low}")
        turns = [
            config.original_max_position_embeddings / (2 * math.pi * config.rope_theta ** (2 * i / config.rotary_dim))
            for i in range(config.rotary_dim // 2)
        ]  # of each dimension over the original context: slow ones are stretched, fast ones kept, with a ramp between
        ramps = [min(max((turn - low) / (high - low), 0.0), 1.0) for turn in turns]
        factors = tuple(1 / ((1 - ramp) / factor + ramp) for ramp in ramps)
    return RopeScaling(factors, factors, 1.0, 1.0)
