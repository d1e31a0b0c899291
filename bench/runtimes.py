"""The runtimes that a worker can load, each behind the same small class. Nothing is imported before it is used.

__init__(path, context, threads)
vocab, chunk: width of the logits; most tokens of one forward
forward(tokens, position) -> float32 [V]: logits of the last token; rows of the KV cache from `position` on are forgotten
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.registry import open_engine, open_tower
from phi3mobile.engines.tower import Tower
from phi3mobile.models.vision import SIDE
from phi3mobile.session.decoding import Rows


class Ours:
    """A bundle, opened and verified as every user does it."""

    def __init__(self, path: Path, context: int, threads: int) -> None:
        self._bundle, self._threads = open_bundle(path), threads
        self._engine = open_engine(self._bundle, threads)
        self._rows, info = Rows(self._engine), self._engine.info
        self.vocab, self.chunk = info.vocab, info.max_chunk
        self._tower: Tower | None = None  # opened for the first picture

    def forward(self, tokens: list[int], position: int) -> np.ndarray:
        if not self._rows.reaches(position):
            past = self._rows.tokens[:position]
            for at in range(0, position, self.chunk):
                self._rows.prefill(past[at : at + self.chunk], at, False)
        return self._rows.prefill(tokens, position, False)[0]

    def picture(self, tokens: int, views: int) -> dict[str, float]:
        """Seconds of one view, of all views and the projector, of prefilling `tokens` rows, and of the first greedy token after
        them; values are drawn, for time does not depend on them. The cache is filled from position 0."""
        if self._tower is None:
            self._tower = open_tower(self._bundle, self._threads)
            self._tower.encode(np.zeros((3, SIDE, SIDE), np.float32))  # loads
        tower, info, draw = self._tower, self._engine.info, np.random.default_rng(0).standard_normal
        view, merged = draw((3, SIDE, SIDE), np.float32), draw((tokens, len(tower.separators[0])), np.float32)
        long = info.original_context is not None and tokens > info.original_context
        start = time.perf_counter()
        for _ in range(views):
            tower.encode(view)
        encoded = time.perf_counter() - start
        rows = tower.project(merged)
        seen = time.perf_counter() - start
        for at in range(0, tokens, self.chunk):
            last = self._engine.prefill_embeddings(rows[at : at + self.chunk], at, long)
        last.argmax()
        first = time.perf_counter() - start
        return {"view_s": encoded / views, "tower_s": seen, "prefill_s": first - seen, "ttft_s": first}


class LlamaCpp:
    """llama.cpp through llama-cpp-python, in batches of 512 with logits of the last token only, as its own tools do."""

    def __init__(self, path: Path, context: int, threads: int) -> None:
        import llama_cpp

        self.chunk = min(512, context)
        self._llama = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=self.chunk,
            n_ubatch=self.chunk,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=True,
            verbose=False,  # what its own tools choose, and the faster way here
        )
        self._get_logits, self.vocab = llama_cpp.llama_get_logits, self._llama.n_vocab()

    def forward(self, tokens: list[int], position: int) -> np.ndarray:
        self._llama.n_tokens = position  # eval drops the rows from here on
        self._llama.eval(tokens)
        return np.ctypeslib.as_array(self._get_logits(self._llama._ctx.ctx), shape=(self.vocab,))


class OnnxGenai:
    """onnxruntime-genai's Generator on a folder of its model builder."""

    def __init__(self, path: Path, context: int, threads: int) -> None:
        import onnxruntime_genai as genai

        config = genai.Config(str(path))
        decoder = {"session_options": {"intra_op_num_threads": threads}}
        if window := json.loads((path / "genai_config.json").read_text())["model"]["decoder"].get("sliding_window"):
            # Room for every position: the operator that 0.18 calls refuses a cache that only holds the window once it is full.
            decoder["sliding_window"] = {**window, "cache_slack": context}
        config.overlay(json.dumps({"model": {"decoder": decoder}}))
        self._model = genai.Model(config)
        parameters = genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=context, do_sample=False, batch_size=1)
        self._generator = genai.Generator(self._model, parameters)
        self.vocab, self.chunk = json.loads((path / "genai_config.json").read_text())["model"]["vocab_size"], 512

    def forward(self, tokens: list[int], position: int) -> np.ndarray:
        """append_tokens of one token runs the same step as generate_next_token, and lets us choose the token."""
        if self._generator.token_count() != position:
            self._generator.rewind_to(position)
        self._generator.append_tokens(np.asarray(tokens, np.int32))
        return self._generator.get_logits()[0, -1]


RUNTIMES = {"phi3mobile": Ours, "llama.cpp": LlamaCpp, "onnxruntime-genai": OnnxGenai}
