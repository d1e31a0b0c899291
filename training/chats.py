"""Conversations and preferences as token documents, of which only the assistant's part is learned.

The ids are exactly those of inference: what precedes an answer is encoded as the session encodes a prompt, control text inside
a content stays plain text, and the answer is learned together with its stop token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.text.chat import KNOWN_TEMPLATES, ChatFormat, load_chat
from phi3mobile.text.messages import Messages
from phi3mobile.text.tokenizer import Tokenizer
from phi3mobile.text.vocabularies import load_tokenizer
from phi3mobile.training.batches import Document
from phi3mobile.training.config import Chats
from phi3mobile.training.data.jsonl import json_lines


class ChatEncoder:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormat) -> None:
        self.tokenizer, self.chat = tokenizer, chat

    def answers(self, messages: Messages) -> list[Document]:
        """A conversation as one document in which every assistant turn is learned.

        Where ids merge over a turn's border, so that a later prompt does not begin with the earlier ids, each turn is a
        document of its own. InputError for a conversation without an assistant turn.
        """
        documents: list[Document] = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.prompt(messages[:index])
            learned = [False] * len(prompt)
            if documents and prompt[: len(documents[-1].tokens)] == list(documents[-1].tokens):
                earlier = documents.pop().learned or []
                learned[: len(earlier)] = earlier
            answer, stop = self._answer(messages[: index + 1], prompt)
            documents.append(Document(prompt + answer, learned + [i < stop for i in range(len(answer))]))
        if not documents:
            raise InputError("a conversation has no assistant turn: there is nothing to learn")
        return documents

    def pair(self, messages: Messages, chosen: str, rejected: str) -> list[Document]:
        """A preference as two documents, chosen first; only the answers are learned."""
        prompt = self.prompt(messages)
        sides = []
        for text in (chosen, rejected):
            answer, stop = self._answer([*messages, {"role": "assistant", "content": text}], prompt)
            sides.append(Document(prompt + answer[:stop], [False] * len(prompt) + [True] * stop))
        return sides

    def prompt(self, messages: Messages) -> list[int]:
        """Ids that the session would prefill."""
        return self.chat.encode(self.tokenizer, messages)

    def _answer(self, messages: Messages, prompt: list[int]) -> tuple[list[int], int]:
        """Ids after the prompt: content, stop token and what the template adds; and how many of them are learned."""
        content, suffix = self.chat.answer(messages)
        ahead = self.chat.spans(messages[:-1], self.tokenizer.special_ids)
        whole = self.tokenizer.encode_spans([*ahead, (content, False), (suffix, True)])
        if whole[: len(prompt)] == prompt:
            answer = whole[len(prompt) :]
        else:  # ids merge over the border: the session would have generated the content by itself
            answer = self.tokenizer.encode(content, special=False) + self.tokenizer.encode(suffix)
        control = set(self.tokenizer.special_ids.values())
        stop = next((i + 1 for i, token in enumerate(answer) if token in control), len(answer))
        return answer, stop


def open_encoder(folder: str | Path, template: str = "") -> ChatEncoder:
    """Tokenizer and template of a checkpoint folder; `template` names one of chat.KNOWN_TEMPLATES instead."""
    tokenizer = load_tokenizer(Path(folder))
    if not template:
        return ChatEncoder(tokenizer, load_chat(Path(folder)))
    if template not in KNOWN_TEMPLATES:
        raise InputError(f"data: template {template!r}; known are {', '.join(KNOWN_TEMPLATES)}")
    bos_eos = ("", "") if not (Path(folder) / "tokenizer_config.json").is_file() else _bos_eos(Path(folder), template)
    return ChatEncoder(tokenizer, ChatFormat(KNOWN_TEMPLATES[template], *bos_eos))


def conversations(chats: Chats, encoder: ChatEncoder, length: int) -> list[list[Document]]:
    """Units for batches.pack. InputError: a damaged line, a conversation longer than `length`, no line at all."""
    units = []
    for where, line in read_lines(chats.files):
        messages = _messages(where, line)
        for document in _named(where, lambda messages=messages: encoder.answers(messages)):
            _fits(where, [document], length)
            units.append([document])
    return _some(units, chats)


def preferences(chats: Chats, encoder: ChatEncoder, length: int) -> list[list[Document]]:
    """As `conversations`, of {"messages", "chosen", "rejected"}; both sides of a pair share a row."""
    units = []
    for where, line in read_lines(chats.files):
        messages, sides = _messages(where, line), [line.get("chosen"), line.get("rejected")]
        if not all(isinstance(side, str) for side in sides) or sides[0] == sides[1]:
            raise InputError(f'{where}: "chosen" and "rejected" must be two different texts')
        pair = _named(where, lambda messages=messages, sides=sides: encoder.pair(messages, *sides))
        _fits(where, pair, length)
        units.append(pair)
    return _some(units, chats)


def read_lines(files: Iterable[str | Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(FILE:LINE, object) of every line of jsonl files."""
    for file in files:
        for number, line in json_lines(file):
            yield f"{file}:{number}", line


def _messages(where: str, line: dict[str, Any]) -> Messages:
    messages = line.get("messages")
    good = (
        isinstance(messages, list)
        and messages
        and all(
            isinstance(m, dict) and m.get("role") in ("system", "user", "assistant") and isinstance(m.get("content"), str)
            for m in messages
        )
    )
    if not good:
        raise InputError(f'{where}: "messages" must be a list of {{"role": system, user or assistant, "content": text}}')
    return messages


def _named(where: str, make: Any) -> list[Document]:
    try:
        return make()
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _fits(where: str, documents: list[Document], length: int) -> None:
    if (size := sum(len(document.tokens) for document in documents)) > length:
        raise InputError(f"{where} has {size} tokens, a row {length}; raise batch.length or leave it out")


def _some(units: list[list[Document]], chats: Chats) -> list[list[Document]]:
    if not units:
        raise InputError(f"no example in {', '.join(map(str, chats.files)) or 'data.files (it is empty)'}")
    return units


def _bos_eos(folder: Path, template: str) -> tuple[str, str]:
    chat = load_chat(folder, template)
    return chat.bos, chat.eos
