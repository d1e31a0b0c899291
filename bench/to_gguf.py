"""A checkpoint as a GGUF file for llama.cpp: the same weights, quantized by the `gguf` package, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np

from phi3mobile.bench.measure import usable_cores
from phi3mobile.files import whole_file
from phi3mobile.models.checkpoint import Checkpoint
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.tensors import ATTENTION_NORM, DOWN, EMBED, FINAL_NORM, GATE_UP, HEAD, MLP_NORM, QKV, O

Kind = gguf.GGMLQuantizationType
CHUNK_ROWS = 1 << 10


def write_gguf(
    checkpoint: Checkpoint,
    path: Path,
    kind: Kind = Kind.Q4_0,
    table_kind: Kind | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> None:
    """Write `path`: matrices as `kind`, embedding and head as `table_kind` (default: kind), norms as float32.

    Written under the architecture "llama", whose graph is the same where there is no LongRoPE and no partial rotary, and
    without a tokenizer's vocabulary. One tensor at a time is in memory. A file that is there is replaced when all is done.
    """
    config = checkpoint.config
    shapes = _shapes(config)
    kinds = {
        name: Kind.F32 if len(shape) == 1 else (table_kind or kind) if name in TABLES else kind
        for name, shape in shapes.items()
    }
    with whole_file(path) as partial:
        writer = gguf.GGUFWriter(partial, "llama")
        add_keys(writer, config)
        for name, shape in shapes.items():
            stored = _stored_shape(shape, kinds[name])
            dtype = _STORED.get(kinds[name], np.dtype(np.uint8))
            writer.add_tensor_info(name, stored, dtype, int(np.prod(stored)) * dtype.itemsize, kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with ThreadPoolExecutor(usable_cores()) as pool:
            for done, (name, tensor) in enumerate(_tensors(checkpoint)):
                progress("gguf", done, len(shapes))
                writer.write_tensor_data(_quantized(tensor, kinds[name], pool))
        writer.close()


TABLES = ("token_embd.weight", "output.weight")
_STORED = {Kind.F32: np.dtype(np.float32), Kind.F16: np.dtype(np.float16)}


def _stored_shape(shape: tuple[int, ...], kind: Kind) -> tuple[int, ...]:
    """The shape of what is written: elements, or bytes for block formats."""
    return shape if kind in _STORED else gguf.quants.quant_shape_to_byte_shape(shape, kind)


def _quantized(tensor: np.ndarray, kind: Kind, pool: ThreadPoolExecutor) -> np.ndarray:
    """By chunks of rows, so that the temporaries of the gguf package stay small, on all cores."""
    if kind in _STORED:
        return tensor.astype(_STORED[kind])
    chunks = [tensor[at : at + CHUNK_ROWS] for at in range(0, len(tensor), CHUNK_ROWS)]
    return np.concatenate(list(pool.map(lambda rows: gguf.quants.quantize(rows, kind), chunks)))


def add_keys(writer: gguf.GGUFWriter, config: DecoderConfig) -> None:
    """The metadata of the shapes that every architecture has; no vocabulary."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")


def _shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """GGUF names and [rows, columns], in the order of _tensors."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layer = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    table = (config.vocab_size, hidden)
    layers = {f"blk.{index}.{name}.weight": shape for index in range(config.num_hidden_layers) for name, shape in layer.items()}
    shapes = {"token_embd.weight": table, **layers, "output_norm.weight": (hidden,)}
    return shapes if config.tie_word_embeddings else shapes | {"output.weight": table}


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """GGUF names with float32 arrays; q and k rows interleaved as llama.cpp's rope wants them."""
    config = checkpoint.config
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def array(name: str) -> np.ndarray:
        return checkpoint.tensor(name).numpy()

    def interleaved(rows: np.ndarray, count: int) -> np.ndarray:
        return rows.reshape(count, 2, dim // 2, -1).swapaxes(1, 2).reshape(rows.shape)

    def of(role: str, layer: int | None = None) -> np.ndarray:
        return array(config.tensor(role, layer).name)

    yield "token_embd.weight", of(EMBED)
    for layer in range(config.num_hidden_layers):
        target = f"blk.{layer}."
        q, k, v = np.split(of(QKV, layer), [heads * dim, (heads + kv_heads) * dim])
        yield target + "attn_norm.weight", of(ATTENTION_NORM, layer)
        yield target + "attn_q.weight", interleaved(q, heads)
        yield target + "attn_k.weight", interleaved(k, kv_heads)
        yield target + "attn_v.weight", v
        yield target + "attn_output.weight", of(O, layer)
        yield target + "ffn_norm.weight", of(MLP_NORM, layer)
        gate, up = np.split(of(GATE_UP, layer), 2)
        yield target + "ffn_gate.weight", gate
        yield target + "ffn_up.weight", up
        yield target + "ffn_down.weight", of(DOWN, layer)
    yield "output_norm.weight", of(FINAL_NORM)
    if not config.tie_word_embeddings:
        yield "output.weight", of(HEAD)
