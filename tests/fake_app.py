"""Stand-ins for the app's tests: a model that says what a script says, at a pace, behind the real Session; a library."""

from __future__ import annotations

import codecs
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from phi3mobile.assistant.state import State
from phi3mobile.bundle import Bundle
from phi3mobile.engines import EngineInfo
from phi3mobile.engines.registry import open_engine

EOS, ASK = 256, 257  # after the 256 bytes
ANSWER = "<answer>"  # ASK, as a text between others


@dataclass
class ScriptEngine:
    """Answers with `say(number of the answer)`, byte by byte, `pause_s` each; `prefill_s` before."""

    say: Callable[[int], str]
    pause_s: float = 0.0
    prefill_s: float = 0.0
    context: int = 4096
    answers: int = 0
    closed: bool = False

    def __post_init__(self) -> None:
        self.info = EngineInfo(258, self.context, 128)
        self._text, self._start = b"", 0  # of the running answer, and where in the sequence it starts

    def forward(self, tokens: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        assert position + len(tokens) <= self.context
        if ASK in tokens[-1:]:
            time.sleep(self.prefill_s)
            self._text, self._start = self.say(self.answers).encode(), position + len(tokens) - 1
            self.answers += 1
        else:
            time.sleep(self.pause_s)
        logits = np.full((len(tokens), 258), -1e9, dtype=np.float32)
        for row in range(len(tokens)):
            at = position + row - self._start
            logits[row, self._text[at] if 0 <= at < len(self._text) else EOS] = 0.0
        return logits

    def forward_embeddings(self, rows: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        self.rows = rows
        return np.zeros((len(rows), 258), np.float32)

    def reset(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeTower:
    """Sees of a view the mean of its values; `pause_s` each."""

    pause_s: float = 0.0
    name: str = "fake"
    num_crops: int = 4
    hidden: int = 4
    seen: int = 0
    closed: bool = False
    separators: tuple[np.ndarray, np.ndarray] = (np.zeros(16, np.float32), np.zeros(16, np.float32))

    def encode(self, view: np.ndarray) -> np.ndarray:
        time.sleep(self.pause_s)
        self.seen += 1
        return np.full((576, 4), view.mean(), np.float32)

    def project(self, rows: np.ndarray) -> np.ndarray:
        return rows[:, : self.hidden]

    def close(self) -> None:
        self.closed = True


class Bytes:
    special_ids = frozenset[str]()
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def encode_spans(self, spans: list[tuple[str, bool]]) -> list[int]:
        return [token for text, _ in spans for token in ([ASK] if text == ANSWER else self.encode(text))]

    def encode(self, text: str, special: bool = True) -> list[int]:
        return list(text.encode())

    def stream(self, at_start: bool = False) -> ByteStream:
        return ByteStream()


class ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token]))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class Turns:
    """Messages as bytes; the last token says that the answer starts."""

    def __init__(self) -> None:
        self.asked: deque[list[dict[str, str]]] = deque(maxlen=8)

    def encode(self, tokenizer: Bytes, messages: list[dict[str, str]]) -> list[int]:
        self.asked.append([dict(message) for message in messages])
        return [*tokenizer.encode("\n".join(f"{m['role']}: {m['content']}" for m in messages)), ASK]

    def spans(self, messages: list[dict[str, str]], trusted: set[str]) -> list[tuple[str, bool]]:
        self.asked.append([dict(message) for message in messages])
        return [("\n".join(f"{m['role']}: {m['content']}" for m in messages), False), (ANSWER, True)]


@dataclass
class ScriptParts:
    engine: ScriptEngine
    name: str = "scripted model"
    tokenizer: Bytes = field(default_factory=Bytes)
    chat: Turns = field(default_factory=Turns)
    eos_ids: frozenset[int] = frozenset({EOS})
    tower: FakeTower | None = None

    @property
    def manifest(self) -> dict[str, str]:
        return {"name": self.name}


