"""phi3mobile chat BUNDLE: talk to a bundle; Ctrl-C stops an answer, Ctrl-D ends."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from phi3mobile.errors import InputError
from phi3mobile.verbs.answering import add_sampling_arguments

if TYPE_CHECKING:
    from phi3mobile.session.conversation import Conversation
    from phi3mobile.session.session import Session

HELP = (
    "/reset forgets the conversation, /undo the last turn, /save FILE and /load FILE keep it, "
    "/stats shows the last answer's numbers, /exit ends"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="folder made by `phi3mobile export`")
    parser.add_argument("--system", help="system message")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from phi3mobile.session.conversation import Conversation
    from phi3mobile.verbs.answering import open_session, options_from

    conversation = Conversation()
    if args.system:
        conversation.say("system", args.system)
    options = options_from(args) | {"overflow": "slide"}
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history where the platform has it
    with open_session(args.bundle) as session:
        print(HELP, file=sys.stderr)
        while True:
            try:
                if not _answer(input("\n> "), session, conversation, options):
                    return
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print("  (Ctrl-D or /exit ends)", file=sys.stderr)
            except UnicodeDecodeError:
                print("phi3mobile: that line is not UTF-8 text; type it again", file=sys.stderr)


def _answer(line: str, session: Session, conversation: Conversation, options: dict) -> bool:
    """Do what the line says; False: end the chat."""
    from phi3mobile.verbs.answering import numbers

    match line.strip():
        case "":
            pass
        case "/exit":
            return False
        case "/reset":
            conversation.reset()
        case "/undo":
            conversation.undo()
        case command if command.startswith(("/save ", "/load ")):
            _keep(conversation, *command.split(maxsplit=1))
        case "/stats":
            print(numbers(session.statistics) if session.statistics else "no answer yet")
        case command if command.startswith("/"):
            print(f"{command.split()[0]} is not a command; {HELP}", file=sys.stderr)
        case _:
            with _ctrl_c(session.cancel):
                _turn(session, conversation, line, options)
    return True


def _keep(conversation: Conversation, command: str, path: str) -> None:
    """/save or /load a conversation; a file that can't be read leaves it as it is."""
    try:
        if command == "/save":
            conversation.save(path)
        else:
            conversation.messages = type(conversation).load(path).messages
    except InputError as error:
        print(f"phi3mobile: {error}", file=sys.stderr)
        return
    print(f"  ({len(conversation.messages)} messages)", file=sys.stderr)


def _turn(session: Session, conversation: Conversation, line: str, options: dict) -> None:
    """One question and its answer; a stopped answer stays in the history as far as it went."""
    from phi3mobile.verbs.answering import show

    asked = len(conversation.messages)
    try:
        conversation.say("user", line)
        answer = show(session.generate(conversation.messages, **options))
    except InputError as error:
        del conversation.messages[asked:]
        print(f"phi3mobile: {error}", file=sys.stderr)
        return
    conversation.say("assistant", answer)
    if session.statistics is not None and session.statistics.finish_reason == "cancelled":
        print("  (stopped)", file=sys.stderr)


@contextlib.contextmanager
def _ctrl_c(action: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls `action` instead of raising somewhere in the middle of a forward."""
    before = signal.signal(signal.SIGINT, lambda number, frame: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
