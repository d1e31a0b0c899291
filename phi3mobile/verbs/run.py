"""phi3mobile run BUNDLE PROMPT: answer one prompt."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from phi3mobile.errors import InputError
from phi3mobile.verbs.answering import add_sampling_arguments

if TYPE_CHECKING:
    from phi3mobile.retrieval.library import Passage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="folder made by `phi3mobile export`")
    parser.add_argument("prompt", help="the question; - reads it from stdin")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--library", type=Path, help="answer from documents: a file made by `phi3mobile index`")
    parser.add_argument("--raw", action="store_true", help="complete the prompt as text, without the chat template")
    add_sampling_arguments(parser)
    guides = parser.add_mutually_exclusive_group()
    guides.add_argument("--json-schema", metavar="FILE", help="answer with JSON that is valid under this JSON schema")
    guides.add_argument("--regex", metavar="PATTERN", help="answer with text that matches this regex as a whole")
    guides.add_argument("--grammar", metavar="FILE", help="answer with text of this Lark grammar (rule `start`)")


def run(args: argparse.Namespace) -> None:
    from phi3mobile.screen import print_json
    from phi3mobile.verbs.answering import numbers, open_session, options_from, show

    prompt = _stdin() if args.prompt == "-" else args.prompt
    if not prompt.strip():
        raise InputError("the prompt is empty; write some text")
    if args.library and args.raw:
        raise InputError("--library answers a question and --raw completes a text: leave one of them out")
    passages = _look_up(args.library, prompt)
    if args.library and not passages:
        return
    grammar = _guide_grammar(args)
    options = options_from(args)
    with open_session(args.bundle) as session:
        if grammar:
            from phi3mobile.session.guidance import Guide

            options["guide"] = Guide(grammar, session.parts.tokenizer)
        if args.raw:
            show(session.complete(prompt, **options))
        else:
            system = [{"role": "system", "content": args.system}] if args.system else []
            show(session.generate(_messages(prompt, passages, system), **options))
        for number, passage in enumerate(passages, 1):
            print(f"[{number}] {passage.source}: {passage.location}")
        print_json(numbers(session.statistics))


def _look_up(path: Path | None, question: str) -> list[Passage]:
    """What a library says about the question; that it says nothing is printed."""
    if path is None:
        return []
    from phi3mobile.quiet import quiet
    from phi3mobile.retrieval.answer import NOTHING_FOUND
    from phi3mobile.retrieval.library import open_library

    with open_library(path) as library, quiet():
        passages = library.search(question, k=3)
    if not passages:
        print(NOTHING_FOUND, flush=True)
    return passages


def _messages(prompt: str, passages: list[Passage], system: list[dict[str, str]]) -> list[dict[str, str]]:
    if not passages:
        return [*system, {"role": "user", "content": prompt}]
    from phi3mobile.retrieval.answer import grounded_messages

    return grounded_messages(prompt, passages, system)


def _guide_grammar(args: argparse.Namespace) -> str | None:
    """What the answer must be, checked before the model is loaded."""
    if args.json_schema is None and args.regex is None and args.grammar is None:
        return None
    from phi3mobile.session.guidance import json_grammar, lark_grammar, regex_grammar

    if args.stop:
        raise InputError("--stop would cut an answer that is guided to be whole; leave one of them out")
    if args.regex is not None:
        return regex_grammar(args.regex)
    if args.grammar is not None:
        return lark_grammar(_file(args.grammar, "grammar"))
    return json_grammar(_file(args.json_schema, "JSON schema"))


def _file(path: str, what: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"can't read the {what} {path}: {reason}; give a text file") from None


def _stdin() -> str:
    """All of stdin, less the newline that ends its last line."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"stdin is not UTF-8 text (byte {error.start}); convert it") from None
