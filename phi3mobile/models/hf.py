"""What configs of several families share when a config.json is read: RoPE values in either layout, windows, head sizes.

Scaled RoPE variants of Llama become LongRoPE factor lists whose short and long lists agree.
"""

from __future__ import annotations

import math
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.models.config import DecoderConfig, RopeScaling, derived_mscale

_ROPE_KEYS: dict[str, set[str]] = {
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
    "dynamic": {"factor"},  # which counts past max_position_embeddings only, where no context of ours goes
}
# Of these only some types read the values: no error in the others.
_UNREAD = {"original_max_position_embeddings", "attention_factor", "finetuned"}
# What may stand beside the rope values as well, or in one of two dicts only.
_BESIDE = {"rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}


def first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def rope_parameters(values: dict[str, Any]) -> dict[str, Any]:
    """The one dict of RoPE values, with `rope_type` settled, from rope_scaling (transformers 4), rope_parameters (5) or both.

    InputError for an unknown type or key, and where the two do not agree.
    """
    given = [_settled(key, values[key]) for key in ("rope_scaling", "rope_parameters") if values.get(key) not in (None, {})]
    if len(given) == 2:
        one, other = given
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key) and not (key in _BESIDE and None in (one.get(key), other.get(key))):
                raise InputError(
                    f"config: rope_scaling and rope_parameters differ in {key} ({_short(one.get(key))} and "
                    f"{_short(other.get(key))}); keep one of them"
                )
        return one | other
    return given[0] if given else {"rope_type": "default"}


def _settled(where: str, rope: Any) -> dict[str, Any]:
    """RoPE values without nulls, with one name for their type."""
    if not isinstance(rope, dict):
        raise InputError(f"config: {where} is {rope!r}; it must be an object or null")
    rope = {key: value for key, value in rope.items() if value is not None}
    if rope and all(isinstance(value, dict) for value in rope.values()):  # by kind of layer
        each = {kind: _settled(f"{where}.{kind}", value) for kind, value in rope.items()}
        if any(one != other for one in each.values() for other in each.values()):
            raise InputError(f"config: {where} differs for {' and '.join(each)}; this graph has one rope for all layers")
        return next(iter(each.values()))
    kinds = ["longrope" if rope[key] == "su" else rope[key] for key in ("rope_type", "type") if key in rope]  # its first name
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        raise InputError(f"config: {where} has rope_type {kinds[0]!r} and type {kinds[1]!r}; they must agree")
    kind = kinds[0] if kinds else "default"
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise InputError(f"config: rope type {kind!r} in {where}; known are {', '.join(_ROPE_KEYS)} and su")
    read = {"rope_theta", "partial_rotary_factor"} | _ROPE_KEYS[kind]
    if unknown := sorted(rope.keys() - read - _UNREAD - {"type", "rope_type"}):
        raise InputError(f"config: {where} of type {kind} has unknown keys {', '.join(unknown)}")
    return {key: value for key, value in rope.items() if key in read} | {"rope_type": kind}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"{text[:36]} ..."


def agreed(values: dict[str, Any], rope: dict[str, Any], key: str) -> Any:
    """A value that may stand at the top of the config and among the rope values; InputError if both are there and differ."""
    top, inner = values.get(key), rope.get(key)
    if None not in (top, inner) and top != inner:
        raise InputError(f"config: {key} is {top!r} and, in the rope values, {inner!r}; they must agree")
    return first(top, inner)


def sliding_window(values: dict[str, Any]) -> Any:
    """sliding_window, once for all layers. InputError where layer_types or Qwen's switches say something else."""
    window, longest = values.get("sliding_window"), values.get("max_position_embeddings")
    effective = window is not None and not (type(window) is type(longest) is int and window >= longest)
    if effective and values.get("use_sliding_window") is False:
        raise InputError(f"config: use_sliding_window is False and sliding_window {window!r}; set sliding_window to null")
    if effective and values.get("use_sliding_window") and values.get("max_window_layers"):
        raise InputError(f"config: max_window_layers is {values['max_window_layers']!r}; here one window is for all layers")
    refuse_layer_types(values, "sliding_attention" if effective else "full_attention")
    return window


def refuse_layer_types(values: dict[str, Any], *allowed: str) -> None:
    """InputError if layer_types has others than these."""
    kinds = values.get("layer_types")
    if kinds is not None and not (isinstance(kinds, list) and all(kind in allowed for kind in kinds)):
        raise InputError(f"config: layer_types is {_short(kinds)}; this graph allows {' or '.join(allowed)} in all layers only")


def head_size(hidden: Any, heads: Any) -> int:
    """hidden_size / num_attention_heads; InputError where that is no whole number."""
    if type(hidden) is not int or type(heads) is not int or heads < 1 or hidden % heads:
        raise InputError(f"config: num_attention_heads {heads!r} does not divide hidden_size {hidden!r}")
    return hidden // heads


def eos_value(ids: tuple[int, ...]) -> int | list[int] | None:
    """The ids as config.json has them."""
    return (list(ids) or None) if len(ids) != 1 else ids[0]


def original_context(values: dict[str, Any], rope: dict[str, Any]) -> int:
    """Positions that the model was first trained on; where no rope values depend on it, as stated, or all positions."""
    stated: int | None = agreed(values, rope, "original_max_position_embeddings")
    if rope["rope_type"] in ("longrope", "llama3") and stated is None:
        raise InputError(f"config: rope type {rope['rope_type']} needs original_max_position_embeddings")
    return stated or values["max_position_embeddings"]


def _number(rope: dict[str, Any], key: str) -> float:
    value: Any = rope.get(key)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise InputError(f"config: rope type {rope['rope_type']} needs {key}, a number above 0; it is {value!r}")
    return float(value)


def rope_scaling(config: DecoderConfig, rope: dict[str, Any]) -> RopeScaling | None:
    """LongRoPE as given; linear and llama3 scaling as the factor list, with mscale 1, of the same frequencies."""
    kind = rope["rope_type"]
    if kind in ("default", "dynamic"):
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
