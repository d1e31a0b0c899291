"""A tiny GGUF model that can talk, quantized by the gguf package."""

from __future__ import annotations

import json
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
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def talking_gguf(path: Path, kind: gguf.GGMLQuantizationType, other: gguf.GGMLQuantizationType | None = None) -> Path:
    """Preset tiny-gqa with a vocabulary and ChatML; matrices of `kind`, in the second layer of `other` if given."""
    config = tiny("tiny-gqa", vocab_size=VOCAB)
    writer = gguf.GGUFWriter(path, "phi3")
    for key, value in {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.sliding_window": config.sliding_window or 0,
        "rope.dimension_count": config.rotary_dim,
        "rope.scaling.original_context_length": config.original_max_position_embeddings,
    }.items():
        writer.add_uint32(f"phi3.{key}", value)
    writer.add_float32("phi3.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32("phi3.rope.freq_base", config.rope_theta)
    _add_vocabulary(writer, path.parent)
    for name, tensor in random_tensors(config).items():
        own = other if other is not None and ".layers.1." in name else kind
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        if tensor.dim() == 1:
            writer.add_tensor(name, tensor.numpy())
        else:
            writer.add_tensor(name, gguf.quantize(tensor.numpy(), own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, folder: Path) -> None:
    write_tokenizer(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)
