"""Conversations as every room of this package writes them."""

from __future__ import annotations

from phi3mobile.errors import InputError

Messages = list[dict[str, str]]
ROLES = ("system", "user", "assistant")


def check_messages(messages: Messages) -> None:
    """InputError unless `messages` is a conversation that waits for a reply."""
    if not isinstance(messages, list) or not messages:
        raise InputError('messages is empty or not a list; give at least {"role": "user", "content": "..."}')
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise InputError(f"message {i} has role {role!r}; allowed: {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise InputError(f'message {i} ({message["role"]}) needs a text "content"')
    if messages[-1]["role"] != "user":
        raise InputError(f"the last message is from {messages[-1]['role']!r}; it must be the user's")
