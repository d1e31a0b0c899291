"""Chat templates: messages to the text and the ids a model was trained on.

A template is Jinja (template.py) and, where it is regular enough, also a few plain strings (segments.py).
Messages are {"role": "system" | "user" | "assistant", "content": str}; the last one is the user's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3mobile.errors import InputError
from phi3mobile.text.messages import Messages, check_messages
from phi3mobile.text.segments import Segments, common, segments_of
from phi3mobile.text.template import compiled, rendered

if TYPE_CHECKING:
    from phi3mobile.text.tokenizer import Tokenizer

_END = "{{ '<|assistant|>\\n' if add_generation_prompt else eos_token }}"
_TURN = "{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}"
KNOWN_TEMPLATES: dict[str, str] = {
    "phi-3": "{% for message in messages %}" + _TURN + "{% endfor %}" + _END,
    "phi-3.5": ("{% for message in messages if message.role != 'system' or message.content %}" + _TURN + "{% endfor %}" + _END),
    # Trained without a system turn and with the reply's tag as part of the user's turn, so there is no generation part.
    "phi-3-medium": (
        "{% for message in messages %}"
        "{% if message.role == 'user' %}{{ '<|user|>\\n' + message.content + '<|end|>\\n<|assistant|>\\n' }}"
        "{% elif message.role == 'assistant' %}{{ message.content + '<|end|>\\n' }}"
        "{% else %}{{ raise_exception('phi-3-medium has no ' + message.role + ' role') }}{% endif %}"
        "{% endfor %}"
    ),
    "phi-3-small": "{{ bos_token }}{% for message in messages %}" + _TURN + "{% endfor %}" + _END,
    "phi-4-mini": (
        "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}"
        "{{ '<|assistant|>' if add_generation_prompt else eos_token }}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
        "{% endfor %}"
        "{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"
    ),
}


@dataclass(frozen=True)
class ChatFormat:
    """A Jinja chat template with the bos and eos texts it may use ("" where the tokenizer has none)."""

    template: str
    bos: str = ""
    eos: str = ""

    def render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """The conversation as text, ready for the reply. InputError for messages that the template can't take."""
        check_messages(messages)
        text = self._render(messages, add_generation_prompt)
        for message in messages:
            if message["role"] == "system" and message["content"].strip() not in text:
                raise InputError("this chat template ignores system messages: put the text into a user message")
        return text

    def segments(self) -> Segments | None:
        """The template as plain strings (see the module's text), verified on conversations; None: it is not regular."""
        found = segments_of(self.template, self.bos, self.eos)
        return json.loads(json.dumps(found))  # a copy: the cached one stays as it is

    def encode(self, tokenizer: Tokenizer, messages: Messages) -> list[int]:
        """Ids of render(messages), where control-token text inside a content is plain text.

        Contents without such text give exactly tokenizer.encode(render(messages)). A template that changes contents, so
        that its own text can't be told from theirs, takes no such contents: an InputError.
        """
        return tokenizer.encode_spans(self.spans(messages, tokenizer.special_ids))

    def spans(self, messages: Messages, control: Iterable[str]) -> list[tuple[str, bool]]:
        """render(messages) as (text, trusted) in order: the template's text is trusted, a content that spells one of the
        `control` texts is not. InputError where the template changes such a content."""
        text = self.render(messages)
        risky = {i: c for i, m in enumerate(messages) for c in control if c in m["content"]}
        # Where every content can be told apart, halves of control texts are harmless, too.
        for marked in (range(len(messages)), risky):
            if spans := self._told_apart(messages, text, marked):
                return spans
        index, found = min(risky.items())
        raise InputError(
            f"{messages[index]['role']} message contains {found!r}, a control token of this model, and its chat "
            "template can't keep the two apart: remove it"
        )

    def answer(self, messages: Messages) -> tuple[str, str]:
        """(content, suffix): how the template shows the last message, the assistant's, and what it writes after it."""
        before, after = self._around(messages)
        asked = [*messages, {"role": "user", "content": "?"}]
        try:
            suffix = common(after, self._around(asked, len(messages) - 1)[1])
        except InputError:  # no other turn may follow
            suffix = after
        text = self._render(messages, add_generation_prompt=False)
        shown = next((shown for shown in _forms(messages[-1]["content"]) if before + shown + after == text), None)
        if shown is None:
            raise InputError("this chat template changes the assistant's content: name another one with data.template")
        return shown, suffix

    def _around(self, messages: Messages, index: int = -1) -> tuple[str, str]:
        """The text before and after the content of one message, without a generation prompt."""
        copy = list(messages)
        mark = _unused(messages)
        copy[index] = {**copy[index], "content": mark}
        before, found, after = self._render(copy, add_generation_prompt=False).partition(mark)
        if not found or mark in after:
            raise InputError("this chat template shows a content not at all or twice: name another one with data.template")
        return before, after

    def _told_apart(self, messages: Messages, text: str, marked: Iterable[int]) -> list[tuple[str, bool]] | None:
        """`text`, the rendered messages, as (part, trusted): the contents of the `marked` messages are not trusted.

        None if the template does not show these contents as they are, or trimmed.
        """
        contents = {i: messages[i]["content"] for i in marked if messages[i]["content"].strip()}
        mark = _unused(messages)
        marks = {i: f"{mark}{i}{mark}" for i in contents}
        try:
            copy = self._render([{**m, "content": marks.get(i, m["content"])} for i, m in enumerate(messages)])
        except InputError:
            return None
        first, *pieces = re.split(f"{mark}([0-9]+){mark}", copy)
        spans, rest = [(first, True)], text.removeprefix(first)
        if len(rest) + len(first) != len(text):
            return None
        for index, piece in zip(map(int, pieces[::2]), pieces[1::2], strict=True):
            forms = _forms(contents.get(index, ""))
            shown = next((shown for shown in forms if rest.startswith(shown + piece)), None)
            if shown is None:
                return None
            spans += [(shown, False), (piece, True)]
            rest = rest[len(shown) + len(piece) :]
        return None if rest else spans

    def _render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        return rendered(self.template, self.bos, self.eos, messages, add_generation_prompt)


