"""What the app knows and does, without a window: conversations, the running answer, problems, live numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from phi3mobile.assistant import problems, worker
from phi3mobile.assistant.meters import Speed, memory_used
from phi3mobile.assistant.problems import Problem
from phi3mobile.assistant.settings import Settings
from phi3mobile.assistant.store import Chat, Message, Store
from phi3mobile.assistant.worker import Worker

WRITE_EVERY_S = 0.25  # the running answer goes to disk this often
CHARACTERS = 12  # no text has more of them per token, on average
SAMPLE_EVERY_S = 0.1  # of the speed
TITLE_LENGTH = 40


class State:
    """One conversation is shown at a time. Call `poll` once per frame; it tells which parts of the window are old.

    Parts: "chats", "messages" (their list), "answer" (text of the last one), "status", "problem", "library".
    """

    def __init__(self, store: Store, worker: Worker, clock: Callable[[], float] = time.perf_counter) -> None:
        self.worker, self._clock = worker, clock
        self.chat: int | None = None
        self.messages: list[Message] = []
        self.loading: worker.Loading | None = None
        self.model: worker.Loaded | None = None
        self.library: Path | None = None
        self.problem: Problem | None = None
        self.notice = ""
        self.answering = False
        self.speed = Speed()
        self.numbers: dict[str, Any] | None = None  # of the last answer
        self._answer_chat: int | None = None
        self._answer: Message | None = None
        self._unwritten = False
        self._started = self._written = self._sampled = self._rate = 0.0
        self._first_s: float | None = None
        self._old: set[str] = set()
        self.use_store(store)

    # conversations

    def use_store(self, store: Store) -> None:
        """Show what `store` holds, its newest conversation first."""
        self.store, self.settings = store, Settings.from_dict(store.setting("settings", {}))
        self.chats: list[Chat] = store.chats()
        self.chat, self.messages = None, []
        if self.chats:
            self.open_chat(self.chats[0].id)
        self._mark("chats", "messages", "status")

    def open_chat(self, chat: int) -> None:
        if chat == self.chat:
            return
        self.chat, self.messages = chat, self.store.messages(chat)
        if self._answer is not None and self._answer_chat == chat:  # it is still running
            self.messages[-1] = self._answer
        self._mark("messages", "chats")

    def new_chat(self) -> None:
        """An empty one; it is stored with its first question. A running answer goes on where it is."""
        self.chat, self.messages = None, []
        self._mark("messages", "chats")

    def delete_chat(self, chat: int) -> None:
        if chat == self._answer_chat and self._answer is not None:
            self.stop()
            self._answer = self._answer_chat = None
        self.store.delete(chat)
        if chat == self.chat:
            self.chat, self.messages = None, []
        self.chats = self.store.chats()
        self._mark("messages", "chats")

    def rename_chat(self, chat: int, title: str) -> None:
        self.store.rename(chat, title.strip()[:200])
        self.chats = self.store.chats()
        self._mark("chats")

    # asking

    @property
    def can_send(self) -> bool:
        return self.model is not None and not self.answering and self.loading is None

    def send(self, text: str) -> bool:
        """Ask. False: nothing was sent (no text, or no model: then `problem` says so, and the text is still the caller's)."""
        text = text.strip().encode("utf-8", "replace").decode("utf-8")
        if not text or self.answering:
            return False
        if self.model is None:
            if self.loading is None:
                self.show(problems.no_bundle())
            return False
        if self.chat is None:
            self.chat = self.store.new_chat(_title(text))
            self.chats = self.store.chats()
        self.messages.append(self.store.add(self.chat, "user", text))
        self._start()
        self._mark("chats")
        return True

    def regenerate(self) -> bool:
        """Another answer to the last question."""
        if not self.can_send or not self.messages:
            return False
        if self.messages[-1].role == "assistant":
            self.store.replace_from(self.chat, self.messages.pop().id)
        if not self.messages:
            return False
        self._start()
        return True

    def resend(self, message: int, text: str) -> bool:
        """Ask a question again in other words; what followed it leaves the conversation."""
        index = next((i for i, old in enumerate(self.messages) if old.id == message and old.role == "user"), None)
        if index is None or not text.strip() or not self.can_send:
            return False
        self.store.replace_from(self.chat, message)
        del self.messages[index:]
        return self.send(text)

    def stop(self) -> None:
        """End the running answer; its text so far stays."""
        if self.answering:
            self.worker.stop()

    def _start(self) -> None:
        history = conversation(self.messages, self.settings.system_prompt, self.model.context * CHARACTERS)
        self._answer = self.store.add(self.chat, "assistant", "", state="streaming")
        self._answer_chat = self.chat
        self.messages.append(self._answer)
        self._unwritten, self._first_s = False, None
        self._started = self._written = self._clock()
        self.answering, self.notice, self.problem = True, "", None
        self.speed.start()
        self._rate = 0.0
        self.worker.answer(history, self.settings.sampling(), self.settings.max_tokens)
        self._mark("messages", "status", "problem")

    # model, library, settings

    def open_bundle(self, path: str | Path) -> None:
        self.model, self.problem = None, None
        self.loading = worker.Loading("Opening", 0.0)
        self.worker.load(path)
        self._mark("status", "problem")

    def open_library(self, path: str | Path | None) -> None:
        self.worker.use_library(path)

    def add_documents(self, document: Path, library: Path) -> None:
        """Index a file or folder, with those that were added before, into the app's own library, and use it."""
        before = [Path(known) for known in self.store.setting("documents", []) if Path(known).exists()]
        self.worker.index([*dict.fromkeys([*before, document])], library)

    def change(self, **changes: Any) -> None:
        """Change settings and keep them. Raises InputError for a value out of range."""
        self.settings = self.settings.changed(**changes)
        self.store.put_setting("settings", self.settings.to_dict())

    def restore(self) -> None:
        """Open again what was open at the last end."""
        if self.settings.bundle:
            self.open_bundle(self.settings.bundle)
        if self.settings.library:
            self.open_library(self.settings.library)

    def show(self, problem: Problem | None) -> None:
        self.problem = problem
        self._mark("problem")

    def solve(self) -> str:
        """What the problem's button does here; returns its action for what only the window can do (pickers, copying)."""
        problem, self.problem = self.problem, None
        self._mark("problem")
        action = problem.action if problem else ""
        if action == "new_chat":
            self.new_chat()
        elif action == "retry":
            self.regenerate()
        elif action == "no_library":
            self.open_library(None)
        return action

    # events

    def poll(self) -> set[str]:
        """Take in what the model's thread did; the parts of the window that are old now."""
        while not self.worker.events.empty():
            self._take(self.worker.events.get())
        now = self._clock()
        if self.answering and self._first_s is not None and now - self._sampled >= SAMPLE_EVERY_S:
            self._sampled, self._rate = now, self.speed.push(now, self.worker.engine.used if self.worker.engine else 0)
        if self._answer is not None and self._unwritten and now - self._written >= WRITE_EVERY_S:
            self._write("streaming")
        old, self._old = self._old, set()
        return old

    def live(self) -> dict[str, Any]:
        """The panel's numbers now: tokens_per_s, ttft_s, memory bytes, used and context positions."""
        engine = self.worker.engine
        used = engine.used if engine is not None else 0
        rate = self._rate if self.answering else (self.numbers or {}).get("decode_tokens_per_s", 0.0)
        ttft = self._first_s if self.answering else (self.numbers or {}).get("ttft_s")
        context = self.model.context if self.model else 0
        return {"tokens_per_s": rate, "ttft_s": ttft, "memory": memory_used(), "used": used, "context": context}

    def _take(self, event: worker.Event) -> None:
        match event:
            case worker.Loading():
                self.loading = event
                self._mark("status")
            case worker.Loaded():
                self.loading, self.model = None, event
                self.settings = self.settings.with_model(event.sampling)
                self.change(bundle=str(event.path))
                self._mark("status")
            case worker.LibraryOpened(path, documents):
                self.library, self.notice = path, ""
                if documents:
                    self.store.put_setting("documents", documents)
                self.change(library=str(path) if path else "")
                self._mark("library", "status")
            case worker.Notice(text):
                self.notice = text
                self._mark("status")
            case worker.Sources(passages) if self._answer is not None:
                self._put(replace(self._answer, sources=passages))
                self._write("streaming")
                self._mark("messages")
            case worker.Piece(text) if self._answer is not None:
                if self._first_s is None:
                    self._first_s = self._clock() - self._started
                self._unwritten = True
                self._put(replace(self._answer, content=self._answer.content + text))
                self._mark("answer")
            case worker.Finished(numbers):
                self.numbers = numbers
                self._end("stopped" if numbers and numbers["finish_reason"] == "cancelled" else "done", numbers)
            case worker.Failed(at, problem):
                self._failed(at, problem)

    def _failed(self, at: str, problem: Problem) -> None:
        if at == "load":
            self.loading = self.model = None
        if at == "library":
            self.library = None
            self._mark("library")
        if at == "answer" and self._answer is not None:
            self._end("failed", None)
        self.show(problem)
        self._mark("status")

    def _put(self, message: Message) -> None:
        """The running answer has changed."""
        self._answer = message
        if self._answer_chat == self.chat and self.messages and self.messages[-1].id == message.id:
            self.messages[-1] = message

    def _write(self, state: str) -> None:
        self._written, self._unwritten = self._clock(), False
        self.store.write(replace(self._answer, state=state))

    def _end(self, state: str, numbers: dict[str, Any] | None) -> None:
        if self._answer is not None:
            self._put(replace(self._answer, state=state, numbers=numbers))
            self._write(state)
        self._answer = self._answer_chat = None
        self.answering = False
        self._mark("messages", "status")

    def _mark(self, *parts: str) -> None:
        self._old.update(parts)

    def close(self) -> None:
        """End well: the running answer is kept as far as it went."""
        self.worker.close()
        self.poll()
        if self._answer is not None:
            self._write("interrupted")
        self.store.close()


def conversation(messages: list[Message], system_prompt: str = "", most: int | None = None) -> list[dict[str, str]]:
    """What the model is given: roles alternate, so a question that got no answer is asked with the next one.

    Old turns that can't fit (`most` characters; the session counts tokens) are left out here: counting them takes long.
    """
    history: list[dict[str, str]] = []
    for message in messages:
        if not message.content.strip():
            continue
        if history and history[-1]["role"] == message.role:
            history[-1]["content"] += f"\n\n{message.content}"
        else:
            history.append({"role": message.role, "content": message.content})
    size = 0
    for index in range(len(history) - 1, -1, -1):
        size += len(history[index]["content"])
        if most is not None and size > most and index < len(history) - 1:
            rest = history[index + 1 :]
            history = rest[1:] if rest[0]["role"] == "assistant" and len(rest) > 1 else rest
            break
    if system_prompt.strip():
        history.insert(0, {"role": "system", "content": system_prompt.strip()})
    return history


def _title(question: str) -> str:
    """A conversation's name: the beginning of its first question, at a word's end."""
    line = " ".join(question.split())
    if len(line) <= TITLE_LENGTH:
        return line
    cut = line[:TITLE_LENGTH].rpartition(" ")[0] or line[:TITLE_LENGTH]
    return f"{cut}…"
