"""phi3mobile inspect PATH: card of a bundle or checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="bundle, checkpoint folder or hub id")


def run(args: argparse.Namespace) -> None:
    from phi3mobile.bench import experts
    from phi3mobile.bench.predict import card_rows
    from phi3mobile.bundle import is_bundle, open_bundle
    from phi3mobile.export.cards import bundle_card, checkpoint_card, placement
    from phi3mobile.screen import print_card, print_json

    path = Path(args.path)
    if is_bundle(path):
        bundle = open_bundle(path)
        placed = placement(bundle)
        main = next(iter(placed.values()), None)
        print_card(
            str(path),
            bundle_card(bundle)
            | (main.rows() if main else {})
            | experts.card_rows(bundle.manifest)
            | card_rows(bundle.manifest),
        )
        shown = ("name", "engine", "runtime", "recipe", "model", "tokens", "memory", "license")
        quality = {"quality": bundle.manifest.get("quality")}
        reports = {"placement": {name: found.report() for name, found in placed.items()}} if placed else {}
        print_json({"bundle": str(path)} | {key: bundle.manifest[key] for key in shown} | quality | reports)
        return
    from phi3mobile.hub import resolve
    from phi3mobile.models.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(resolve(args.path))
    checkpoint.check()
    print_card(args.path, checkpoint_card(checkpoint))
    print_json({"checkpoint": args.path, "parameters": checkpoint.config.parameters()})
