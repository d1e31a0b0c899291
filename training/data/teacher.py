"""Who writes synthetic data: a server that speaks the OpenAI API, a bundle, or a checkpoint folder. Answers are kept on disk.

`ask(messages, seed)` is all that the rest of this room sees; a question that was answered before costs nothing again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from phi3mobile.errors import InputError

Messages = Sequence[dict[str, str]]
Ask = Callable[[Messages, int], str]


@dataclass(frozen=True)
class Teacher:
    """`url` of an OpenAI-compatible API with a `model` there, or `path` of a bundle or checkpoint folder."""

    url: str = ""
    model: str = ""
    path: str = ""
    key_variable: str = "OPENAI_API_KEY"  # environment variable with the key; unset: none is sent
    temperature: float = 0.8
    max_tokens: int = 1024
    timeout: float = 120.0
    retries: int = 5  # with growing pauses: limits of rate, lost connections, errors of the server
    parallel: int = 4  # requests under way (url only)

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.path) or bool(self.url) != bool(self.model):
            raise InputError("teacher: give url and model, or path of a bundle or checkpoint folder")
        if self.max_tokens < 1 or self.parallel < 1 or self.retries < 0 or self.temperature < 0:
            raise InputError("teacher: max_tokens and parallel must be 1 or more, retries and temperature 0 or more")


@dataclass
class Desk:
    """A teacher at work: answers, remembered in `memory` (jsonl), several at a time where it is a server."""

    ask_fresh: Ask
    memory: Path
    parallel: int = 1
    asked: int = 0  # questions that were not remembered
    _known: dict[str, str] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.memory.parent.mkdir(parents=True, exist_ok=True)
        lines = self.memory.read_text("utf-8").splitlines() if self.memory.is_file() else []
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line)
            except ValueError:
                if number < len(lines) - 1:
                    raise InputError(f"{self.memory} line {number + 1} is damaged; remove that line") from None
                self.memory.write_text("".join(f"{kept}\n" for kept in lines[:-1]), "utf-8")  # a killed run's half line
                break
            self._known[entry["key"]] = entry["answer"]

    def __call__(self, messages: Messages, seed: int = 0) -> str:
        key = hashlib.sha256(json.dumps([list(messages), seed]).encode()).hexdigest()[:32]
        with self._lock:
            if key in self._known:
                return self._known[key]
        answer = self.ask_fresh(messages, seed)
        with self._lock, self.memory.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "answer": answer}) + "\n")
            self._known[key], self.asked = answer, self.asked + 1
        return answer

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """work(item) of each, in order, `parallel` at a time."""
        if self.parallel == 1:
            yield from map(work, items)
            return
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                yield from pool.map(work, items)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def open_teacher(teacher: Teacher, memory: Path) -> Desk:
    """The teacher, its answers kept in `memory`: a file for this teacher alone."""
    if teacher.url:
        return Desk(_server(teacher), memory, teacher.parallel)
    return Desk(session_ask(open_session(teacher.path), teacher.temperature, teacher.max_tokens), memory)


def _server(teacher: Teacher) -> Ask:
    import openai

    client = openai.OpenAI(
        base_url=teacher.url,
        api_key=os.environ.get(teacher.key_variable) or "none",
        timeout=teacher.timeout,
        max_retries=teacher.retries,
    )

    def ask(messages: Messages, seed: int) -> str:
        try:
            reply = client.chat.completions.create(
                model=teacher.model,
                messages=list(messages),
                seed=seed,
                temperature=teacher.temperature,
                max_tokens=teacher.max_tokens,
            )
        except openai.OpenAIError as error:
            raise InputError(
                f"the teacher at {teacher.url} did not answer ({str(error)[:160]}); check url, model and key, then run again: "
                "answers so far are kept"
            ) from None
        return (reply.choices[0].message.content if reply.choices else None) or ""

    return ask


def open_session(path: str | Path) -> Any:
    """A Session over a bundle, or over a checkpoint folder's unquantized weights."""
    from phi3mobile.session.session import Session

    path = Path(path)
    if (path / "manifest.json").is_file():
        return Session(path)
    from phi3mobile.engines.eager import EagerEngine
    from phi3mobile.export.plan import stop_ids
    from phi3mobile.models.checkpoint import open_checkpoint
    from phi3mobile.models.loading import model_from
    from phi3mobile.text.chat import load_chat
    from phi3mobile.text.vocabularies import load_tokenizer

    checkpoint = open_checkpoint(path)

    @dataclass
    class Parts:
        tokenizer: Any
        chat: Any
        eos_ids: frozenset[int]

    parts = Parts(load_tokenizer(path), load_chat(path), frozenset(stop_ids(path, checkpoint.config)))
    return Session(parts, EagerEngine(model_from(checkpoint)))


def session_ask(session: Any, temperature: float, max_tokens: int) -> Ask:
    """A Session as a teacher; `seed` makes each answer repeatable."""
    from phi3mobile.session.sampling import Sampling

    def ask(messages: Messages, seed: int) -> str:
        sampling = Sampling(temperature=temperature, seed=seed)
        return "".join(session.generate(list(messages), sampling=sampling, max_tokens=max_tokens)).strip()

    return ask
