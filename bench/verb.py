"""phi3mobile bench BUNDLE, or --shape NAME: speed and memory on this machine; with --peers beside other runtimes.

With --device or --preset: the protocol of devices, on this machine or a phone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3mobile.bench import devices
from phi3mobile.errors import InputError

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle
    from phi3mobile.models.checkpoint import Checkpoint

SHAPE_CONTEXT, ROUNDS = 4096, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", help="folder made by `phi3mobile export`")
    parser.add_argument("--shape", metavar="NAME", help="instead of a bundle: random weights of a preset (phi-3-mini-4k, ...)")
    parser.add_argument("--recipe", help="with --shape (default: host where our kernels are built, else android-cpu)")
    parser.add_argument("--context", type=int, help=f"with --shape (default: {SHAPE_CONTEXT}, or what the preset takes)")
    parser.add_argument("--rounds", type=int, help=f"medians are over so many (default: {ROUNDS}, or the preset's)")
    parser.add_argument("--depths", help="decode after so many tokens (default: 128,1024,4096, as far as the context goes)")
    parser.add_argument(
        "--image-tokens", type=int, metavar="N", help="also the first token after a picture of N tokens (757, ...)"
    )
    parser.add_argument("--peers", action="store_true", help="run llama.cpp and onnxruntime-genai on the same weights too")
    parser.add_argument("--gguf", type=Path, help="with --peers: one more file for llama.cpp")
    parser.add_argument("--perplexity", action="store_true", help="on the text that ships: bundle and unquantized weights")
    parser.add_argument("--lookup", action="store_true", help="what lookup decoding is worth, on prompts that ship")
    parser.add_argument("--checkpoint", help="the unquantized weights (default: what the bundle was made from)")
    devices.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    depths = check(args)
    from phi3mobile.quiet import quiet
    from phi3mobile.screen import print_card, print_json, progress_bar

    if devices.wanted(args):
        with progress_bar("Bench") as report:
            result, card = devices.run_protocol(args, report)
        print_card(result["record"], card)
        print_json(result)
        return
    with progress_bar("Bench") as report, quiet():
        path, made = _bundle(args, report)
        if args.perplexity:
            result = compare_perplexity(path, args.checkpoint, report)
        elif args.lookup:
            result = compare_lookup(path, args.rounds or ROUNDS, report)
        else:
            result = measure(path, args, depths, report) | made
    if args.perplexity or args.lookup:
        print_card(str(path), {name: f"{value}" for name, value in result.items() if name != "bundle"})
    else:
        from phi3mobile.bench.table import print_table

        print_table(result)
    print_json(result)


def check(args: argparse.Namespace) -> list[int] | None:
    """The depths asked for. Raises InputError for flags that contradict each other."""
    if (args.bundle is None) == (args.shape is None):
        raise InputError("give either a bundle or --shape NAME")
    if args.shape is None and (args.recipe or args.context is not None):
        raise InputError("--recipe and --context go with --shape: a bundle has its own")
    if args.gguf and not args.peers:
        raise InputError("--gguf goes with --peers")
    if args.gguf and not args.gguf.is_file():
        raise InputError(f"{args.gguf} is not a file; give a GGUF of the same model")
    if args.perplexity + args.lookup + args.peers > 1:
        raise InputError("--perplexity, --lookup and --peers are separate runs: give one of them")
    if args.image_tokens is not None and (args.perplexity or args.lookup or args.shape is not None or devices.wanted(args)):
        raise InputError("--image-tokens goes with the speed of a bundle on this machine: leave out the other flags")
    if args.rounds is not None and args.rounds < 1:
        raise InputError(f"--rounds {args.rounds}: give 1 or more")
    try:
        return [int(depth) for depth in args.depths.split(",")] if args.depths is not None else None
    except ValueError:
        raise InputError(f"--depths {args.depths}: give numbers with commas between, such as 128,1024") from None


def _bundle(args: argparse.Namespace, report: Callable[[str, int, int], None]) -> tuple[Path, dict[str, float]]:
    if args.shape is None:
        return Path(args.bundle), {}
    from phi3mobile.bench.shape import shape_bundle
    from phi3mobile.export.demo_model import demo_recipe
    from phi3mobile.models.presets import preset

    context = min(SHAPE_CONTEXT, preset(args.shape).max_position_embeddings) if args.context is None else args.context
    return shape_bundle(args.shape, args.recipe or demo_recipe(), context, report)


def measure(path: Path, args: argparse.Namespace, depths: list[int] | None, report) -> dict[str, Any]:
    """Our figures at the top of the document, those of every peer under `peers`, and why one is missing."""
    from phi3mobile.bench.host import OURS, compare
    from phi3mobile.bench.peers import our_entry, prepare_peers
    from phi3mobile.bundle import open_bundle

    bundle = open_bundle(path)
    picture = None if args.image_tokens is None else _picture(bundle, args.image_tokens)
    entries, missing = {OURS: our_entry(bundle)}, {}
    if args.peers:
        peers, missing = prepare_peers(bundle, _folder(_checkpoint(bundle, args.checkpoint)), args.gguf, report)
        entries |= peers
    result = compare(entries, bundle.info.max_context, args.rounds or ROUNDS, depths, report, picture=picture)
    runtimes: Mapping[str, Any] = result.pop("runtimes")
    failed = result.pop("failed")
    head = {"bundle": str(path), "recipe": bundle.manifest["recipe"]["name"], "context": bundle.info.max_context}
    peers = {name: figures for name, figures in runtimes.items() if name != OURS}
    return head | result | runtimes[OURS] | ({"peers": peers, "missing": missing | failed} if args.peers else {})


def _picture(bundle: Bundle, tokens: int) -> tuple[int, int]:
    """(tokens, views) of a picture that the bundle can be shown. InputError: it sees none, or none of that size."""
    from phi3mobile.models.vision import grid_of

    if bundle.vision is None:
        raise InputError(f"{bundle.folder} sees no pictures: leave out --image-tokens")
    across, down = grid_of(tokens)
    if tokens > bundle.info.max_context:
        raise InputError(f"--image-tokens {tokens}: the context has {bundle.info.max_context}")
    return tokens, 1 + across * down


def _checkpoint(bundle: Bundle, given: str | None) -> Checkpoint:
    """What the bundle was made from. InputError: it is another one."""
    from phi3mobile.hub import resolve
    from phi3mobile.models.source import open_source

    checkpoint = open_source(path := resolve(given or bundle.manifest["provenance"]["source"]))
    if checkpoint.source_hash() != bundle.manifest["provenance"]["source_hash"]:
        raise InputError(f"{path} is not what {bundle.folder} was made from; give --checkpoint")
    return checkpoint


def _folder(checkpoint: Checkpoint) -> Checkpoint:
    """It as a folder of floats, which other runtimes' tools take: a GGUF model is imported once, into the cache."""
    from phi3mobile.export.checkpoint import import_checkpoint
    from phi3mobile.files import cache_folder
    from phi3mobile.models.checkpoint import open_checkpoint
    from phi3mobile.models.gguf_checkpoint import GgufCheckpoint

    if not isinstance(checkpoint, GgufCheckpoint):
        return checkpoint
    folder = cache_folder() / "floats" / f"{checkpoint.path.stem}-{checkpoint.source_hash()[:8]}"
    return open_checkpoint(folder if folder.is_dir() else import_checkpoint(checkpoint.path, folder))


