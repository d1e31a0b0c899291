"""phi3mobile run BUNDLE PROMPT: answer one prompt."""

from __future__ import annotations

import argparse
import sys

from phi3mobile.errors import InputError
from phi3mobile.verbs.answering import add_sampling_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="folder made by `phi3mobile export`")
    parser.add_argument("prompt", help="the question; - reads it from stdin")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--raw", action="store_true", help="complete the prompt as text, without the chat template")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from phi3mobile.screen import print_json
    from phi3mobile.verbs.answering import numbers, open_session, sampling_from, show

    prompt = _stdin() if args.prompt == "-" else args.prompt
    if not prompt.strip():
        raise InputError("the prompt is empty; write some text")
    options = {"sampling": sampling_from(args), "max_tokens": args.max_tokens, "stop": args.stop}
    with open_session(args.bundle) as session:
        if args.raw:
            show(session.complete(prompt, **options))
        else:
            system = [{"role": "system", "content": args.system}] if args.system else []
            show(session.generate([*system, {"role": "user", "content": prompt}], **options))
        print_json(numbers(session.statistics))


def _stdin() -> str:
    """All of stdin, less the newline that ends its last line."""
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"stdin is not UTF-8 text (byte {error.start}); convert it") from None
