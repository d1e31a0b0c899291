"""`phi3mobile VERB ...`: each verb is a module with add_arguments(parser) and run(args), imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from phi3mobile.errors import InputError
from phi3mobile.unicode import printable

VERBS = {
    "demo": ("phi3mobile.bench.demo", "the whole line on a real small model: import, export, answer, measure"),
    "import": ("phi3mobile.export.verbs.import_", "GGUF file or Llama-layout folder -> Phi-3-layout checkpoint folder"),
    "export": ("phi3mobile.export.verbs.export", "checkpoint folder or hub id -> 4-bit bundle"),
    "quantize": ("phi3mobile.export.verbs.quantize", "checkpoint -> folder of 4-bit integers: the slow part of export, once"),
    "inspect": ("phi3mobile.bench.inspect", "card of a bundle or checkpoint: shapes, sizes, memory"),
    "verify": ("phi3mobile.export.verbs.verify", "a bundle's program against the torch model, in dB; exit code 1 below a gate"),
    "run": ("phi3mobile.verbs.run", "answer one prompt"),
    "chat": ("phi3mobile.verbs.chat", "talk to a bundle"),
    "app": ("phi3mobile.assistant.verb", "the offline assistant in a window"),
    "index": ("phi3mobile.export.verbs.index", "documents -> a library for answers; one file, for the phone too"),
    "bench": ("phi3mobile.bench.verb", "measure a bundle on this machine or a phone"),
    "eval": ("phi3mobile.bench.evaluate.verb", "MMLU, GSM8K, HumanEval, MT-bench, your tasks: on the file that ships"),
    "ablate": ("phi3mobile.bench.ablate.verb", "what widths, groups, methods, activations and KV caches cost a model"),
    "doctor": ("phi3mobile.verbs.doctor", "what is installed, what is missing and how to get it, memory, disk, caches"),
    "report": ("phi3mobile.bench.report", "results of `bench --device` and `eval` -> one page: speed, memory, heat, quality"),
    "data": ("phi3mobile.training.data.verb", "raw text to filtered, packed token shards; synthetic data; ablations"),
    "train": ("phi3mobile.training.verb", "pretrain, SFT, DPO, safety rounds, QAT, LongRoPE: TOML config in, HF folder out"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: done; 2: the input is wrong (one line on stderr); 1: a bug (traceback)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if getattr(sys.stdout, "errors", "") == "strict":  # what a terminal can't show is written as \\u4e2d: no traceback
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    verb = argv[0] if argv and argv[0] in VERBS else None
    _fill_streams()
    try:
        args = _parser(verb).parse_args(argv)
        return importlib.import_module(VERBS[args.verb][0]).run(args) or 0
    except InputError as error:
        print("phi3mobile:", printable(" ".join(str(error).splitlines())), file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        from phi3mobile.extras import hint

        if (line := hint(error.name)) is None:
            raise
        print("phi3mobile:", line, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("phi3mobile: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `phi3mobile ... | head`: what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _fill_streams() -> None:
    """Streams that the caller closed (2>&-) lead to nothing: else the next file that is opened would be what they lead to."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


class _Help(argparse.HelpFormatter):
    """argparse's, which would import shutil, and with it every compression library, to learn how wide the screen is."""

    def __init__(self, prog: str, **rest: int) -> None:
        columns = os.environ.get("COLUMNS", "")
        try:
            width = int(columns) if columns.isdigit() and int(columns) else os.get_terminal_size(1).columns
        except OSError:  # no terminal
            width = 80
        super().__init__(prog, **{"width": max(width - 2, 20)} | rest)


class _Parser(argparse.ArgumentParser):
    """argparse, with an unknown flag or verb as one line."""

    def __init__(self, **rest) -> None:
        super().__init__(**{"formatter_class": _Help} | rest)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


class _Version(argparse.Action):
    """Asks for the version only when it is wanted: reading package metadata costs as much as the rest of --help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"phi3mobile {version('phi3mobile')}")
        parser.exit()


def _parser(verb: str | None) -> argparse.ArgumentParser:
    """The whole parser for help; only `verb`'s arguments, and so only its module, when it is called."""
    parser = _Parser(prog="phi3mobile", description="Any Phi-3 checkpoint in, a verified 4-bit bundle for a phone out.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and leave")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (module, about) in VERBS.items():
        sub = verbs.add_parser(name, help=about, description=about)
        if name == verb:
            importlib.import_module(module).add_arguments(sub)
    return parser


if __name__ == "__main__":
    sys.exit(main())
