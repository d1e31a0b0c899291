"""config.json of phi-3-small checkpoints (model_type phi3small), to and from Phi3SmallConfig.

Keys and defaults are those of the released configuration_phi3_small.py. The ids that are masked in the logits come from
the released tokenizer's code, not from config.json; a config saved again by transformers may carry them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.models.config import Phi3SmallConfig
from phi3mobile.models.hf_config import FIXED, HARMLESS, original_context, refuse_unknown, rope_parameters, rope_scaling

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
    "bos_token_id": 100257,
    "pad_token_id": None,
}
_OTHER: dict[str, Any] = {
    "layer_norm_epsilon": 1e-5,
    "rope_embedding_base": 1000000,
    "rope_scaling": None,
    "eos_token_id": 100257,
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
    "sliding_window": (None,),
}
# attention_bias: released as false, and the released code gives every linear a bias all the same.
_HARMLESS = HARMLESS | {
    "attention_bias",
    "attention_dropout_prob",
    "embedding_dropout_prob",
    "ffn_dropout_prob",
    "reorder_and_upcast_attn",
    "pad_sequence_to_multiple_of_64",
    "blocksparse_triton_kernel_block_size",
}
# cl100k has no token 100256 and 100267 to 100275; phi-3-small never says its fim and endofprompt tokens, nor the padding.
_CL100K_DUMMIES = (100256, 100258, 100259, 100260, 100264, 100265, *range(100267, 100352))


def read_small(hf: dict[str, Any]) -> Phi3SmallConfig:
    """See Phi3Config.from_hf."""
    refuse_unknown(hf, _FIXED, _HARMLESS | _PLAIN.keys() | _OTHER.keys())
    values = {**_PLAIN, **_OTHER, **hf}
    hidden, heads, eos = values["hidden_size"], values["num_attention_heads"], values["eos_token_id"]
    if type(hidden) is not int or type(heads) is not int or heads < 1 or hidden % heads:
        raise InputError(f"config: num_attention_heads {heads!r} does not divide hidden_size {hidden!r}")
    rope = rope_parameters(values)
    if rope["rope_type"] not in ("default", "longrope"):
        raise InputError(f"config: rope type {rope['rope_type']} in rope_scaling; phi3small knows longrope and su")
    dummies = values["dummy_token_indices"]
    if dummies is None:
        dummies = _CL100K_DUMMIES if values["vocab_size"] == 100352 else ()
    if not isinstance(dummies, list | tuple):
        raise InputError(f"config: dummy_token_indices is {dummies!r}; it must be a list of ids")
    config = Phi3SmallConfig(
        **{key: values[key] for key in _PLAIN},
        intermediate_size=_intermediate_size(values),
        head_dim=hidden // heads,
        rms_norm_eps=values["layer_norm_epsilon"],
        rope_theta=values["rope_embedding_base"],
        original_max_position_embeddings=original_context(values, rope),
        dense_attention_every_n_layers=values["dense_attention_every_n_layers"] or 0,
        eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
        dummy_token_indices=tuple(dummies),
        source_model_type="phi3small",
    )
    scaling = rope_scaling(config, rope)
    return config if scaling is None else replace(config, rope_scaling=scaling)


def write_small(config: Phi3SmallConfig) -> dict[str, Any]:
    """The config.json that `read_small` reads back as `config`, with every key that its function depends on."""
    eos = list(config.eos_token_ids)
    hf = {"architectures": ["Phi3SmallForCausalLM"], "model_type": "phi3small", "hidden_act": "gegelu"}
    hf |= {key: getattr(config, key) for key in _PLAIN}
    hf |= {
        "ff_intermediate_size": config.intermediate_size,
        "layer_norm_epsilon": config.rms_norm_eps,
        "rope_embedding_base": config.rope_theta,
        "rope_position_scale": 1.0,
        "rope_scaling": None,
        "dense_attention_every_n_layers": config.dense_attention_every_n_layers,
        "blocksparse_triton_kernel_block_size": config.blocksparse_block_size,
        "eos_token_id": (eos or None) if len(eos) != 1 else eos[0],
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
