"""phi3mobile import SOURCE OUT: GGUF or Llama layout -> Phi-3-layout HF folder."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="GGUF file, Hugging Face folder (phi3, llama, mistral) or hub id")
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument("--dtype", default="float16", help="float16, bfloat16 or float32 (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    from phi3mobile.export.cards import checkpoint_card
    from phi3mobile.hub import resolve
    from phi3mobile.quiet import quiet
    from phi3mobile.screen import print_card

    with quiet():
        from phi3mobile.export.checkpoint import import_checkpoint
        from phi3mobile.models.checkpoint import open_checkpoint

        import_checkpoint(resolve(args.source), args.out, args.dtype)
        card = checkpoint_card(open_checkpoint(args.out))
    print_card(str(args.out), card)
