"""phi3mobile ablate CHECKPOINT -o FOLDER: what each choice of quantization costs this model, as a table and plots."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError

WINDOW = 512
AXES = {"bits": int, "groups": int, "methods": str, "activations": str, "kv": int, "tables": int}
FIELDS = {"groups": "group", "methods": "method"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="folder or hub id of unquantized weights")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results and pages; a run goes on there")
    parser.add_argument("--bits", help="widths with commas between: 16 (not quantized), 8, 6, 5, 4, 3, 2")
    parser.add_argument("--groups", help="columns per scale: 32, 64, 128; 0: the row")
    parser.add_argument("--methods", help="absmax, clipped, rtn, gptq")
    parser.add_argument("--activations", help="float, int8")
    parser.add_argument("--kv", help="bits of the KV cache: 32, 16, 8")
    parser.add_argument("--tables", help="bits of embedding and head: 16, 8, 4")
    parser.add_argument(
        "--solved",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="what `phi3mobile quantize` made of it, as one more row (repeatable)",
    )
    parser.add_argument("--text", type=Path, help="text to measure on (default: the Jargon File's, as bench --perplexity)")
    parser.add_argument("--tokens", type=int, default=2048, help="of the text (default: %(default)s)")
    parser.add_argument("--calibration", type=Path, help="text that gptq solves on (default: the one that ships)")
    parser.add_argument("--calibration-tokens", type=int, default=4096, help="of that text (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    from phi3mobile.quiet import quiet
    from phi3mobile.screen import print_json, progress_bar

    axes = {FIELDS.get(name, name): _values(name, getattr(args, name), kind) for name, kind in AXES.items()}
    for name in ("tokens", "calibration_tokens"):
        if getattr(args, name) < 2:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: give 2 or more")
    with progress_bar("Ablate") as report, quiet():
        from phi3mobile.bench.ablate.compare import compare

        found = compare(
            args.checkpoint,
            args.out,
            axes,
            args.text,
            args.tokens,
            args.calibration,
            args.calibration_tokens,
            WINDOW,
            args.solved,
            report,
        )
    print((args.out / "ablation.md").read_text("utf-8"))
    print_json(found)


def _values(name: str, text: str | None, kind: type) -> list[Any]:
    try:
        return [kind(value) for value in text.split(",")] if text else []
    except ValueError:
        raise InputError(f"--{name} {text}: give numbers with commas between") from None
