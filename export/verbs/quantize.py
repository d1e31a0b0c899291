"""phi3mobile quantize SOURCE -o FOLDER: float checkpoint -> packed integers that `export` takes for every target."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from phi3mobile.export.recipe import DEFAULT_RECIPE

    parser.add_argument("source", help="checkpoint folder, GGUF file, or hub id such as microsoft/Phi-3-mini-4k-instruct")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write; a killed run goes on where it was")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="whose bits and groups to take (default: %(default)s)")
    parser.add_argument("--method", help="gptq; keep: the integers that the source has, the default where it has any")
    parser.add_argument("--calibration", type=Path, help="UTF-8 text, or a folder of texts and pictures (default: what ships)")
    parser.add_argument("--bits", type=float, help="per layer weight, at most: the most sensitive matrices get more")
    parser.add_argument("--vision-bits", type=int, help="of a tower for pictures: 8, or 4 (default: 8)")
    parser.add_argument("--rotate", action="store_true", help="turn the hidden states so that no channel sticks out (QuaRot)")


def run(args: argparse.Namespace) -> None:
    from phi3mobile.export.cards import quality_line
    from phi3mobile.quiet import quiet
    from phi3mobile.screen import print_card, print_json, progress_bar

    start = time.perf_counter()
    with quiet():
        from phi3mobile.export.recipe import find_recipe
        from phi3mobile.export.solve.build import float_checkpoint, method_for, quantize_checkpoint
        from phi3mobile.export.solve.estimate import told
        from phi3mobile.export.solve.folder import Solved

        source = float_checkpoint(args.source, args.out)
        method = method_for(source, find_recipe(args.recipe), args.method, args.bits, args.rotate)
        takes = told(source.config) if method == "gptq" else ""
    if takes:
        print(takes, file=sys.stderr)
    with progress_bar(f"Quantize {args.source}") as report, quiet():
        solved = quantize_checkpoint(
            args.source,
            args.out,
            args.recipe,
            method=method,
            calibration=args.calibration,
            bits=args.bits,
            rotate=args.rotate,
            vision_bits=args.vision_bits,
            progress=report,
        )
        quality = Solved(solved).about["quality"]
    seconds = time.perf_counter() - start
    calibration = f"{quality['calibration']['tokens']} tokens of {quality['calibration']['text']}"
    if rows := quality["calibration"].get("picture_rows"):
        calibration += f", {rows} rows of pictures"
    print_card(str(args.out), {"quality": quality_line(quality), "calibration": calibration, "time": f"{seconds:.1f} s"})
    print_json({"folder": str(args.out), "quantize_s": round(seconds, 2), "quality": quality})
