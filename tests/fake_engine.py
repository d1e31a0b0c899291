"""A deterministic numpy engine whose logits depend on everything its KV cache holds, and the text parts around it.

Each cache row is a hash of its token, its position, its LongRoPE regime and all rows before it as they really lie in
the cache. So a wrong reuse, a stale row, a shifted position or a mixed regime changes the logits, as in a model.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from phi3mobile.engines import EngineInfo

_CUT = ["é".encode()[:1], "é".encode()[1:], "🙂".encode()[:2], "🙂".encode()[2:3], "🙂".encode()[3:]]  # any order encodes again
PIECES = [b"\0", b"\1", b"\2", b"\3", *(bytes([c]) for c in b"abcdef .,\n"), b"ab", b"cd.", *_CUT, "\ufffd".encode()]
VOCAB, EOS = len(PIECES), 0


@dataclass
class FakeEngine:
    """`habit`: how strongly the last token alone decides the next; high values give answers that repeat themselves."""

    seed: int = 0
    max_context: int = 96
    max_chunk: int = 7
    original_context: int | None = None
    habit: float = 3.0
    eos_bias: float = -100.0
    hook: Callable[[int], None] = lambda count: None  # called in every forward with the number of forwards before it
    calls: list[tuple[int, int, bool]] = field(default_factory=list)  # (position, T, long) of every forward
    closed: bool = False
    back: int | None = None  # as an evicting KV cache: positions further behind the farthest must start again from 0

    def __post_init__(self) -> None:
        self.info = EngineInfo(VOCAB, self.max_context, self.max_chunk, self.original_context, self.back)
        self._next = np.random.default_rng(self.seed).standard_normal((VOCAB, VOCAB)) * self.habit
        self._next[:, EOS] += self.eos_bias
        self.reset()

    def forward(self, tokens: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        end = position + len(tokens)
        assert tokens.dtype == np.int64 and tokens.ndim == 1 and 1 <= len(tokens) <= self.max_chunk
        assert position >= 0 and end <= self.max_context, "outside of the KV cache"
        assert ((tokens >= 0) & (tokens < VOCAB)).all()
        assert self._written[:position].all(), "reads rows that were never written"
        self._farthest = self._farthest if position else 0
        assert self.back is None or self._farthest - position <= self.back, "rows before it were evicted"
        self._farthest = max(self._farthest, end)
        long = long or (self.original_context is not None and end > self.original_context)
        self.calls.append((position, len(tokens), long))
        self._rows[position:end] = 0  # a forward that fails below leaves damaged rows, not the old ones
        self.hook(len(self.calls) - 1)
        logits = []
        for at, token in enumerate(tokens.tolist(), start=position):
            key = self._rows[:at].tobytes() + f"{token} {at} {long} {self.seed}".encode()
            self._rows[at] = int.from_bytes(blake2b(key, digest_size=8).digest(), "little")
            self._written[at] = True
            noise = np.random.default_rng(int(self._rows[at])).standard_normal(VOCAB)
            logits.append(self._next[token] + noise)
        return np.asarray(logits, dtype=np.float32)

    def holds(self, tokens: list[int], long: bool) -> bool:
        """Whether the first rows of the cache are those of `tokens`, computed at once in one regime."""
        fresh = FakeEngine(self.seed, self.max_context, self.max_context, None)
        if tokens:
            fresh.original_context = 0 if long else None
            fresh.forward(np.array(tokens, dtype=np.int64), 0)
        return np.array_equal(fresh._rows[: len(tokens)], self._rows[: len(tokens)])

    def reset(self) -> None:
        self._rows = np.zeros(self.max_context, dtype=np.uint64)
        self._written = np.zeros(self.max_context, dtype=bool)
        self._farthest = 0

    def close(self) -> None:
        self.closed = True


class FakeTokenizer:
    """Byte pieces, longest match first; some pieces are halves of characters. It encodes whatever it decoded."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        data, ids = text.encode(), []
        while data:
            ids.append(max((i for i, p in enumerate(PIECES) if data.startswith(p)), key=lambda i: len(PIECES[i])))
            data = data[len(PIECES[ids[-1]]) :]
        return ids

    def decode(self, ids: list[int]) -> str:
        return b"".join(PIECES[i] for i in ids).decode(errors="replace")

    def stream(self, at_start: bool = False) -> FakeStream:
        return FakeStream()


class FakeStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(PIECES[token])

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class FakeChat:
    def encode(self, tokenizer: FakeTokenizer, messages: list[dict[str, str]]) -> list[int]:
        tags = {"system": "\1", "user": "\2", "assistant": "\3"}
        return tokenizer.encode("".join(tags[m["role"]] + m["content"] + "\n" for m in messages) + "\3")


@dataclass
class FakeParts:
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    chat: FakeChat = field(default_factory=FakeChat)
    eos_ids: frozenset[int] = frozenset({EOS})
