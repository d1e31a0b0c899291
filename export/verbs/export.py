"""phi3mobile export SOURCE [-o OUT]: checkpoint folder or hub id -> bundle."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from phi3mobile.export.recipe import DEFAULT_RECIPE, recipes

    about = "; ".join(f"{recipe.name}: {recipe.about}" for recipe in recipes().values())
    parser.add_argument("source", help="folder of a checkpoint or of `quantize`, GGUF file, or hub id: org/name")
    parser.add_argument("-o", "--out", type=Path, help="the bundle's folder (default: NAME.RECIPE.bundle here)")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help=f"{about} (default: %(default)s)")
    parser.add_argument("--context", type=int, help="positions of the KV cache (default: 2048 or what the model takes)")
    parser.add_argument("--method", help="keep: the source's own integers, the default where it has any; gptq, rtn: fast")
    parser.add_argument("--calibration", type=Path, help="UTF-8 text, or a folder of texts and pictures (default: what ships)")
    parser.add_argument("--bits", type=float, help="per layer weight, at most: the most sensitive matrices get more")
    parser.add_argument("--rotate", action="store_true", help="turn the hidden states so that no channel sticks out (QuaRot)")
    parser.add_argument("--vision-bits", type=int, help="of a tower for pictures: 8, or 4 (default: 8)")
    parser.add_argument("--experts-memory", metavar="BYTES", help="a mixture's default for its experts: 4GB (default: all)")
    parser.add_argument("--accept-quality", action="store_true", help="make the bundle even if its quality card is bad")


def run(args: argparse.Namespace) -> None:
    from phi3mobile.bundle import open_bundle
    from phi3mobile.export.cards import bundle_card
    from phi3mobile.memory import parse_memory
    from phi3mobile.quiet import quiet
    from phi3mobile.screen import print_card, print_json, progress_bar

    start = time.perf_counter()
    with quiet():
        from phi3mobile.export.build import write_bundle
        from phi3mobile.export.plan import model_name, plan_export

        out = args.out or Path(f"{model_name(args.source)}.{args.recipe}.bundle")
        plan = plan_export(
            args.source,
            out,
            args.recipe,
            args.context,
            method=args.method,
            calibration=args.calibration,
            bits=args.bits,
            rotate=args.rotate,
            vision_bits=args.vision_bits,
            experts_memory=None if args.experts_memory is None else parse_memory(args.experts_memory),
        )
        told = plan.to_tell()
    for line in told:
        print(line, file=sys.stderr)
    with progress_bar(f"Export {args.source}") as report, quiet():
        write_bundle(plan, args.accept_quality, report)
    seconds = time.perf_counter() - start
    bundle = open_bundle(out)
    print_card(str(out), bundle_card(bundle) | {"export": f"{seconds:.1f} s"})
    print_json(
        {
            "bundle": str(out),
            "bytes": bundle.program_bytes,
            "export_s": round(seconds, 2),
            "quality": bundle.manifest["quality"],
        }
    )
