"""Messages whose content is a list of texts and images, as the ecosystem writes them, and their prompt as ids.

    {"role": "user", "content": [{"type": "image", "image": "photo.jpg"}, {"type": "text", "text": "What is this?"}]}

An image is a path, the bytes of a file, a PIL image or a numpy array (pictures.open_picture). Where a message's texts hold
<|image_1|>, <|image_2|>, ... these say where its images go; else each goes where it stands in the list, on a line of its own.
Numbers count through the conversation, from 1 without a gap. In a content that is a plain string they are letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.text.chat import ChatFormat
from phi3mobile.text.tokenizer import Tokenizer

PLACEHOLDER = re.compile(r"<\|image_(\d+)\|>")


@dataclass(frozen=True)
class Picture:
    """A place in a content: the picture that `number` stands for."""

    number: int


@dataclass(frozen=True)
class Message:
    """A checked message: texts and pictures in order."""

    role: str
    parts: tuple[str | Picture, ...]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True)
class Seen:
    """A conversation with its pictures told apart: `images` are what the messages gave, number 1 first."""

    messages: tuple[Message, ...]
    images: tuple[Any, ...]


def has_images(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any message's content is a list with an image."""
    contents = (message.get("content") for message in messages if isinstance(message, Mapping))
    return any(
        isinstance(part, Mapping) and part.get("type") == "image"
        for content in contents
        if isinstance(content, list | tuple)
        for part in content
    )


def plain(messages: Sequence[Any]) -> list[Any]:
    """The messages with contents that are lists of texts joined; others stay as they are, to be refused or understood."""
    return [_joined(message) for message in messages]


def see(messages: Sequence[Mapping[str, Any]]) -> Seen:
    """Number the images of a conversation. InputError: a part that is neither text nor image, placeholders that don't fit."""
    images: list[Any] = []
    seen = [Message(message["role"], _parts(index, message["content"], images)) for index, message in enumerate(messages)]
    return Seen(tuple(seen), tuple(images))


def encode(
    chat: ChatFormat, tokenizer: Tokenizer, messages: Sequence[Message], ids_of: Callable[[int], list[int]]
) -> list[int]:
    """The prompt of `messages`: what chat.encode gives, cut at the pictures, with `ids_of(number)` between the pieces.

    Each piece is tokenized on its own, with the bos that the tokenizer itself puts before a text, as the model was trained.
    """
    mark = _unused(messages)
    marked = [
        {"role": m.role, "content": "".join(p if isinstance(p, str) else f"{mark}{p.number}{mark}" for p in m.parts)}
        for m in messages
    ]
    pieces: list[list[tuple[str, bool]]] = [[]]
    numbers: list[int] = []
    for text, trusted in chat.spans(marked, {*tokenizer.special_ids, mark}):
        before, *rest = re.split(f"{mark}(\\d+){mark}", text)
        pieces[-1].append((before, trusted))
        for number, after in zip(rest[::2], rest[1::2], strict=True):
            numbers.append(int(number))
            pieces.append([(after, trusted)])
    bos = list(tokenizer.around[0])
    ids: list[int] = []
    for piece, number in zip(pieces, [*numbers, None], strict=True):
        own = tokenizer.encode_spans(piece) if any(text for text, _ in piece) else []
        ids += [*bos, *own] if own[: len(bos)] != bos else own
        ids += [] if number is None else ids_of(number)
    return ids


def _parts(index: int, content: Any, images: list[Any]) -> tuple[str | Picture, ...]:
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, list | tuple) or not content:
        raise InputError(f"message {index} has {type(content).__name__} content; it is a text or a list of texts and images")
    before, placed = len(images), any(PLACEHOLDER.search(_text_of(part) or "") for part in content)
    parts: list[str | Picture] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts += _placed(part["text"]) if placed else [part["text"]]
        elif kind == "image" and part.get("image") is not None:
            images.append(part["image"])
            parts += [] if placed else [Picture(len(images)), "\n"]
        else:
            raise InputError(
                f'message {index} has the part {part!r:.80}; allowed are {{"type": "text", "text": ...}} and '
                '{"type": "image", "image": path, bytes, PIL image or array}'
            )
    if placed:
        _check_numbers(index, {part.number for part in parts if isinstance(part, Picture)}, before, len(images))
    return tuple(parts)


def _check_numbers(index: int, numbers: set[int], before: int, after: int) -> None:
    known = set(range(1, after + 1))
    if unknown := sorted(numbers - known):
        names = ", ".join(f"<|image_{n}|>" for n in unknown)
        raise InputError(f"message {index} says {names}, and the conversation has {after} images up to it: number them from 1")
    if unused := sorted(set(range(before + 1, after + 1)) - numbers):
        names = ", ".join(f"<|image_{n}|>" for n in unused)
        raise InputError(f"message {index} gives {after - before} images and never says {names}; place each, or none")


def _placed(text: str) -> list[str | Picture]:
    """A text cut at its placeholders."""
    first, *rest = PLACEHOLDER.split(text)
    parts: list[str | Picture] = [first]
    for number, after in zip(rest[::2], rest[1::2], strict=True):
        parts += [Picture(int(number)), after]
    return parts


def _text_of(part: Any) -> str | None:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    return text if isinstance(text, str) else None


def _joined(message: Any) -> Any:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list | tuple) or not content:
        return message
    texts = [_text_of(part) for part in content]
    return message if None in texts else {**message, "content": "".join(filter(None, texts))}


def _unused(messages: Sequence[Message]) -> str:
    """A private character that is in no content."""
    taken = set("".join(message.text for message in messages))
    return next(char for char in map(chr, range(0xE100, 0xF900)) if char not in taken)


def checked_messages(messages: Sequence[dict[str, Any]], sees: bool) -> list[dict[str, Any]]:
    """A copy of the messages, lists of texts joined where nobody sees pictures. Which roles may follow is the chat format's."""
    checked = list(messages)
    if not checked:
        raise InputError("there are no messages; give at least one user message")
    if not sees and has_images(checked):
        raise InputError("a picture was given, and this model reads text only: export a model that sees, or leave it out")
    checked = checked if sees else plain(checked)
    for index, message in enumerate(checked):
        content = message.get("content") if isinstance(message, dict) else None
        if (
            content is None
            or not isinstance(message.get("role"), str)
            or not isinstance(content, str | (list if sees else str))
        ):
            raise InputError(f"message {index} is {message!r:.80}; it must be a dict with the texts role and content")
    if checked[-1]["role"] == "user" and isinstance(last := checked[-1]["content"], str) and not last.strip():
        raise InputError("the prompt is empty: the last user message has no text; write one")
    return [dict(message) for message in checked]