def compare_perplexity(path: Path, checkpoint: str | None, report) -> dict[str, Any]:
    """Perplexity of the bundle and of the unquantized weights on bench/text/jargon.txt."""
    from phi3mobile.bench.perplexity import TEXT, perplexity
    from phi3mobile.bundle import open_bundle
    from phi3mobile.engines.eager import EagerEngine
    from phi3mobile.engines.registry import open_engine
    from phi3mobile.models.loading import model_from

    bundle = open_bundle(path)
    tokens = bundle.tokenizer.encode(TEXT.read_text(), special=False)
    reference = EagerEngine(model_from(_checkpoint(bundle, checkpoint), bundle.info.max_context), chunk=512)
    exact = perplexity(reference, tokens, progress=report)
    ours = perplexity(open_engine(bundle), tokens, progress=report)
    return {
        "bundle": str(path),
        "text": TEXT.name,
        "tokens": len(tokens),
        "perplexity": round(ours, 3),
        "perplexity_unquantized": round(exact, 3),
        "ratio": round(ours / exact, 4),
        "bits_per_weight": bundle.manifest["model"]["bits_per_weight"],
    }


def compare_lookup(path: Path, rounds: int, report) -> dict[str, Any]:
    """Decode speed with drafts over that without, on bench/text/quoting.json."""
    from phi3mobile.bench.lookup import measure_lookup
    from phi3mobile.bundle import open_bundle

    kinds = measure_lookup(open_bundle(path), rounds, progress=report)
    return {"bundle": str(path)} | {f"{kind}_{name}": value for kind, found in kinds.items() for name, value in found.items()}
