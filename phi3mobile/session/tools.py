"""Tool calls: functions that an answer may ask for, told in the prompt, read from the answer.

    tools = [{"name": "weather", "description": "Today's weather of a town.",
              "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}}]

phi-4-mini was trained with tools between two control tokens of its own; other models get a description in words. An answer is a
call if the whole of it is JSON: {"name", "arguments"}, or a list of such. Results go back as messages of the role "tool".
phi3mobile/core/src/session/tools.cpp says and reads the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phi3mobile.errors import InputError

CONTROL = "<|tool|>", "<|/tool|>"  # phi-4-mini's, around the list of tools
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_MARKED = "functools"  # some checkpoints of phi-4-mini put it before their calls
_SPACE = " \t\r\n"
_MOST = 8  # calls of one answer
_TOLD = (
    "You can call functions. These are known, each with a JSON schema of its arguments:\n{tools}\n"
    'To call one, answer with nothing but {{"name": "...", "arguments": {{...}}}}, or with a list of such to call several. '
    "What they give is told in the next message. Where no function is needed, answer in words."
)


@dataclass(frozen=True)
class ToolCall:
    """A function that an answer asks for."""

    name: str
    arguments: dict[str, Any]


class Tools:
    """The tools of one request. Raises InputError for names that are none or stand there twice, and for wrong schemas."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        if not isinstance(tools, list | tuple) or not tools:
            raise InputError('tools is empty or no list; give at least {"name": "...", "parameters": {...}}, or leave it out')
        self._tools = [_checked(tool, index) for index, tool in enumerate(tools)]
        self.names = [tool["name"] for tool in self._tools]
        if twice := next((name for name in self.names if self.names.count(name) > 1), None):
            raise InputError(f"two tools have the name {twice!r}: give each its own")

    def told(self, messages: Sequence[dict[str, Any]], *, system: bool, control: bool) -> tuple[list[dict[str, Any]], str]:
        """The messages with the tools in the system message and results as the user's, and the mark (see `spans`).

        system: the chat template has a system role; else the first message is told. control: the vocabulary has CONTROL.
        """
        told = results_as_messages(messages)
        listed = json.dumps(self._tools, ensure_ascii=False)
        mark = _unused(told) if control else ""
        words = f"{mark}{listed}{mark}" if control else _TOLD.format(tools=listed)
        between = "" if control else "\n\n"
        if told[0]["role"] == "system" or not system:
            first, content = told[0], told[0]["content"]
            parts = [content, words] if first["role"] == "system" else [words, content]
            told[0] = {**first, "content": between.join(part for part in parts if part)}
        else:
            told.insert(0, {"role": "system", "content": words})
        return told, mark

    def grammar(self) -> str:
        """llguidance's grammar of an answer: words, or calls with valid arguments. Raises InputError for a wrong schema."""
        from phi3mobile.session.guidance import lark_grammar
        from phi3mobile.session.schema import OPTIONS, followed

        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": tool["name"]}, "arguments": tool["parameters"]},
                "required": ["name", "arguments"],
            }
            for tool in self._tools
        ]
        call = followed(calls[0] if len(calls) == 1 else {"anyOf": calls})
        # A schema's definitions belong to its root.
        definitions = {"$defs": call.pop("$defs")} if "$defs" in call else {}
        one = json.dumps({**call, **definitions, "x-guidance": OPTIONS})
        several = {"type": "array", "items": call, "minItems": 1, "maxItems": _MOST}
        return lark_grammar(
            f"start: WORDS | LEAD one | LEAD several\n"
            f"LEAD: /[ \\t\\r\\n]*({_MARKED})?[ \\t\\r\\n]*/\n"
            f"WORDS: /(?s:.*)/ & ~/[ \\t\\r\\n]*({_MARKED})?[ \\t\\r\\n]*[\\[{{](?s:.*)/\n"
            f"one: %json {one}\nseveral: %json {json.dumps({**several, **definitions, 'x-guidance': OPTIONS})}\n"
        )

    def read(self, text: str) -> tuple[ToolCall, ...]:
        """The calls that a whole answer is; () if it is none."""
        body = text.strip(_SPACE).removeprefix(_MARKED)
        try:
            value = json.loads(body, parse_constant=_no_number)
        except (ValueError, RecursionError):
            return ()
        calls = []
        for call in value if isinstance(value, list) else [value]:
            arguments = call.get("arguments", call.get("parameters")) if isinstance(call, dict) else None
            if not isinstance(arguments, dict) or call.get("name") not in self.names:
                return ()
            calls.append(ToolCall(call["name"], arguments))
        return tuple(calls)


class CallGate:
    """Lets an answer in words through, and keeps back what may be a call."""

    def __init__(self) -> None:
        self._held = ""
        self.opened = False  # the answer is words

    def push(self, text: str) -> str:
        """The text that may be shown now."""
        if self.opened:
            return text
        self._held += text
        start = self._held.lstrip(_SPACE)
        if start[:1] in ("", "[", "{") or start.startswith(_MARKED) or _MARKED.startswith(start):
            return ""
        self.opened = True
        return self.finish()

    def finish(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held


def spans(parts: Iterable[tuple[str, bool]], mark: str) -> list[tuple[str, bool]]:
    """(text, trusted) parts in which the first mark has become <|tool|> and the second <|/tool|>, trusted."""
    found: list[tuple[str, bool]] = []
    marks = iter(CONTROL)
    for text, trusted in parts:
        for index, piece in enumerate(text.split(mark)):
            if index:
                found.append((next(marks), True))
            found.append((piece, trusted))
    return found


def results_as_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with what functions gave told as the user's. InputError: a result without a name, or one that is no text."""
    told: list[dict[str, Any]] = []
    result_before = False
    for index, message in enumerate(messages):
        result = message["role"] == "tool"
        if not result:
            told.append(message)
        else:
            if not isinstance(message.get("name"), str) or not isinstance(message["content"], str):
                raise InputError(
                    f"message {index} is a tool's result without a name or a text; "
                    'give {"role": "tool", "name": "...", "content": "..."}'
                )
            text = f"Result of {message['name']}: {message['content']}"
            if result_before:
                told[-1] = {"role": "user", "content": f"{told[-1]['content']}\n{text}"}
            else:
                told.append({"role": "user", "content": text})
        result_before = result
    return told


def _checked(tool: Any, index: int) -> dict[str, Any]:
    """name, description and parameters of a tool, given so or in OpenAI's form."""
    if isinstance(tool, Mapping) and tool.get("type") == "function" and isinstance(tool.get("function"), Mapping):
        tool = tool["function"]
    name = tool.get("name") if isinstance(tool, Mapping) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"tool {index} has the name {name!r:.80}; it must be letters, digits, _ . or -, at most 64, no digit first"
        )
    if unknown := sorted(set(tool) - {"name", "description", "parameters"}):
        raise InputError(f"the tool {name} has {', '.join(map(str, unknown))}; allowed are name, description and parameters")
    description, parameters = tool.get("description", ""), tool.get("parameters", {"type": "object", "properties": {}})
    if not isinstance(description, str) or not isinstance(parameters, Mapping):
        raise InputError(f"the tool {name} needs a text as its description and a JSON schema object as its parameters")
    return {"name": name, "description": description, "parameters": dict(parameters)}


def _unused(messages: Sequence[dict[str, Any]]) -> str:
    """A private character that is in no content."""
    taken = set("".join(message["content"] for message in messages if isinstance(message["content"], str)))
    return next(char for char in map(chr, range(0xF8FF, 0xE000, -1)) if char not in taken)


def _no_number(text: str) -> Any:
    raise ValueError(text)
