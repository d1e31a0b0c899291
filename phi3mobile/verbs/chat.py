"""phi3mobile chat BUNDLE: talk to a bundle; Ctrl-C stops an answer, Ctrl-D ends."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from phi3mobile.errors import InputError
from phi3mobile.verbs.answering import add_sampling_arguments

if TYPE_CHECKING:
    from phi3mobile.session import Session

HELP = "/reset forgets the conversation, /undo the last turn, /stats shows the last answer's numbers, /exit ends"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="folder made by `phi3mobile export`")
    parser.add_argument("--system", help="system message")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from phi3mobile.conversation import Conversation
    from phi3mobile.verbs.answering import numbers, open_session, sampling_from

    conversation = Conversation()
    if args.system:
        conversation.say("system", args.system)
    options = {"sampling": sampling_from(args), "max_tokens": args.max_tokens, "stop": args.stop, "overflow": "slide"}
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history where the platform has it
    with open_session(args.bundle) as session:
        print(HELP, file=sys.stderr)
        while (line := _ask()) is not None:
            match line.strip():
                case "":
                    continue
                case "/exit":
                    return
                case "/reset":
                    conversation.reset()
                case "/undo":
                    conversation.undo()
                case "/stats":
                    print(numbers(session.statistics) if session.statistics else "no answer yet")
                case command if command.startswith("/"):
                    print(f"{command.split()[0]} is not a command; {HELP}", file=sys.stderr)
                case _:
                    _turn(session, conversation, line, options)


def _ask() -> str | None:
    """The next line; None at the end of input. Ctrl-C at the prompt drops the line."""
    while True:
        try:
            return input("\n> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print("  (Ctrl-D or /exit ends)", file=sys.stderr)


def _turn(session: Session, conversation, line: str, options: dict) -> None:
    """One question and its answer; a stopped answer stays in the history as far as it went."""
    from phi3mobile.verbs.answering import show

    conversation.say("user", line)
    answer: list[str] = []
    try:
        pieces = session.generate(conversation.messages, **options)
        show(answer.append(piece) or piece for piece in pieces)
    except KeyboardInterrupt:
        session.cancel()
        print("  (stopped)", file=sys.stderr)
    except InputError as error:
        conversation.messages.pop()
        print(f"phi3mobile: {error}", file=sys.stderr)
        return
    conversation.say("assistant", "".join(answer))
