"""What run, chat and demo share: sampling flags, an opened session, a streamed answer, its numbers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phi3mobile.session.session import Session, Statistics


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, help="stop after so many (default: when the model stops)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop before this text (repeatable)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default)")
    parser.add_argument("--top-k", type=int, default=0, help="keep the k likeliest tokens; 0: all (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep the likeliest tokens that sum to p (default: 1)")
    parser.add_argument("--min-p", type=float, default=0.0, help="drop tokens below p times the likeliest (default: 0)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1 discourages repeats (default: 1)")
    parser.add_argument("--lookup", action="store_true", help="draft by quoting prompt and answer: same text, sooner")
    parser.add_argument("--seed", type=int, help="for the same samples again")


def options_from(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of Session.generate and .complete."""
    from phi3mobile.session.sampling import Sampling

    penalty = args.repetition_penalty
    return {
        "sampling": Sampling(args.temperature, args.top_k, args.top_p, args.min_p, penalty, args.seed),
        "max_tokens": args.max_tokens,
        "stop": args.stop,
        "lookup": args.lookup,
    }


def open_session(path: str) -> Session:
    """A session over a bundle, without the runtime's chatter."""
    from phi3mobile.quiet import quiet
    from phi3mobile.session.session import Session

    with quiet():
        return Session(path, on_event=lambda event: print(f"[{event}]", file=sys.stderr))


def show(pieces: Iterable[str]) -> str:
    """Print text as it comes; returns the whole."""
    text = ""
    for piece in pieces:
        text += piece
        print(piece, end="", flush=True)
    print(flush=True)
    return text


def numbers(statistics: Statistics | None) -> dict[str, object]:
    """One answer's statistics for the JSON line; nothing if none has ended."""
    from dataclasses import asdict

    if statistics is None:
        return {}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(statistics).items()}
