"""A conversation as the model is given it, in messages as session/content.py has them: an image is a file's path."""

from __future__ import annotations

from typing import Any

from phi3mobile.assistant.pictures import Picture
from phi3mobile.assistant.store import Message

CHARACTERS = 12  # no text has more of them per token, on average
PICTURE_TOKENS = 313  # of the smallest picture
TITLE_LENGTH = 40


def conversation(
    messages: list[Message], system_prompt: str = "", most: int | None = None, sees: bool = True
) -> list[dict[str, Any]]:
    """What the model is given: roles alternate, so a question that got no answer is asked with the next one.

    A content is a text, or a list of pictures and one text. `sees`: False leaves the pictures out. Old turns that can't fit
    (`most` characters; the session counts tokens) are left out here: counting them takes long.
    """
    turns: list[tuple[str, list[Picture], list[str]]] = []
    for message in messages:
        pictures, text = message.pictures if sees else (), message.content
        if not (pictures or text.strip()):
            continue
        if not turns or turns[-1][0] != message.role:
            turns.append((message.role, [], []))
        turns[-1][1].extend(pictures)
        turns[-1][2].extend([text] if text.strip() else [])
    history = [
        {"role": role, "content": with_pictures([str(picture.file) for picture in pictures], "\n\n".join(texts))}
        for role, pictures, texts in turns
    ]
    size = 0
    for index in range(len(turns) - 1, -1, -1):
        _, pictures, texts = turns[index]
        size += len("\n\n".join(texts)) + len(pictures) * PICTURE_TOKENS * CHARACTERS
        if most is not None and size > most and index < len(turns) - 1:
            rest = history[index + 1 :]
            history = rest[1:] if rest[0]["role"] == "assistant" and len(rest) > 1 else rest
            break
    if system_prompt.strip():
        history.insert(0, {"role": "system", "content": system_prompt.strip()})
    return history


def with_pictures(images: list[str], text: str) -> str | list[dict[str, str]]:
    """A content: the text, or images and the text below them."""
    if not images:
        return text
    return [*({"type": "image", "image": image} for image in images), *([{"type": "text", "text": text}] if text else [])]


def images_of(message: dict[str, Any]) -> list[str]:
    content = message["content"]
    return [] if isinstance(content, str) else [part["image"] for part in content if part["type"] == "image"]


def text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def title_of(question: str) -> str:
    """A conversation's name: the beginning of its first question, at a word's end; of pictures alone, their kind."""
    line = " ".join(question.split()) or "Picture"
    if len(line) <= TITLE_LENGTH:
        return line
    cut = line[:TITLE_LENGTH].rpartition(" ")[0] or line[:TITLE_LENGTH]
    return f"{cut}…"
