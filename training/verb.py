"""phi3mobile train STAGE CONFIG.toml: pretrain, sft, dpo, safety, qat, longrope. Run again to resume."""

from __future__ import annotations

import argparse
import importlib

STAGES = {
    "pretrain": "random weights or a checkpoint, on token shards of `phi3mobile data`",
    "sft": "conversations, loss on the assistant's tokens; all weights, LoRA, DoRA or QLoRA",
    "dpo": "preferences: chosen against rejected answers",
    "safety": "break-fix rounds: measure, curate, SFT + DPO, red-team",
    "qat": "training with the export's quantization in the loop",
    "longrope": "search of the long factors, then mixed-window training",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    about = "; ".join(f"{name}: {text}" for name, text in STAGES.items())
    parser.add_argument("stage", choices=list(STAGES), metavar="STAGE", help=about)
    parser.add_argument("config", help="TOML file; examples are in training/configs")


def run(args: argparse.Namespace) -> None:
    import os

    from phi3mobile import extras
    from phi3mobile.errors import InputError
    from phi3mobile.quiet import quiet
    from phi3mobile.screen import print_card, print_json

    with quiet():  # torchao and others tell what they could not load
        try:
            from phi3mobile.training.config import read_config

            stage = importlib.import_module(f"phi3mobile.training.{args.stage}")
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("phi3mobile"):
                raise
            raise InputError(f"training needs the package {error.name}; run: {extras.command('train')}") from None
    result = getattr(stage, args.stage)(read_config(args.config, args.stage))
    if int(os.environ.get("RANK", 0)) == 0:
        print_card(f"{args.stage}: {args.config}", {key: _text(value) for key, value in result.items()})
        print_json({"stage": args.stage, **result})


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
