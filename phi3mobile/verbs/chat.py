"""phi3mobile chat BUNDLE: talk to a bundle; Ctrl-C stops an answer, Ctrl-D ends."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from phi3mobile.errors import InputError
from phi3mobile.verbs.answering import add_guide_arguments, add_picture_arguments, add_sampling_arguments

if TYPE_CHECKING:
    from phi3mobile.session.conversation import Conversation
    from phi3mobile.session.session import Session

HELP = (
    "/reset forgets the conversation, /undo the last turn, /save FILE and /load FILE keep it, "
    "/image FILE shows a picture with the next message, /stats shows the last answer's numbers, /exit ends"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="folder made by `phi3mobile export`")
    parser.add_argument("--system", help="system message")
    parser.add_argument(
        "--resume",
        metavar="FILE",
        type=Path,
        help="go on with the conversation in FILE, if it is there, and keep it there at the end; its KV cache in FILE.state",
    )
    add_picture_arguments(parser)
    add_sampling_arguments(parser)
    add_guide_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from phi3mobile.session.conversation import Conversation
    from phi3mobile.verbs.answering import guide_grammar, guided, open_session, options_from

    conversation = Conversation.load(args.resume) if args.resume and args.resume.exists() else Conversation()
    if args.system:
        if conversation.messages:
            raise InputError(f"the conversation in {args.resume} has begun: leave --system out, or give another file")
        conversation.say("system", args.system)
    grammar, options = guide_grammar(args), options_from(args) | {"overflow": "slide"}
    with contextlib.suppress(ImportError):
        import readline  # line editing and history where the platform has it

        readline.parse_and_bind("set enable-bracketed-paste on")  # Python turns it off: a pasted text is one message
    with open_session(args.bundle, args.experts_memory, args.num_crops) as session, _kept(args.resume, conversation, session):
        session.parts.chat  # noqa: B018  a bundle without a chat template says so here, not at the first message
        options |= guided(grammar, session)
        print(HELP, file=sys.stderr)
        images: list[str] = []
        while True:
            try:
                if not _answer(input("\n> "), session, conversation, images, args.library, options):
                    return
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print("  (Ctrl-D or /exit ends)", file=sys.stderr)
            except UnicodeDecodeError:
                print("phi3mobile: that line is not UTF-8 text; type it again", file=sys.stderr)


@contextlib.contextmanager
def _kept(path: Path | None, conversation: Conversation, session: Session) -> Iterator[None]:
    """The KV cache as the last time left it; at the end the conversation and the cache are written again."""
    if path is None:
        yield
        return
    state = path.with_name(f"{path.name}.state")
    if conversation.messages:
        print(f"  ({len(conversation.messages)} messages in {path})", file=sys.stderr)
        try:
            session.restore(state)
        except InputError as error:
            print(f"  (the conversation is read again: {error})", file=sys.stderr)
    yield
    conversation.save(path)
    with contextlib.suppress(InputError):  # an engine that can't: the next time reads the conversation again
        session.save(state)


def _answer(
    line: str, session: Session, conversation: Conversation, images: list[str], library: Path | None, options: dict
) -> bool:
    """Do what the line says; False: end the chat. images: for the next message."""
    from phi3mobile.verbs.answering import summary

    def say(text: str) -> None:
        print(f"  {text}", file=sys.stderr)

    match line.strip():
        case "":
            pass
        case "/exit":
            return False
        case "/reset":
            conversation.reset()
            images.clear()
            say("(the conversation is forgotten)")
        case "/undo":
            before = len(conversation.messages)
            conversation.undo()
            left = len(conversation.messages)
            say(f"(the last turn is gone, {left} messages are left)" if left < before else "(there is no turn to undo)")
        case "/save" | "/load" as command:
            say(f"{command} needs a file name: {command} chat.json")
        case "/image":
            say("/image needs a file name: /image photo.jpg")
        case command if command.startswith("/image "):
            _attach(session, images, command.split(maxsplit=1)[1])
        case command if command.startswith(("/save ", "/load ")):
            _keep(conversation, *command.split(maxsplit=1))
        case "/stats":
            say(summary(session.statistics))
        case command if command.startswith("/") and "\n" not in command:
            say(f"{command.split()[0]} is not a command; {HELP}")
        case _:
            with _ctrl_c(session.cancel):
                _turn(session, conversation, line, images, library, options)
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


def _attach(session: Session, images: list[str], path: str) -> None:
    """Take a picture along; it lies in the conversation itself, so that a saved one needs no other file."""
    from phi3mobile.pictures import data_uri, open_picture

    try:
        if session.pictures is None:
            raise InputError("this model reads text only: it sees no pictures")
        image = data_uri(Path(path).expanduser())
        height, width = open_picture(image).shape[:2]
    except InputError as error:
        print(f"phi3mobile: {error}", file=sys.stderr)
        return
    images.append(image)
    print(f"  ({width} × {height} pixels: shown with the next message)", file=sys.stderr)


def _turn(
    session: Session, conversation: Conversation, line: str, images: list[str], library: Path | None, options: dict
) -> None:
    """One question and its answer; a stopped answer stays in the history as far as it went."""
    from phi3mobile.retrieval.answer import NOTHING_FOUND
    from phi3mobile.verbs.answering import content_of, look_up, messages_of, print_sources, show

    asked = len(conversation.messages)
    try:
        passages = look_up(library, line)
        if library and not passages:
            print(NOTHING_FOUND)
            return
        conversation.say("user", content_of(line, images))
        answer = show(session.generate(messages_of(line, passages, conversation.messages[:-1], images), **options))
    except InputError as error:
        del conversation.messages[asked:]
        print(f"phi3mobile: {error}", file=sys.stderr)
        return
    images.clear()
    conversation.say("assistant", answer)
    print_sources(passages)
    reason = session.statistics.finish_reason if session.statistics is not None else "cancelled"
    ends = {"cancelled": "stopped", "length": "cut: --max-tokens 0 lets it go on", "repetition": "ended: it repeated itself"}
    if reason in ends:
        print(f"  ({ends[reason]})", file=sys.stderr)


@contextlib.contextmanager
def _ctrl_c(action: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls `action` instead of raising somewhere in the middle of a forward."""
    before = signal.signal(signal.SIGINT, lambda number, frame: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
