"""phi3mobile bench BUNDLE: speed and memory on this machine; with --peers beside other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="folder made by `phi3mobile export`")
    parser.add_argument("--rounds", type=int, default=3, help="medians are over so many (default: %(default)s)")
    parser.add_argument("--peers", action="store_true", help="run llama.cpp on the same weights beside ours")
    parser.add_argument("--perplexity", action="store_true", help="on the text that ships: bundle and unquantized weights")
    parser.add_argument("--checkpoint", help="the unquantized weights (default: what the bundle was made from)")


def run(args: argparse.Namespace) -> None:
    from phi3mobile.bench.host import measure
    from phi3mobile.quiet import quiet
    from phi3mobile.screen import print_card, print_json, progress_bar, size

    if args.rounds < 1:
        raise InputError(f"--rounds {args.rounds}: give 1 or more")
    with progress_bar("Bench") as report, quiet():
        if args.perplexity:
            result = compare_perplexity(args.bundle, args.checkpoint, report)
        elif args.peers:
            result = compare_peers(args.bundle, args.checkpoint, args.rounds, report)
        else:
            result = measure(args.bundle, args.rounds, progress=report)
    if args.perplexity:
        print_card(args.bundle, {name: f"{value}" for name, value in result.items() if name != "bundle"})
    elif args.peers:
        print_card(args.bundle, _peer_rows(result))
    else:
        print_card(args.bundle, _rows(result, size))
    print_json(result)


def _rows(result: dict[str, Any], size) -> dict[str, str]:
    rows = {name: str(value) for name, value in result.items() if not name.endswith("bytes") and name != "decode"}
    for depth, figures in result["decode"].items():
        rows[f"decode at depth {depth}"] = (
            f"{figures['tokens_per_s']} tokens/s, {figures['p50_ms']} ms p50, {figures['p95_ms']} ms p95, "
            f"{figures['GB_per_s']} GB/s"
        )
    return rows | {name: size(value) for name, value in result.items() if name.endswith("bytes")}


def _peer_rows(result: dict[str, Any]) -> dict[str, str]:
    ours = result["medians"]["phi3mobile"]
    rows = {}
    for name, figures in result["medians"].items():
        for what, rate in figures.items():
            ratio = "" if name == "phi3mobile" else f"   ours is {ours[what] / rate:.2f}x"
            rows[f"{name} {what}"] = f"{rate} tokens/s{ratio}"
    return rows | {f"{name}": "not installed: make bench installs it" for name in result["missing"]}


def _checkpoint(bundle, given: str | None):
    from phi3mobile.hub import resolve
    from phi3mobile.models.weights import open_checkpoint

    checkpoint = open_checkpoint(resolve(given or bundle.manifest["provenance"]["source"]))
    if checkpoint.source_hash() != bundle.manifest["provenance"]["source_hash"]:
        raise InputError(f"{checkpoint.folder} is not what {bundle.folder} was made from; give --checkpoint")
    return checkpoint


def compare_peers(path: str, checkpoint: str | None, rounds: int, report) -> dict[str, Any]:
    """llama.cpp with Q4_0 made from the same weights, interleaved with ours."""
    from tempfile import TemporaryDirectory

    from phi3mobile.bench.peers import LlamaCpp, compare, missing_peers, threads, write_gguf
    from phi3mobile.bundle import open_bundle

    bundle, missing = open_bundle(path), missing_peers()
    depths = [depth for depth in (128, 1024, 1792, 4000) if depth + 32 <= bundle.info.max_context]
    with TemporaryDirectory() as folder:
        peers = {}
        if "llama-cpp-python" not in missing:
            report("gguf", 0, 1)
            file = Path(folder) / "model-q4_0.gguf"
            write_gguf(_checkpoint(bundle, checkpoint), file)
            peers["llama.cpp Q4_0"] = LlamaCpp(file, bundle.info.max_context, threads())
        medians = compare(bundle, peers, depths, rounds, progress=report)
    return {"bundle": path, "rounds": rounds, "medians": medians, "missing": missing}


def compare_perplexity(path: str, checkpoint: str | None, report) -> dict[str, Any]:
    """Perplexity of the bundle and of the unquantized weights on bench/text/jargon.txt."""
    from phi3mobile.bench.perplexity import TEXT, perplexity
    from phi3mobile.bundle import open_bundle
    from phi3mobile.engines.eager import EagerEngine
    from phi3mobile.models.registry import model_from

    bundle = open_bundle(path)
    tokens = bundle.tokenizer.encode(TEXT.read_text(), special=False)
    reference = EagerEngine(model_from(_checkpoint(bundle, checkpoint), bundle.info.max_context), chunk=512)
    exact = perplexity(reference, tokens, progress=report)
    ours = perplexity(bundle.open_engine(), tokens, progress=report)
    return {
        "bundle": path, "text": TEXT.name, "tokens": len(tokens), "perplexity": round(ours, 3),
        "perplexity_unquantized": round(exact, 3), "ratio": round(ours / exact, 4),
        "bits_per_weight": bundle.manifest["model"]["bits_per_weight"],
    }  # fmt: skip
