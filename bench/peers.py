"""Other runtimes on the same machine, the same weights and the same work, interleaved with ours round by round."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import gguf
import numpy as np

from phi3mobile.bench.host import decode_times, fill
from phi3mobile.bench.measure import median, seconds
from phi3mobile.bundle import Bundle
from phi3mobile.engines import EngineInfo
from phi3mobile.models.weights import Checkpoint


class Peer(Protocol):
    """Enough of an Engine to be measured."""

    info: EngineInfo

    def forward(self, tokens: np.ndarray, position: int) -> np.ndarray: ...
    def close(self) -> None: ...


class LlamaCpp:
    """llama.cpp through llama-cpp-python's low-level calls: logits of the last token only, as its own tools do."""

    def __init__(self, path: Path, context: int, threads: int) -> None:
        import llama_cpp

        self._llama = llama_cpp.Llama(
            str(path), n_ctx=context, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self._library = llama_cpp
        self.info = EngineInfo(self._llama.n_vocab(), context, 512)

    def forward(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """See Engine.forward; the result is [1, V]."""
        self._llama._ctx.kv_cache_seq_rm(-1, position, -1)
        self._llama.n_tokens = position
        self._llama.eval(tokens.tolist())
        pointer = self._library.llama_get_logits(self._llama._ctx.ctx)
        return np.ctypeslib.as_array(pointer, shape=(self.info.vocab,))[None].copy()

    def close(self) -> None:
        self._llama.close()


def write_gguf(checkpoint: Checkpoint, path: Path, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q4_0) -> None:
    """The checkpoint as a GGUF without a tokenizer's vocabulary, matrices quantized by the `gguf` package.

    Written under the architecture "llama", whose graph is the same where there is no LongRoPE and no partial rotary.
    """
    config = checkpoint.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    for name, tensor in _gguf_tensors(checkpoint):
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_tensors(checkpoint: Checkpoint):
    """GGUF names with float32 arrays; q and k rows interleaved as llama.cpp's rope wants them."""
    config = checkpoint.config
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def array(name: str) -> np.ndarray:
        return checkpoint.tensor(name).float().numpy()

    def interleaved(rows: np.ndarray, count: int) -> np.ndarray:
        return rows.reshape(count, 2, dim // 2, -1).swapaxes(1, 2).reshape(rows.shape)

    yield "token_embd.weight", array("model.embed_tokens.weight")
    for layer in range(config.num_hidden_layers):
        source, target = f"model.layers.{layer}.", f"blk.{layer}."
        q, k, v = np.split(array(source + "self_attn.qkv_proj.weight"), [heads * dim, (heads + kv_heads) * dim])
        gate, up = np.split(array(source + "mlp.gate_up_proj.weight"), 2)
        yield target + "attn_norm.weight", array(source + "input_layernorm.weight")
        yield target + "attn_q.weight", interleaved(q, heads)
        yield target + "attn_k.weight", interleaved(k, kv_heads)
        yield target + "attn_v.weight", v
        yield target + "attn_output.weight", array(source + "self_attn.o_proj.weight")
        yield target + "ffn_norm.weight", array(source + "post_attention_layernorm.weight")
        yield target + "ffn_gate.weight", gate
        yield target + "ffn_up.weight", up
        yield target + "ffn_down.weight", array(source + "mlp.down_proj.weight")
    yield "output_norm.weight", array("model.norm.weight")
    if not config.tie_word_embeddings:
        yield "output.weight", array("lm_head.weight")


def missing_peers() -> list[str]:
    """Peers that are not installed, by their package's name."""
    return [name for name, module in (("llama-cpp-python", "llama_cpp"),) if importlib.util.find_spec(module) is None]


def compare(
    ours: Bundle,
    peers: dict[str, Peer],
    depths: list[int],
    rounds: int = 5,
    count: int = 32,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, dict[str, float]]:
    """Medians over interleaved rounds: prefill 128 tokens/s and decode tokens/s at each depth, per runtime."""
    runtimes: dict[str, Peer] = {"phi3mobile": ours.open_engine(), **peers}
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in runtimes}
    for turn in range(rounds):
        for name, engine in runtimes.items():
            progress(name, turn, rounds)
            prompt = min(128, engine.info.max_context)
            rate = prompt / seconds(lambda engine=engine, prompt=prompt: fill(engine, prompt))
            samples[name].setdefault("prefill_128", []).append(rate)
            for depth in depths:
                fill(engine, depth)
                times = decode_times(engine, depth, count)
                samples[name].setdefault(f"decode_{depth}", []).append(1 / median(times))
    for engine in runtimes.values():
        engine.close()
    return {name: {what: round(median(values), 1) for what, values in of.items()} for name, of in samples.items()}


def threads() -> int:
    """Threads that every runtime is given: the machine's cores."""
    return os.cpu_count() or 1
