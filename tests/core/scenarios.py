"""Conversations as data, and the engine they run on, simple enough to be written again in any language.

A scenario is a small model (`engine`), a chat format's limits, and steps: requests of p3m_session_start, some cancelled after
so many pieces of text, or a reset. `play` runs one on anything that answers requests; the answers of two players are the same
to the token, or one of them is wrong. tests/vectors/sessions.json holds some with what they must give.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from phi3mobile.info import EngineInfo
from phi3mobile.text.byte_level import byte_level_alphabet
from phi3mobile.text.chat import KNOWN_TEMPLATES, ChatFormat

SPECIAL = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
MERGES = ("t h", "th e", "i n", "e r", "Ġ the", "a n", "an d", "Ġ and", "r e", "Ġ a", "o n", "1 2", "Ã ©", "1 3", "\\ n")
_MASK = (1 << 64) - 1


def mixed(value: int) -> int:
    """splitmix64's finalizer of an unsigned 64-bit number."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


@dataclass
class ChainEngine:
    """A row is a hash of its token, its place, its LongRoPE regime and the row before it as it really lies in the cache.

    state[i] = mixed(state[i-1] ^ token * K1 + i * K2 + long * K3 + seed), state[-1] = 0; all modulo 2^64.
    logits[v] = (mixed(state + v * K1) >> 40) / 2^20, and `habit` more where v = (5 * token + seed) % vocab or one above it.
    `calls`: what was asked, (position, tokens, long) of every forward.
    """

    vocab: int
    seed: int = 0
    max_context: int = 96
    max_chunk: int = 7
    original_context: int | None = None
    back: int | None = None
    habit: int = 8
    calls: list[tuple[int, tuple[int, ...], bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.info = EngineInfo(self.vocab, self.max_context, self.max_chunk, self.original_context, self.back)
        self._ids = np.arange(self.vocab, dtype=np.uint64)
        self.reset()

    def forward(self, tokens: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        return self._run(tokens.tolist(), position, long)

    def _run(self, tokens: list[int], position: int, long: bool) -> np.ndarray:
        end = position + len(tokens)
        assert 1 <= len(tokens) <= self.max_chunk and position >= 0 and end <= self.max_context
        assert position <= self._known, "reads rows that were never written"
        self._farthest = self._farthest if position else 0
        assert self.back is None or self._farthest - position <= self.back, "rows before it were evicted"
        self._farthest, self._known = max(self._farthest, end), end
        long = long or (self.original_context is not None and end > self.original_context)
        self.calls.append((position, tuple(tokens), long))
        logits = np.empty((len(tokens), self.vocab), np.float32)
        for row, token in enumerate(tokens):
            at = position + row
            before = self._states[at - 1] if at else 0
            fed = token * 0x9E3779B97F4A7C15 + at * 0xC2B2AE3D27D4EB4F + long * 0x165667B19E3779F9 + self.seed
            self._states[at] = state = mixed(before ^ fed & _MASK)
            drawn = _mixed(np.uint64(state) + self._ids * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
            logits[row] = drawn.astype(np.float32) / np.float32(1 << 20)
            for likely in range(2):
                logits[row, (5 * token + self.seed + likely) % self.vocab] += np.float32(self.habit)
        return logits

    def reset(self) -> None:
        self._states, self._farthest, self._known = [0] * self.max_context, 0, 0

    def close(self) -> None:
        pass


def tokenizer_json() -> dict[str, Any]:
    """A byte-level BPE of a few merges, and the control tokens of Phi-3's chat format."""
    vocab = {letter: index for index, letter in enumerate(byte_level_alphabet())}
    for merge in MERGES:
        vocab.setdefault(merge.replace(" ", ""), len(vocab))
    added = [
        {"id": len(vocab) + i, "content": text, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, text in enumerate(SPECIAL)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": list(MERGES), "fuse_unk": False, "byte_fallback": False}
        | dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"), None),
    }


VOCAB = 256 + len(MERGES) + len(SPECIAL)


def write_bundle(folder: Path, engine: ChainEngine) -> Path:
    """A bundle whose program is a stand-in: its engine is given by whoever opens it."""
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"a stand-in")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()), "utf-8")
    chat = ChatFormat(KNOWN_TEMPLATES["phi-3"])
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()} for path in folder.iterdir()
    }
    numbers = dict.fromkeys(("parameters", "layers", "hidden", "heads", "kv_heads", "head_dim"), 1)
    manifest = {
        "format": 2,
        "name": "chain",
        "family": "phi3",
        "engine": "host",
        "weights_mapped": True,
        "programs": ["model.bin"],
        "runtime": {"name": "host", "version": "1.0", "operators": [], "program": "model.bin"},
        "recipe": {"name": "host"},
        "files": files,
        "model": numbers
        | {"vocab": VOCAB, "context": engine.max_context, "chunk": engine.max_chunk, "max_context": engine.max_context}
        | {"original_context": engine.original_context, "back": engine.back, "bits_per_weight": 4},
        "tokens": {"bos": None, "eos": [VOCAB - len(SPECIAL), VOCAB - 1]},
        "chat": {"template": chat.template, "bos": "", "eos": "<|endoftext|>", "segments": chat.segments()},
        "memory": {"weights": 0, "kv_per_token": 0, "activations": 0, "peak": {}},
        "provenance": {"source": "tests", "source_hash": "", "tool": "tests"},
        "license": None,
        "generation": {"do_sample": False, "repetition_penalty": 1.0},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder


_WORDS = ("the", "and", "in", "on", "a", "é", "12", "13", "there", "re", "🙂", "\n", ".", "<|end|>", "ä\u0301", '{"x": 1}')


def _text(rng: random.Random, most: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, most)))


