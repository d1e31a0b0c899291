"""Speed of a bundle on this machine: prefill, TTFT, decode at several depths, load, memory.

Prefill is bound by arithmetic, decode by reading the weights (and the KV cache) once per token: bytes read x tokens/s is
printed beside tokens/s.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from phi3mobile.bench.measure import median, memory_now, percentile, seconds
from phi3mobile.bundle import Bundle, open_bundle
from phi3mobile.engines import Engine

DEPTHS = (128, 1024, 1792, 4096)


def fill(engine: Engine, depth: int, seed: int = 0) -> None:
    """Prefill `depth` random tokens from position 0."""
    tokens = np.random.default_rng(seed).integers(0, engine.info.vocab, depth)
    for start in range(0, depth, engine.info.max_chunk):
        engine.forward(tokens[start : start + engine.info.max_chunk], start)


def decode_times(engine: Engine, depth: int, count: int) -> list[float]:
    """Seconds of each of `count` one-token forwards, greedy, after `depth` tokens."""
    token, times = np.zeros(1, dtype=np.int64), []
    for step in range(count):

        def one(position: int = depth + step) -> None:
            token[0] = int(np.argmax(engine.forward(token, position)[-1]))

        times.append(seconds(one))
    return times


def measure(path: str | Path, rounds: int = 3, count: int = 32, progress: Callable[[str, int, int], None] | None = None):
    """All figures of one bundle as a dict for the JSON line; medians over rounds."""
    progress = progress or (lambda stage, done, total: None)
    bundle = open_bundle(path)
    before = memory_now()
    engine = bundle.open_engine()
    context, weights = bundle.info.max_context, decode_bytes(bundle)
    depths = [depth for depth in DEPTHS if depth + count <= context] or [max(1, context - count - 1)]
    prompt = min(128, context - count)
    result: dict[str, object] = {
        "bundle": str(path), "recipe": bundle.manifest["recipe"]["name"], "file_bytes": bundle.program.stat().st_size,
        "load_s": round(engine.load_s, 3), "rounds": rounds,
    }  # fmt: skip
    prefill, ttft = [], []
    decode: dict[int, list[float]] = {depth: [] for depth in depths}
    for turn in range(rounds):
        progress("rounds", turn, rounds)
        prefill.append(prompt / seconds(lambda: fill(engine, prompt)))
        ttft.append(prompt / prefill[-1] + decode_times(engine, prompt, 1)[0])
        for depth in depths:
            fill(engine, depth)
            decode[depth] += decode_times(engine, depth, count)
    after = memory_now()
    kv = bundle.manifest["memory"]["kv_per_token"]
    result |= {
        f"prefill_{prompt}_tokens_per_s": round(median(prefill), 1),
        f"ttft_{prompt}_s": round(median(ttft), 4),
        "decode": {
            str(depth): {
                "tokens_per_s": round(1 / median(times), 1),
                "p50_ms": round(percentile(times, 50) * 1e3, 3),
                "p95_ms": round(percentile(times, 95) * 1e3, 3),
                "GB_per_s": round((weights + kv * depth) / median(times) / 1e9, 2),
            }
            for depth, times in decode.items()
        },
        "anonymous_bytes": after.anonymous - before.anonymous,
        "peak_bytes": after.peak,
    }
    engine.close()
    return result


def decode_bytes(bundle: Bundle) -> int:
    """Weight bytes that one decoded token reads: all but the embedding table, of which it reads one row."""
    recipe, model = bundle.manifest["recipe"], bundle.manifest["model"]
    table = model["vocab"] * model["hidden"] * recipe["embedding_bits"] // 8
    return bundle.manifest["memory"]["weights"] - table
