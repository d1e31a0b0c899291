"""phi3mobile verify BUNDLE: its weights against their source, and its program against torch with the same integers."""

from __future__ import annotations

import argparse

PROMPTS = (
    "What is the capital of France, and what is it known for?",
    "Write a function that returns the n-th Fibonacci number, and explain in two sentences how it works.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="folder made by `phi3mobile export`")
    parser.add_argument(
        "--checkpoint", help="checkpoint or quantized folder that it was made from (default: where the manifest says)"
    )
    parser.add_argument("--prompt", action="append", help="text to run (repeatable; default: two questions)")


def run(args: argparse.Namespace) -> int:
    from phi3mobile.bundle import open_bundle
    from phi3mobile.errors import InputError
    from phi3mobile.quiet import quiet
    from phi3mobile.screen import print_card, print_json, progress_bar

    prompts = args.prompt or list(PROMPTS)
    if not all(prompt.strip() for prompt in prompts):
        raise InputError("a --prompt is empty; write some text")
    bundle = open_bundle(args.bundle)
    with progress_bar(f"Verify {args.bundle}") as report, quiet():
        from phi3mobile.export.verify import source_of, verify

        source = source_of(bundle, args.checkpoint)
        encoded = [_encode(bundle, prompt) for prompt in prompts]
        comparisons = verify(bundle, source, encoded, report)
    for comparison in comparisons:
        verdict = f"{comparison.required}: {'passed' if comparison.passed else 'FAILED'}" if comparison.required else "reported"
        print_card(f"{comparison.name} ({verdict})", comparison.rows())
    passed = all(comparison.passed for comparison in comparisons)
    document = {comparison.name: comparison.document() for comparison in comparisons}
    print_json({"bundle": args.bundle, "passed": passed, "comparisons": document})
    return 0 if passed else 1


def _encode(bundle, prompt: str) -> list[int]:
    if bundle.manifest["chat"]["template"] is None:
        return list(bundle.tokenizer.encode(prompt))
    return list(bundle.chat.encode(bundle.tokenizer, [{"role": "user", "content": prompt}]))