def _request(rng: random.Random, history: list[dict[str, str]]) -> dict[str, Any]:
    request: dict[str, Any] = {}
    if rng.random() < 0.2:
        request["prompt"] = _text(rng, 12)
    else:
        request["messages"] = list(history)
        if rng.random() < 0.3:
            request["overflow"] = "slide"
    request["max_tokens"] = rng.choice([1, 3, 10, 30, 30, None])
    if request["max_tokens"] is None and request.get("overflow") == "slide":
        request["max_tokens"] = 60  # a window that slides never ends
    if rng.random() < 0.5:
        request["lookup"] = True
    if rng.random() < 0.2:
        request["repetition"] = True
    if rng.random() < 0.3:
        request["stop"] = rng.sample(["the", "th", " a", "é", "nd\n", "12 1", "er", "🙂"], rng.randint(1, 3))
    if rng.random() < 0.5:
        request |= {"temperature": rng.choice([0.3, 0.7, 1.0, 1.5]), "seed": rng.randint(0, 1 << 40)}
        request |= rng.choice([{}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 40, "top_p": 0.9, "min_p": 0.05}])
    if rng.random() < 0.3:
        request["repetition_penalty"] = rng.choice([0.8, 1.1, 1.5])
    return request


def scenario(number: int) -> dict[str, Any]:
    """The scenario of a number: always the same."""
    rng = random.Random(number)
    context = rng.randint(40, 160)
    engine: dict[str, Any] = {"seed": rng.randint(0, 999), "max_context": context, "max_chunk": rng.randint(1, 40)}
    engine["habit"] = rng.choice([0, 8, 20])
    if rng.random() < 0.4:
        engine["original_context"] = rng.randint(10, context)
    if rng.random() < 0.3:
        engine["back"] = rng.randint(1, 30)
    steps: list[dict[str, Any]] = []
    history: list[dict[str, str]] = []
    for _ in range(rng.randint(1, 6)):
        choice = rng.random()
        if choice < 0.08:
            steps.append({"reset": True})
        if choice < 0.25 and len(history) > 2:  # undo
            del history[-2:]
        if choice > 0.9 and history:  # an edit
            index = rng.randrange(len(history))
            history[index] = {**history[index], "content": _text(rng, 5)}
        if not history and rng.random() < 0.3:
            history.append({"role": "system", "content": _text(rng, 4)})
        history.append({"role": "user", "content": _text(rng, 10)})
        step: dict[str, Any] = {"request": _request(rng, history)}
        if rng.random() < 0.15:
            step["cancel_after"] = rng.randint(1, 4)
        steps.append(step)
        history.append({"role": "assistant", "content": _text(rng, 6)})
    return {"number": number, "engine": engine, "steps": steps}


class Player(Protocol):
    """Answers requests, one after the other, on one engine."""

    def answer(self, request: dict[str, Any], cancel_after: int | None) -> Any: ...  # .pieces, .notes, .statistics

    def reset(self) -> None: ...


COUNTED = (
    "finish_reason",
    "prompt_tokens",
    "reused_tokens",
    "prefilled_tokens",
    "generated_tokens",
    "long_switch",
    "forwards",
    "drafted",
    "accepted",
    "dropped_messages",
)


def play(scenario: dict[str, Any], player: Player, engine: ChainEngine, refusal: type[Exception]) -> Iterator[dict[str, Any]]:
    """What each step gives: text, pieces, notes, counted statistics and the tokens of every forward; or that it is refused."""
    for step in scenario["steps"]:
        engine.calls.clear()
        if step.get("reset"):
            player.reset()
            continue
        try:
            found = player.answer(step["request"], step.get("cancel_after"))
        except refusal as error:
            yield {"refused": str(error)}
            continue
        yield {
            "text": "".join(found.pieces),
            "pieces": len(found.pieces),
            "notes": found.notes,
            "statistics": {name: found.statistics[name] for name in COUNTED},
            "forwards": [[position, list(tokens), long] for position, tokens, long in engine.calls],
        }
