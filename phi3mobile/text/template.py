"""Chat templates in Jinja, rendered in a sandbox: they come with downloaded checkpoints."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from phi3mobile.errors import InputError
from phi3mobile.text.messages import Messages

if TYPE_CHECKING:
    import jinja2


def rendered(template: str, bos: str, eos: str, messages: Messages, add_generation_prompt: bool = True) -> str:
    """The messages as the template writes them. InputError where it refuses them, in its own words."""
    try:
        return compiled(template).render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=bos,
            eos_token=eos,
            tools=None,
            documents=None,
        )
    except InputError:
        raise
    except Exception as error:  # the template is foreign code: whatever it raises is the input's fault
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the chat template refuses these messages: {reason}") from error


@lru_cache(maxsize=16)
def compiled(template: str) -> jinja2.Template:
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
