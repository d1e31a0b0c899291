"""What the app knows and does, without a window: conversations, the running answer, problems, live numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from phi3mobile.assistant import events, problems
from phi3mobile.assistant.history import CHARACTERS, conversation, title_of
from phi3mobile.assistant.meters import Speed, memory_used
from phi3mobile.assistant.pictures import Draft, Picture
from phi3mobile.assistant.problems import Problem
from phi3mobile.assistant.settings import Settings
from phi3mobile.assistant.store import Chat, Message, Store
from phi3mobile.assistant.worker import Worker
from phi3mobile.errors import InputError

WRITE_EVERY_S = 0.25  # the running answer goes to disk this often
SAMPLE_EVERY_S = 0.1  # of the speed


class State:
    """One conversation is shown at a time. Call `poll` once per frame; it tells which parts of the window are old.

    Parts: "chats", "messages" (their list), "answer" (text of the last one), "status", "problem", "library",
    "pictures" (of the draft).
    """

    def __init__(self, store: Store, worker: Worker, clock: Callable[[], float] = time.perf_counter) -> None:
        self.worker, self._clock = worker, clock
        self.chat: int | None = None
        self.messages: list[Message] = []
        self.loading: events.Loading | None = None
        self.model: events.Loaded | None = None
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
        self.draft = Draft(store.album)
        if self.chats:
            self.open_chat(self.chats[0].id)
        self._mark("chats", "messages", "status", "pictures")

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
        self.store.delete(chat, keep={picture.name for picture in self.draft.pictures})
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

    @property
    def sees(self) -> bool:
        """Whether the open model takes pictures."""
        return self.model is not None and self.model.sees

    def send(self, text: str) -> bool:
        """Ask about the text and the draft's pictures. False: nothing was sent (there is nothing, or it is not ready, or no
        model can answer it: then `problem` says so), and the text is still the caller's."""
        text = text.strip().encode("utf-8", "replace").decode("utf-8")
        if not (text or self.draft.pictures) or self.answering or self.draft.opening:
            return False
        if self.model is None:
            if self.loading is None:
                self.show(problems.no_bundle())
            return False
        if self._blind(self.draft.pictures):
            return False
        if self.chat is None:
            self.chat = self.store.new_chat(title_of(text))
            self.chats = self.store.chats()
        self.messages.append(self.store.add(self.chat, "user", text, pictures=self.draft.take()))
        self._start()
        self._mark("chats", "pictures")
        return True

    def regenerate(self) -> bool:
        """Another answer to the last question."""
        question = next((message for message in reversed(self.messages) if message.role == "user"), None)
        if not self.can_send or question is None or self._blind(question.pictures):
            return False
        if self.messages[-1].role == "assistant":
            self.store.replace_from(self.chat, self.messages.pop().id)
        self._start()
        return True

    def resend(self, message: int, text: str) -> bool:
        """Ask a question again in other words, with the draft's pictures; what followed it leaves the conversation."""
        index = next((i for i, old in enumerate(self.messages) if old.id == message and old.role == "user"), None)
        if index is None or not (text.strip() or self.draft.pictures) or not self.can_send or self.draft.opening:
            return False
        if self._blind(self.draft.pictures):
            return False
        self.store.replace_from(self.chat, message)
        del self.messages[index:]
        return self.send(text)

    def stop(self) -> None:
        """End the running answer; its text so far stays."""
        if self.answering:
            self.worker.stop()

    def _start(self) -> None:
        history = conversation(self.messages, self.settings.system_prompt, self.model.context * CHARACTERS, self.sees)
        self._answer = self.store.add(self.chat, "assistant", "", state="streaming")
        self._answer_chat = self.chat
        self.messages.append(self._answer)
        self._unwritten, self._first_s = False, None
        self._started = self._written = self._clock()
        unseen = not self.sees and any(message.pictures for message in self.messages)
        self.notice = "This model sees no pictures: it reads the words alone." if unseen else ""
        self.answering, self.problem = True, None
        self.speed.start()
        self._rate = 0.0
        self.worker.answer(history, self.settings.sampling(), self.settings.max_tokens)
        self._mark("messages", "status", "problem")

    def _blind(self, pictures: tuple[Picture, ...]) -> bool:
        """Whether there are pictures that the model can't see, which `problem` then says."""
        if not pictures or self.model is None or self.sees:
            return False
        self.show(problems.sees_nothing())
        return True

    # pictures of the next question

    def attach(self, source: Path | bytes) -> bool:
        """Put a picture (a file, its bytes) to the draft; one that can't be opened becomes a problem. False: nobody sees it."""
        if self.model is not None and not self.sees:
            self.show(problems.sees_nothing())
            return False
        self.draft.add(source)
        self._mark("status")
        return True

    def detach(self, name: str) -> None:
        self.draft.remove(name)
        self._mark("pictures")

    def draft_again(self, pictures: tuple[Picture, ...]) -> None:
        """The draft has these pictures now: an earlier question's, or none."""
        self.draft.pictures = pictures
        self._mark("pictures")

    # model, library, settings

    def open_bundle(self, path: str | Path) -> None:
        self.model, self.problem = None, None
        self.loading = events.Loading("Opening", 0.0)
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
        for opened in self.draft.poll():
            if isinstance(opened, BaseException):
                known = isinstance(opened, InputError)
                self.show(problems.picture_failed(str(opened)) if known else problems.bug(opened))
            self._mark("pictures", "status")
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

    def _take(self, event: events.Event) -> None:
        match event:
            case events.Loading():
                self.loading = event
                self._mark("status")
            case events.Loaded():
                self.loading, self.model = None, event
                self.settings = self.settings.with_model(event.sampling)
                self.change(bundle=str(event.path))
                self._mark("status")
            case events.LibraryOpened(path, documents):
                self.library, self.notice = path, ""
                if documents:
                    self.store.put_setting("documents", documents)
                self.change(library=str(path) if path else "")
                self._mark("library", "status")
            case events.Notice(text):
                self.notice = text
                self._mark("status")
            case events.Sources(passages) if self._answer is not None:
                self._put(replace(self._answer, sources=passages))
                self._write("streaming")
                self._mark("messages")
            case events.Piece(text) if self._answer is not None:
                if self._first_s is None:
                    self._first_s = self._clock() - self._started
                self._unwritten = True
                self._put(replace(self._answer, content=self._answer.content + text))
                self._mark("answer")
            case events.Finished(numbers):
                self.numbers = numbers
                self._end("stopped" if numbers and numbers["finish_reason"] == "cancelled" else "done", numbers)
            case events.Failed(at, problem):
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
        self.draft.close()
        self.poll()
        if self._answer is not None:
            self._write("interrupted")
        self.store.close()
