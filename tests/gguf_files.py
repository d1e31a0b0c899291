"""GGUF files of tiny models, as a converter would write them; one of them can talk."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import gguf
from exported import CHATML, VOCAB, write_tokenizer
from tiny import random_tensors, tiny

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
F32 = gguf.GGMLQuantizationType.F32


def no_vocabulary(writer: gguf.GGUFWriter) -> None:
    writer.add_string("tokenizer.ggml.model", "none")


def write_gguf(path, config, tensors, architecture="phi3", metadata=(), kind=F32, ids=None, vocabulary=no_vocabulary):
    """A GGUF file as a converter would write it; `metadata` (key, value) pairs replace or add, value ... leaves out.

    ids: of special tokens, the same way. kind: of all matrices, or a function of a tensor's name. vocabulary(writer): adds it.
    """
    writer = gguf.GGUFWriter(path, architecture)
    values = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.rotary_dim,
        "rope.scaling.original_context_length": config.original_max_position_embeddings,
    }
    if architecture == "phi3":
        values["attention.sliding_window"] = config.sliding_window or 0
    for key, value in {**values, **dict(metadata)}.items():
        if value is ...:
            continue
        {
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
            bool: writer.add_bool,
        }[type(value)](f"{architecture}.{key}", value)
    vocabulary(writer)
    for key, value in {"bos": 1, "eos": 2, "padding": 2, **(ids or {})}.items():
        if value is not ...:
            (writer.add_uint32 if value >= 0 else writer.add_int32)(f"tokenizer.ggml.{key}_token_id", value)
    for name, tensor in tensors.items():
        own = kind(name) if callable(kind) else kind
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        data = tensor.numpy()
        if own == F32 or data.ndim == 1:
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, gguf.quantize(data, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def talking_gguf(path: Path, kind: gguf.GGMLQuantizationType, other: gguf.GGMLQuantizationType | None = None) -> Path:
    """Preset tiny-gqa with a vocabulary and ChatML; matrices of `kind`, in the second layer of `other` if given."""
    config = tiny("tiny-gqa", vocab_size=VOCAB)
    kinds = lambda name: other if other is not None and ".layers.1." in name else kind  # noqa: E731
    vocabulary = partial(_add_vocabulary, folder=path.parent)
    return write_gguf(path, config, random_tensors(config), kind=kinds, ids={"padding": ...}, vocabulary=vocabulary)


def _add_vocabulary(writer: gguf.GGUFWriter, folder: Path) -> None:
    write_tokenizer(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_chat_template(CHATML)
