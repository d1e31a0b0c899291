"""What run, chat and demo share: sampling flags, an opened session, a streamed answer, its numbers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3mobile.errors import InputError

if TYPE_CHECKING:
    from phi3mobile.retrieval.library import Passage
    from phi3mobile.session.session import Session
    from phi3mobile.session.statistics import Statistics


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, default=512, help="of an answer (default: 512); 0: no limit")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop before this text (repeatable)")
    sampling = parser.add_argument_group("sampling", "default: as the model's checkpoint asks, else greedy")
    sampling.add_argument("--temperature", type=float, help="0: greedy")
    sampling.add_argument("--top-k", type=int, help="keep the k likeliest tokens; 0: all")
    sampling.add_argument("--top-p", type=float, help="keep the likeliest tokens that sum to p; 1: all")
    sampling.add_argument("--min-p", type=float, help="drop tokens below p times the likeliest; 0: none")
    sampling.add_argument("--repetition-penalty", type=float, help="above 1 discourages repeats (1.1 for models below 1e9)")
    sampling.add_argument("--seed", type=int, help="for the same samples again")
    parser.add_argument("--allow-repetition", action="store_true", help="do not end an answer that repeats itself for ever")
    parser.add_argument("--lookup", action="store_true", help="draft by quoting prompt and answer: same text, sooner")
    parser.add_argument("--experts-memory", metavar="BYTES", help="for a mixture's experts, such as 4GB; the others are read")


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-crops", type=int, help="of a picture at most: more for small print (default: the model's)")


def add_guide_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--library", type=Path, help="answer from documents: a file made by `phi3mobile index`")
    guides = parser.add_mutually_exclusive_group()
    guides.add_argument("--json-schema", metavar="FILE", help="answer with JSON that is valid under this JSON schema")
    parser.add_argument(
        "--additional-properties", action="store_true", help="let JSON objects have names that the schema does not declare"
    )
    guides.add_argument("--regex", metavar="PATTERN", help="answer with text that matches this regex as a whole")
    guides.add_argument("--grammar", metavar="FILE", help="answer with text of this Lark grammar (rule `start`)")


def options_from(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of Session.generate and .complete."""
    options = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    if args.library:  # what is quoted must not be drawn or slurred
        options = {"temperature": 0.0, "repetition_penalty": 1.0} | options
    limit = None if args.max_tokens == 0 else args.max_tokens
    return options | {"max_tokens": limit, "stop": args.stop, "lookup": args.lookup, "repetition": args.allow_repetition}


def open_session(path: str, experts_memory: str | None = None, num_crops: int | None = None) -> Session:
    """A session over a bundle, without the runtime's chatter. experts_memory: as the flag gives it."""
    from phi3mobile.quiet import quiet
    from phi3mobile.session.session import Session

    memory = None
    if experts_memory is not None:
        from phi3mobile.memory import parse_memory

        memory = parse_memory(experts_memory)
    with quiet():
        on_event = lambda event: print(f"[{event}]", file=sys.stderr)  # noqa: E731
        return Session(path, experts_memory=memory, num_crops=num_crops, on_event=on_event)


def show(pieces: Iterable[str]) -> str:
    """Print text as it comes; returns the whole."""
    text = ""
    for piece in pieces:
        text += piece
        print(piece, end="", flush=True)
    print(flush=True)
    return text


def look_up(path: Path | None, question: str) -> list[Passage]:
    """What a library says about the question: nothing means that the model is not asked."""
    if path is None:
        return []
    from phi3mobile.quiet import quiet
    from phi3mobile.retrieval.library import open_library

    with open_library(path) as library, quiet():
        return library.search(question, k=3)


def source_lines(passages: list[Passage]) -> list[str]:
    return [f"{passage.source}: {passage.location}" for passage in passages]


def print_sources(passages: list[Passage]) -> None:
    for number, line in enumerate(source_lines(passages), 1):
        print(f"[{number}] {line}", file=sys.stderr)


def messages_of(
    prompt: str, passages: list[Passage], before: list[dict[str, Any]], images: list[str] | None = None
) -> list[dict[str, Any]]:
    """What the model is asked: the prompt, grounded in the passages if there are any, below its images."""
    if passages:
        from phi3mobile.retrieval.answer import grounded_messages

        messages: list[dict[str, Any]] = grounded_messages(prompt, passages, before)
        if images:  # a document must not place pictures
            messages[-1] = messages[-1] | {"content": messages[-1]["content"].replace("<|image_", "<image_")}
    else:
        messages = [*before, {"role": "user", "content": prompt}]
    return [*messages[:-1], messages[-1] | {"content": content_of(messages[-1]["content"], images or [])}]


def content_of(text: str, images: list[str]) -> str | list[dict[str, str]]:
    """A message's content: the text, or images and text."""
    if not images:
        return text
    return [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]


def guide_grammar(args: argparse.Namespace) -> str | None:
    """What the answer must be, checked before the model is loaded."""
    if args.additional_properties and args.json_schema is None:
        raise InputError("--additional-properties is about --json-schema, which is not given; leave it out")
    if args.json_schema is None and args.regex is None and args.grammar is None:
        return None
    from phi3mobile.session.guidance import json_grammar, lark_grammar, regex_grammar

    if args.stop:
        raise InputError("--stop would cut an answer that is guided to be whole; leave one of them out")
    if args.regex is not None:
        return regex_grammar(args.regex)
    if args.grammar is not None:
        return lark_grammar(_file(args.grammar, "grammar"))
    return json_grammar(_file(args.json_schema, "JSON schema"), args.additional_properties)


def guided(grammar: str | None, session: Session) -> dict[str, Any]:
    """The argument of Session.generate and .complete that makes an answer follow `grammar`."""
    if grammar is None:
        return {}
    from phi3mobile.session.guidance import Guide

    return {"guide": Guide(grammar, session.parts.tokenizer)}


def _file(path: str, what: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"can't read the {what} {path}: {reason}; give a text file") from None


def summary(statistics: Statistics | None) -> str:
    """One answer's statistics on a line for people."""
    if statistics is None:
        return "[no answer yet]"
    s = statistics
    ends = {
        "stop": "ended by the model",
        "stop_string": "ended at a stop text",
        "length": "cut at the longest answer (--max-tokens)",
        "context_full": "cut: the context is full",
        "repetition": "ended: it repeated itself (--allow-repetition lets it)",
        "cancelled": "stopped",
        "error": "failed",
    }
    reused = f" ({s.reused_tokens} from the KV cache)" if s.reused_tokens else ""
    return (
        f"[{s.generated_tokens} tokens, {s.decode_tokens_per_s:.1f} tokens/s, first after {s.ttft_s:.2f} s; "
        f"prompt {s.prompt_tokens} tokens{reused}; {ends[s.finish_reason]}]"
    )


def numbers(statistics: Statistics | None, experts: dict[str, Any] | None = None) -> dict[str, object]:
    """One answer's statistics for the JSON line, and the experts' since they were opened; nothing if none has ended."""
    from dataclasses import asdict

    if statistics is None:
        return {}
    found = {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(statistics).items()}
    return found if experts is None else found | {"experts": experts}
