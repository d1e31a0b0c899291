"""A chat's history (say, undo, reset, save, restore), and the window of it that fits a context."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.files import whole_file

FORMAT, VERSION = "phi3mobile-conversation", 1
ROLES = ("system", "user", "assistant", "tool")
FREE_SHARE = 8  # a slid window leaves 1/8 of the context free


@dataclass
class Conversation:
    """Messages {"role", "content"} in order: at most one system message, first, then users', assistants' and tools'.

    A tool's message is what the function "name" gave. A user's content may be a list of texts and images (session/content.py),
    an image being a path or a data: URI.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        given, self.messages = self.messages, []
        if not isinstance(given, list):
            raise InputError(f"messages is a {type(given).__name__}; it must be a list of role and content pairs")
        for index, message in enumerate(given):
            result = isinstance(message, dict) and message.get("role") == "tool"
            if not isinstance(message, dict) or set(message) != {"role", "content", *(["name"] if result else [])}:
                raise InputError(f"message {index} is {message!r:.80}; it must have role and content, a tool's name, no more")
            self.say(**message)

    def say(self, role: str, content: str | list[dict[str, str]], name: str | None = None) -> None:
        """Append a message. Raises InputError: unknown role, content that is no text, a system message not first, a tool's
        message without the function's name, a name for another."""
        if role not in ROLES:
            raise InputError(f"message {len(self.messages)} has the role {role!r}; allowed are {', '.join(ROLES)}")
        if (role == "tool") != isinstance(name, str):
            raise InputError(f"message {len(self.messages)} is of {role} and has the name {name!r}; a tool's has one, no other")
        texts = [content] if isinstance(content, str) else _texts(content) if role == "user" else None
        if texts is None:
            raise InputError(f"message {len(self.messages)} has {type(content).__name__} content; it must be text")
        try:
            "".join([*texts, name or ""]).encode()
        except UnicodeEncodeError:
            raise InputError(f"message {len(self.messages)} is not valid Unicode: {content!r:.80}; retype it") from None
        if role == "system" and self.messages:
            raise InputError(f"message {len(self.messages)} is a system message; only the first message may be one")
        self.messages.append({"role": role, "content": content} | ({} if name is None else {"name": name}))

    def undo(self) -> list[dict[str, Any]]:
        """Remove the last user message and what follows it; returns what was removed ([]: there was nothing)."""
        last = max((i for i, message in enumerate(self.messages) if message["role"] == "user"), default=None)
        if last is None:
            return []
        removed = self.messages[last:]
        del self.messages[last:]
        return removed

    def reset(self, keep_system: bool = True) -> None:
        """Remove all messages, but by default not the system message."""
        keep = bool(keep_system and self.messages and self.messages[0]["role"] == "system")
        del self.messages[keep:]

    def to_json(self) -> str:
        """The history as a JSON document; from_json reads it."""
        document = {"format": FORMAT, "version": VERSION, "messages": self.messages}
        return json.dumps(document, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        """Raises InputError for anything but what to_json writes."""
        try:
            document: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the conversation is not JSON: {error}; give a file that was saved by a chat") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise InputError(f'the JSON is no conversation: "format" must be "{FORMAT}"; give a file saved by a chat')
        version = document.get("version")
        if type(version) is not int or version != VERSION:
            raise InputError(f"the conversation has version {version!r}; this program reads {VERSION}: use its own")
        if set(document) != {"format", "version", "messages"}:
            raise InputError(f"the conversation has the keys {sorted(document)}; allowed are format, version, messages")
        return cls(document["messages"])

    def save(self, path: str | Path) -> None:
        """Write to_json to `path`, whole or not at all."""
        path = Path(path)
        try:
            with whole_file(path) as beside:
                beside.write_text(self.to_json(), encoding="utf-8")
        except OSError as error:
            raise InputError(f"can't save the conversation to {path}: {error.strerror}; choose another place") from None

    @classmethod
    def load(cls, path: str | Path) -> Conversation:
        """Read what save wrote. Raises InputError if it can't be read or is not that."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise InputError(f"can't read the conversation {path}: {reason}; give a file saved by a chat") from None
        return cls.from_json(text)


@dataclass
class Window:
    """The part of `messages` that fits the context: the system message and the newest turns, whole."""

    messages: list[dict[str, Any]]
    encode: Callable[[list[dict[str, Any]]], list[int]]
    max_context: int
    common: Callable[[list[int]], int]  # length of the prefix that the KV cache holds
    on_event: Callable[[str], None]
    dropped: int = 0  # messages left out so far

    def tokens(self, answer: list[int]) -> list[int] | None:
        """Ids of the most messages that fit with the `answer` so far and one more token; None: the last turn does not.

        A window that leaves some room is preferred, or the next token slides it again: every slide prefills everything.
        But the one already in the KV cache costs nothing, however full.
        """
        starts = _turn_starts(self.messages)
        for start in starts:
            tokens = self.encode(self._from(start)) + answer
            free = self.max_context - len(tokens)
            roomy = free >= self.max_context // FREE_SHARE or self.common(tokens) > len(tokens) // 2
            if free >= 1 and (roomy or start in (starts[0], starts[-1])):
                if start - starts[0] > self.dropped:
                    self.dropped = start - starts[0]
                    self.on_event(f"context full: the oldest {self.dropped} messages are left out")
                return tokens
        return None

    def smallest(self) -> list[int]:
        """Ids of the system message and the last turn."""
        return self.encode(self._from(_turn_starts(self.messages)[-1]))

    def _from(self, start: int) -> list[dict[str, Any]]:
        return self.messages[: _turn_starts(self.messages)[0]] + self.messages[start:]


def _texts(content: Any) -> list[str] | None:
    """The texts of a content of texts and images, an image being a text, too: its path or data: URI. None: it is no such."""
    if not isinstance(content, list) or not content:
        return None
    kinds = {"text": {"type", "text"}, "image": {"type", "image"}}
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in kinds or set(part) != kinds[kind] or not isinstance(part[kind], str):
            return None
        texts.append(part[kind])
    return texts


def _turn_starts(messages: list[dict[str, Any]]) -> list[int]:
    """Indices where a turn starts: the first message that is not the system's, then every user message."""
    first = int(messages[0]["role"] == "system")
    return [first, *(i for i in range(first + 1, len(messages)) if messages[i]["role"] == "user")]
