"""Chat templates: messages to the text and the ids a model was trained on.

A template is Jinja (rendered in a sandbox: it comes with a downloaded checkpoint) and, where it is regular enough,
also a few plain strings, the *segments*, which SDKs without Jinja join:

    bos            always first
    default_system next, if the first message is not a system message (SmolLM2 introduces itself so); often ""
    system, user, assistant   [prefix, suffix] around each content; null: the template refuses or ignores that role
    trim           roles whose content loses the whitespace around it (Unicode's, as Python's str.strip); absent: none
    drop_empty_system         true: system messages with empty content are left out before anything else
    generation     last

Messages are {"role": "system" | "user" | "assistant", "content": str}; the last one is the user's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3mobile.errors import InputError

if TYPE_CHECKING:
    import jinja2

    from phi3mobile.text.tokenizer import Tokenizer

Messages = list[dict[str, str]]
Segments = dict[str, Any]
ROLES = ("system", "user", "assistant")

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
        found = _segments(self)
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
            suffix = _common(after, self._around(asked, len(messages) - 1)[1])
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
        try:
            return _compile(self.template).render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos,
                eos_token=self.eos,
                tools=None,
                documents=None,
            )
        except InputError:
            raise
        except Exception as error:  # the template is foreign code: whatever it raises is the input's fault
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"the chat template refuses these messages: {reason}") from error


def render_segments(segments: Segments, messages: Messages) -> str:
    """The text of ChatFormat.render(messages), from the template's segments alone."""
    check_messages(messages)
    return "".join(text for text, _ in _spans(segments, messages))


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
    _compile(template)
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


def _spans(segments: Segments, messages: Messages) -> list[tuple[str, bool]]:
    """(text, trusted) in order: the template's own text is trusted, contents are not."""
    if segments["drop_empty_system"]:
        messages = [m for m in messages if m["role"] != "system" or m["content"]]
    spans = [(segments["bos"], True)]
    if messages[0]["role"] != "system":
        spans.append((segments["default_system"], True))
    for message in messages:
        if segments[message["role"]] is None:
            raise InputError(f"this chat template has no {message['role']!r} role; leave such messages out")
        prefix, suffix = segments[message["role"]]
        trimmed = message["role"] in segments.get("trim", ())
        spans += [(prefix, True), (message["content"].strip() if trimmed else message["content"], False), (suffix, True)]
    return [*spans, (segments["generation"], True)]


def _forms(content: str) -> tuple[str, ...]:
    """A content as templates may show it."""
    return content, content.rstrip(), content.lstrip(), content.strip()


def _unused(messages: Messages) -> str:
    """A private character that is in no content."""
    taken = set("".join(message["content"] for message in messages))
    return next(char for char in map(chr, range(0xE000, 0xF900)) if char not in taken)


@lru_cache(maxsize=16)
def _segments(chat: ChatFormat) -> Segments | None:
    if "strftime_now" in chat.template:  # today's date would be frozen into the strings
        return None
    # Private-use texts stand for contents, bos and eos: each can be found again, none shares letters with the template.
    system, user, assistant, bos, eos = (f"\ue000{i}\ue001" for i in range(5))
    marked = ChatFormat(chat.template, bos, eos)

    def around(*contents: str, generation: bool = True) -> list[str]:
        """The template's text before, between and after these contents."""
        roles = {system: "system", user: "user", assistant: "assistant"}
        text = marked._render([{"role": roles[c], "content": c} for c in contents], generation)
        parts = []
        for content in contents:
            before, text = text.split(content, 1)
            parts.append(before)
        return [*parts, text]

    try:
        before_user, after_user = around(user)
        _, ends_with_user = around(user, generation=False)
        _, to_assistant, ends_with_assistant = around(user, assistant, generation=False)
        _, _, to_user, _ = around(user, assistant, user)
        user_suffix = _common(after_user, ends_with_user)
        assistant_suffix = _common(to_user, ends_with_assistant)
        user_prefix = _after(to_user, assistant_suffix)
        start = _before(before_user, user_prefix)
        own_bos = bos if start.startswith(bos) else ""
        found: dict[str, Any] = {
            "bos": own_bos,
            "default_system": start.removeprefix(bos),
            "drop_empty_system": False,
            "system": None,
            "user": [user_prefix, user_suffix],
            "assistant": [_after(to_assistant, user_suffix), assistant_suffix],
            "generation": _after(after_user, user_suffix),
        }
    except (InputError, ValueError):
        return None
    try:
        before_system, system_to_user, _ = around(system, user)
    except (InputError, ValueError):
        pass  # refused or ignored: no system role
    else:
        if not system_to_user.endswith(user_prefix):
            return None
        found["system"] = [before_system.removeprefix(own_bos), system_to_user.removesuffix(user_prefix)]
        no_system = [{"role": "user", "content": user}]
        empty_system = [{"role": "system", "content": ""}, *no_system]
        found["drop_empty_system"] = marked._render(empty_system) == marked._render(no_system)
    if trim := [role for role in ROLES if found[role] is not None and _trims(marked, role)]:
        found["trim"] = trim
    text = json.dumps(found, ensure_ascii=False)
    segments = json.loads(text.replace(bos, _inside(chat.bos)).replace(eos, _inside(chat.eos)))
    return segments if _agree(chat, segments) else None


def _trims(chat: ChatFormat, role: str) -> bool:
    """Whether a content of this role loses the whitespace around it."""
    content = " \n\ue002\t "
    order = {"system": ("system", "user"), "user": ("user",), "assistant": ("user", "assistant", "user")}[role]
    return content not in chat._render([{"role": other, "content": content if other == role else "x"} for other in order])


def _agree(chat: ChatFormat, segments: Segments) -> bool:
    """Whether template and segments give the same text on every order of up to four roles and on awkward contents."""
    contents = [" two  spaces ", "", "{{ x }}\n\n", "é 你好 🙂", "\tend\n", "\u3000wide\x85"]
    orders = [order for n in range(4) for order in product(ROLES, repeat=n)]
    orders += [("system", *("user", "assistant") * 3), ("user", "assistant") * 3]
    for shift, order in product(range(len(contents)), orders):
        if "system" in order and segments["system"] is None:
            continue
        messages = [{"role": role, "content": contents[(shift + i) % len(contents)]} for i, role in enumerate((*order, "user"))]
        try:
            expected = chat._render(messages)
        except InputError:
            continue  # an order the template refuses (roles must alternate): render refuses it too
        if render_segments(segments, messages) != expected:
            return False
    return True


def _common(a: str, b: str) -> str:
    """The longest text both start with."""
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]


def _after(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        raise ValueError(f"{text!r} does not start with {prefix!r}")
    return text.removeprefix(prefix)


def _before(text: str, suffix: str) -> str:
    if not text.endswith(suffix):
        raise ValueError(f"{text!r} does not end with {suffix!r}")
    return text.removesuffix(suffix)


def _inside(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _token_text(path: Path, name: str, token: object) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise InputError(f'{path}: {name} is {token!r}; allowed: a string, {{"content": string}} or null')
    return text or ""


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    """The template in an environment set up as transformers' (chat_template_utils): released ones work unchanged."""
    import datetime

    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks the assistant's tokens for training losses; in a prompt it means nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **({"ensure_ascii": False} | options))
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise InputError(f"the chat template is not valid Jinja: {' '.join(str(error).split())}") from error