def open_script(parts: ScriptParts) -> ScriptEngine:
    """What a Worker opens in place of a bundle's engine; a real bundle's is its own."""
    return open_engine(parts) if isinstance(parts, Bundle) else parts.engine


def open_fake_tower(parts: ScriptParts) -> FakeTower | None:
    return None if isinstance(parts, Bundle) else parts.tower


@dataclass(frozen=True)
class FakePassage:
    text: str
    title: str
    source: str
    location: str
    score: float


class FakeLibrary:
    def __init__(self, passages: list[FakePassage]) -> None:
        self.passages, self.questions = passages, []

    def search(self, question: str, k: int = 5) -> list[FakePassage]:
        self.questions.append(question)
        return self.passages[:k]


def quoted(question: str, passages: list[FakePassage], history: list[dict[str, str]]) -> list[dict[str, str]]:
    """In place of grounded_messages."""
    sources = "\n".join(f"[{number}] {passage.text}" for number, passage in enumerate(passages, start=1))
    return [*history, {"role": "user", "content": f"{sources}\n{question}"}]


def parts_saying(
    *texts: str, pause_s: float = 0.0, prefill_s: float = 0.0, context: int = 4096, tower: FakeTower | None = None
) -> ScriptParts:
    """A model that gives these answers in turn, again and again; with a tower, one that sees."""
    return ScriptParts(ScriptEngine(lambda number: texts[number % len(texts)], pause_s, prefill_s, context), tower=tower)


def until(state: State, condition: Callable[[], object], seconds: float = 10.0) -> set[str]:
    """Poll as the window does, until the condition holds; what changed meanwhile. AssertionError after `seconds`."""
    old, end = set(), time.monotonic() + seconds
    while True:
        old |= state.poll()
        if condition():
            return old
        assert time.monotonic() < end, f"not in {seconds} s: {state.problem}, {state.messages}"
        time.sleep(0.002)


def answered(state: State, seconds: float = 10.0) -> None:
    until(state, lambda: not state.answering, seconds)


# What the scripts say

MARKDOWN = """A **KV cache** keeps the *keys* and *values* of tokens that were already read:

1. The prompt is read once, which is called `prefill`.
2. Every new token then reads the cache instead of the whole text.
   So the time per token stays nearly the same.
- It grows with the context: 393 kB per token for Phi-3-mini.

```python
def attend(q, cache):
    weights = softmax(q @ cache.keys.T / 8)
    return weights @ cache.values
```

### In short
Memory for speed → that is the whole trick ✓ 🚀"""
ARABIC = "مرحبا! ذاكرة KV تحفظ المفاتيح والقيم (keys, values) للكلمات السابقة 😀، لذلك يكون كل رمز جديد سريعا على هاتفك."
HEBREW = "שלום! הזיכרון שומר את המפתחות והערכים של 128 המילים הקודמות."
ANSWERS = (MARKDOWN, f"{ARABIC}\n\n{HEBREW}", "Sure 👍🏽 — here are flags 🇫🇷🇯🇵, a family 👩‍👩‍👧 and a heart ❤️.")


def counted(words: int) -> str:
    """A long answer that does not repeat itself: such a one would be ended."""
    return "".join(f"{number:04} " for number in range(words))


ARABIC_TITLE = "عقد الإيجار"
PASSAGES = [
    FakePassage(
        "The rent is due on the third working day of each month. Late payments cost 5 euros per day.",
        "Lease 2026",
        "Documents/lease.pdf",
        "page 4",
        0.82,
    ),
    FakePassage(
        "Heating costs are settled once a year, at the end of March.", "Lease 2026", "Documents/lease.pdf", "page 7", 0.61
    ),
    FakePassage(
        "Call the caretaker between 8 and 10.", "House rules of the building, 2024 edition", "rules.md", "Contacts", 0.4
    ),
    FakePassage("يدفع الإيجار في اليوم الثالث من كل شهر.", ARABIC_TITLE, "ijar.pdf", "page 2", 0.38),
]
