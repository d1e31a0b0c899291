"""Chat templates as plain strings, which SDKs without Jinja join:

bos            always first
default_system next, if the first message is not a system message (SmolLM2 introduces itself so); often ""
system, user, assistant   [prefix, suffix] around each content; null: the template refuses or ignores that role
trim           roles whose content loses the whitespace around it (Unicode's, as Python's str.strip); absent: none
drop_empty_system         true: system messages with empty content are left out before anything else
generation     last
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import product
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.text.messages import ROLES, Messages, check_messages
from phi3mobile.text.template import rendered

Segments = dict[str, Any]
Render = Callable[..., str]  # of messages, and whether a generation prompt is added


def render_segments(segments: Segments, messages: Messages) -> str:
    """The text of ChatFormat.render(messages), from the template's segments alone."""
    check_messages(messages)
    return "".join(text for text, _ in joined(segments, messages))


def joined(segments: Segments, messages: Messages) -> list[tuple[str, bool]]:
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


@lru_cache(maxsize=16)
def segments_of(template: str, bos_text: str, eos_text: str) -> Segments | None:
    """The template as plain strings, verified on conversations; None: it is not regular."""
    if "strftime_now" in template:  # today's date would be frozen into the strings
        return None
    # Private-use texts stand for contents, bos and eos: each can be found again, none shares letters with the template.
    system, user, assistant, bos, eos = (f"\ue000{i}\ue001" for i in range(5))
    marked = partial(rendered, template, bos, eos)

    def around(*contents: str, generation: bool = True) -> list[str]:
        """The template's text before, between and after these contents."""
        roles = {system: "system", user: "user", assistant: "assistant"}
        text = marked([{"role": roles[c], "content": c} for c in contents], generation)
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
        user_suffix = common(after_user, ends_with_user)
        assistant_suffix = common(to_user, ends_with_assistant)
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
        found["drop_empty_system"] = marked(empty_system) == marked(no_system)
    if trim := [role for role in ROLES if found[role] is not None and _trims(marked, role)]:
        found["trim"] = trim
    text = json.dumps(found, ensure_ascii=False)
    segments = json.loads(text.replace(bos, _inside(bos_text)).replace(eos, _inside(eos_text)))
    return segments if _agree(partial(rendered, template, bos_text, eos_text), segments) else None


def _trims(render: Render, role: str) -> bool:
    """Whether a content of this role loses the whitespace around it."""
    content = " \n\ue002\t "
    order = {"system": ("system", "user"), "user": ("user",), "assistant": ("user", "assistant", "user")}[role]
    return content not in render([{"role": other, "content": content if other == role else "x"} for other in order])


def _agree(render: Render, segments: Segments) -> bool:
    """Whether template and segments give the same text on every order of up to four roles and on awkward contents."""
    contents = [" two  spaces ", "", "{{ x }}\n\n", "é 你好 🙂", "\tend\n", "\u3000wide\x85"]
    orders = [order for n in range(4) for order in product(ROLES, repeat=n)]
    orders += [("system", *("user", "assistant") * 3), ("user", "assistant") * 3]
    for shift, order in product(range(len(contents)), orders):
        if "system" in order and segments["system"] is None:
            continue
        messages = [{"role": role, "content": contents[(shift + i) % len(contents)]} for i, role in enumerate((*order, "user"))]
        try:
            expected = render(messages)
        except InputError:
            continue  # an order the template refuses (roles must alternate): render refuses it too
        if render_segments(segments, messages) != expected:
            return False
    return True


def common(a: str, b: str) -> str:
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
