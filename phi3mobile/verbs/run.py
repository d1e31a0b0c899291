"""phi3mobile run BUNDLE PROMPT: answer one prompt."""

from __future__ import annotations

import argparse
import sys

from phi3mobile.errors import InputError
from phi3mobile.verbs.answering import add_guide_arguments, add_picture_arguments, add_sampling_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="folder made by `phi3mobile export`")
    parser.add_argument("prompt", help="the question; - reads it from stdin")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture to ask about (repeatable)")
    add_picture_arguments(parser)
    parser.add_argument("--raw", action="store_true", help="complete the prompt as text, without the chat template")
    parser.add_argument("--json", action="store_true", help="print one JSON object: text, sources and statistics")
    add_sampling_arguments(parser)
    add_guide_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from phi3mobile.retrieval.answer import NOTHING_FOUND
    from phi3mobile.screen import print_json
    from phi3mobile.verbs.answering import (
        guide_grammar,
        guided,
        look_up,
        messages_of,
        numbers,
        open_session,
        options_from,
        print_sources,
        show,
        source_lines,
        summary,
    )

    prompt = _stdin() if args.prompt == "-" else args.prompt
    if not prompt.strip():
        raise InputError("the prompt is empty; write some text")
    if args.library and args.raw:
        raise InputError("--library answers a question and --raw completes a text: leave one of them out")
    if args.image and args.raw:
        raise InputError("--image is shown in a chat and --raw completes a text: leave one of them out")
    grammar, options = guide_grammar(args), options_from(args)
    passages = look_up(args.library, prompt)
    if args.library and not passages:
        print_json({"text": NOTHING_FOUND, "sources": [], "statistics": {}}) if args.json else print(NOTHING_FOUND)
        return
    with open_session(args.bundle, args.experts_memory, args.num_crops) as session:
        options |= guided(grammar, session)
        if args.raw:
            pieces = session.complete(prompt, **options)
        else:
            system = [{"role": "system", "content": args.system}] if args.system else []
            pieces = session.generate(messages_of(prompt, passages, system, args.image), **options)
        if args.json:
            text = "".join(pieces)
            print_json(
                {"text": text, "sources": source_lines(passages), "statistics": numbers(session.statistics, session.experts)}
            )
            return
        show(pieces)
        print_sources(passages)
        print(summary(session.statistics), file=sys.stderr)


def _stdin() -> str:
    """All of stdin, less the newline that ends its last line."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"stdin is not UTF-8 text (byte {error.start}); convert it") from None