def load_chat(folder: Path, family: str | None = None) -> ChatFormat:
    """The chat format of a checkpoint folder: chat_template.jinja, else "chat_template" in tokenizer_config.json.

    `family` names the template of KNOWN_TEMPLATES to use where the folder has none (see guess_template).
    """
    if family is not None and family not in KNOWN_TEMPLATES:
        raise InputError(f"unknown chat family {family!r}; allowed: {', '.join(KNOWN_TEMPLATES)}")
    path = Path(folder) / "tokenizer_config.json"
    config: dict[str, Any] = {}
    if path.is_file():
        try:
            config = dict(json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: not a JSON object ({error}); download it again") from error
    bos, eos = (_token_text(path, name, config.get(name)) for name in ("bos_token", "eos_token"))
    if any(Path(folder).glob("*.tiktoken")):  # phi-3-small's tokenizer class names both itself
        bos, eos = bos or "<|endoftext|>", eos or "<|endoftext|>"

    jinja_file = Path(folder) / "chat_template.jinja"
    template = jinja_file.read_text("utf-8") if jinja_file.is_file() else config.get("chat_template")
    if isinstance(template, list):  # several by name
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    if template is None and family is not None:
        template = KNOWN_TEMPLATES[family]
    if not isinstance(template, str):
        raise InputError(
            f'{folder}: no chat template; add chat_template.jinja or a "chat_template" in tokenizer_config.json, '
            f"or name a family: {', '.join(KNOWN_TEMPLATES)}"
        )
    compiled(template)
    return ChatFormat(template, bos, eos)


def guess_template(tokenizer: Tokenizer) -> str:
    """The name in KNOWN_TEMPLATES that fits the control tokens, for a GGUF or folder without a template.

    phi-3, 3.5 and medium share one vocabulary: they are all taken for phi-3.
    """
    by_end = {32007: "phi-3", 100266: "phi-3-small", 200020: "phi-4-mini"}
    name = by_end.get(tokenizer.special_ids.get("<|end|>", -1))
    if name is None and {"<|im_start|>", "<|im_end|>"} <= tokenizer.special_ids.keys():
        name = "chatml"
    if name is None:
        raise InputError(
            "no chat template is known for this vocabulary (it has neither Phi-3's <|end|> nor ChatML's <|im_start|> "
            "and <|im_end|>): add a chat_template.jinja beside the tokenizer"
        )
    return name


def _token_text(path: Path, name: str, token: object) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise InputError(f'{path}: {name} is {token!r}; allowed: a string, {{"content": string}} or null')
    return text or ""


def _forms(content: str) -> tuple[str, ...]:
    """A content as templates may show it."""
    return content, content.rstrip(), content.lstrip(), content.strip()


def _unused(messages: Messages) -> str:
    """A private character that is in no content."""
    taken = set("".join(message["content"] for message in messages))
    return next(char for char in map(chr, range(0xE000, 0xF900)) if char not in taken)
