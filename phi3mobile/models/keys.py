"""What the keys of the hub's config.json files mean here, in one table: harmless, fixed (one value is the graph's), or read.

What is read, a family lists (its MODEL_TYPES' own keys). Any other key is refused by its name, as it may change the function.
Sources: configs of Phi-3, phi-3-small, phi-4-mini, Llama, Mistral, Qwen2 and SmolLM2 repositories and of conversions of these;
the configuration classes of transformers 4 and 5.
"""

from __future__ import annotations

from typing import Any

from phi3mobile.errors import InputError

# Without effect on inference, whatever the value.
_HARMLESS = {
    "what the folder is and who wrote it": """model_type architectures auto_map custom_pipelines transformers_version
        transformers.js_config _name_or_path name_or_path base_model_name_or_path model_name _commit_hash is_llama_config
        unsloth_version unsloth_fixed is_composition base_model_tp_plan base_model_pp_plan base_model_ep_plan
        export_model_type _from_model_config license""",
    "how others compute it": """torch_dtype dtype bf16 fp16 fp32 use_cache pretraining_tp attn_implementation
        _attn_implementation _attn_implementation_internal _attn_implementation_autoset _experts_implementation
        experts_implementation _flash_attn_2_enabled flash_attn use_flash_attn use_flash_attention attn_impl softmax_in_fp32
        onnx_safe torchscript use_bfloat16 chunk_size_feed_forward return_dict output_hidden_states output_attentions
        output_past tie_last_hidden_states keys_to_ignore_at_inference ignore_keys_at_rope_validation""",
    "training": """initializer_range gradient_checkpointing layerdrop z_loss_weight tf_legacy_loss finetuning_task
        task_specific_params problem_type id2label label2id num_labels max_grad_norm batch_size""",
    # max_position_embeddings is what counts, and in Llama's class has a default
    "lengths that no layer reads": """max_sequence_length max_seq_length max_seq_len max_sequence_len sequence_length
        seq_length seq_len model_max_length tokenizer_model_max_length max_context_length n_ctx""",
    # the tokenizer's own files say what it adds and where a turn ends
    "tokenizer": """tokenizer_class tokenizer_name prefix sep_token_id cls_token_id mask_token_id unk_token_id
        eot_token_id eom_token_id end_token_id decoder_start_token_id padding_side tokenizer_padding_side""",
    # generation_config.json's keys, which transformers 4 took from config.json as well; stop ids are read
    "generation": """max_length min_length max_new_tokens min_new_tokens max_time stop_strings do_sample early_stopping
        num_beams num_beam_groups diversity_penalty temperature top_k top_p top_h min_p typical_p epsilon_cutoff eta_cutoff
        repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
        bad_words_ids force_words_ids sequence_bias constraints num_return_sequences renormalize_logits
        forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
        begin_suppress_tokens token_healing guidance_scale low_memory penalty_alpha dola_layers watermarking_config
        output_scores output_logits return_dict_in_generate cache_implementation cache_config max_cache_len
        prefill_chunk_size compile_config disable_compile continuous_batching_config is_assistant num_assistant_tokens
        num_assistant_tokens_schedule assistant_confidence_threshold assistant_early_exit assistant_lookbehind
        assistant_ensemble_weight target_lookbehind prompt_lookup_num_tokens max_matching_ngram_size speculation_type
        use_mtp""",
}
HARMLESS = frozenset(name for names in _HARMLESS.values() for name in names.split())
# So end the names of what is dropped in training: attention_dropout, resid_pdrop, hidden_dropout_prob ...
_DROPPED = ("dropout", "pdrop", "dropout_prob", "drop_prob", "dropout_p")

# Would change the maths: only these values are the graph's.
_OFF = (False, None)
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("swish", "silu"),
    "hidden_activation": ("swish", "silu", None),
    **dict.fromkeys(
        """attention_bias attention_in_bias attention_out_bias attn_bias qkv_bias use_qkv_bias o_proj_bias mlp_bias
        lm_head_bias use_bias bias""".split(),  # noqa: SIM905
        _OFF,
    ),
    "no_bias": (True, None),
    **dict.fromkeys("qk_norm qk_layernorm use_qk_norm use_mup use_mrope use_logn_attn use_dynamic_ntk".split(), _OFF),  # noqa: SIM905
    **dict.fromkeys("alibi use_parallel_residual parallel_attn use_bidirectional_attention".split(), _OFF),  # noqa: SIM905
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "attention_chunk_size": (None,),
    "logit_scale": (1, None),
    "logits_scaling": (1, None),
    "residual_multiplier": (1, None),
    "embedding_multiplier": (1, None),
    "rope_interleaved": _OFF,
    "rotary_pct": (1, None),
    "full_attn_mod": (1,),
    "interpolate_factor": (1,),
    "no_rope_layers": (None, []),
    "num_local_experts": (0, None),
    "num_experts": (0, None),
    "per_layer_config": (None, {}),
    "is_encoder_decoder": _OFF,
    "is_decoder": (False, True, None),
    "add_cross_attention": _OFF,
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": _OFF,
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "quantization": (None,),
}


def refuse_unknown(hf: dict[str, Any], fixed: dict[str, tuple[Any, ...]], known: frozenset[str]) -> None:
    """InputError for a key that is not known, and for one of `fixed` with another value than the graph's."""
    for key, value in hf.items():
        if key in fixed and value not in fixed[key]:
            allowed = " or ".join(map(repr, fixed[key]))
            raise InputError(f"config: {key} is {value!r}; this graph allows {allowed} only")
        if key not in fixed and key not in known and not key.endswith(_DROPPED):
            raise InputError(f"config: unknown key {key!r} ({value!r}); remove it if it does not change the model")


def token_id(value: Any, vocab: Any) -> Any:
    """The id, or null where no token has it: -1 is a way to say none, and an id past the vocabulary is never seen or said.

    What is no whole number is left as it is, for the config to refuse.
    """
    outside = type(value) is int and type(vocab) is int and not 0 <= value < vocab
    return None if outside else value


def stop_ids(eos: Any) -> tuple[Any, ...]:
    """eos_token_id, which may be null, one id or a list, less what says none (null and -1).

    An id past the vocabulary stays, for the config to refuse: no answer would ever stop there.
    """
    given = eos if isinstance(eos, list) else [eos]
    return tuple(one for one in given if one is not None and not (type(one) is int and one < 0))
