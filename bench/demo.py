"""phi3mobile demo: the whole line on SmolLM2-135M-Instruct, a real model that comes as a Python package."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

NEXT = """Next:
  {command} chat {bundle}
  {command} bench {bundle} --rounds 3
  {command} run {bundle} "Name three rivers." --json
"""
TOKENS = 160
QUESTION = "What is the capital of France, and what is it known for?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", nargs="?", default=QUESTION, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where the bundle is kept (default: the user's cache)")
    parser.add_argument("--recipe", help="host (our kernels; the default where they are built), android-cpu, ...")


def run(args: argparse.Namespace) -> None:
    from phi3mobile.bench.host import decode_bytes
    from phi3mobile.bundle import is_bundle
    from phi3mobile.export.cards import bundle_card
    from phi3mobile.export.demo_model import bundle_path, demo_recipe, make_bundle
    from phi3mobile.files import cache_folder
    from phi3mobile.screen import print_card, print_json, size
    from phi3mobile.verbs.answering import numbers, open_session, show

    folder = args.folder or cache_folder() / "demo"
    recipe = args.recipe or demo_recipe()
    bundle = bundle_path(folder, recipe)
    start = time.perf_counter()
    if not is_bundle(bundle):
        make_bundle(bundle, recipe)
    built_s = time.perf_counter() - start
    with open_session(str(bundle)) as session:
        print(f"\n> {args.question}\n")
        show(session.generate([{"role": "user", "content": args.question}], max_tokens=TOKENS))
        parts, statistics, load_s = session.parts, session.statistics, session.engine.load_s
    memory = _memory(bundle, args.question)  # this process may have made the bundle
    amount = f"{size(memory['anonymous_bytes'])} anonymous, {size(memory['peak_bytes'])} peak{memory['note']}"
    speed = statistics.decode_tokens_per_s
    bandwidth = decode_bytes(parts) * speed / 1e9
    print()
    print_card(
        "SmolLM2-135M-Instruct on this machine",
        bundle_card(parts)
        | {
            "session's memory": amount,
            "load": f"{load_s:.2f} s",
            "TTFT": f"{statistics.ttft_s * 1e3:.0f} ms for {statistics.prompt_tokens} tokens",
            "prefill": f"{statistics.prefill_tokens_per_s:.0f} tokens/s",
            "decode": f"{speed:.0f} tokens/s, {bandwidth:.1f} GB/s of weights",
        },
    )
    print(NEXT.format(bundle=_short(bundle), command=_command()))
    print_json(
        {"bundle": str(bundle), "made_s": round(built_s, 2), "load_s": round(load_s, 3)}
        | {"anonymous_bytes": memory["anonymous_bytes"], "peak_bytes": memory["peak_bytes"]}
        | {"decode_GB_per_s": round(bandwidth, 2)}
        | numbers(statistics)
    )


def _memory(bundle: Path, question: str) -> dict[str, Any]:
    """Bytes of a session that answers, in a process of its own, above what Python with numpy takes; `note`: what is in them."""
    from phi3mobile.bench.worker import Worker

    worker = Worker()
    try:
        memory = worker.ask("session", path=str(bundle), question=question, count=TOKENS)
    finally:
        worker.close()
    packed = f"; packed weights: {memory['packed']}" if memory["packed"] else ""
    return memory | {"note": f"{packed}{' (with torch)' if memory['torch'] else ''}"}


def _command() -> str:
    """How to call phi3mobile from here: a virtual environment that is not active needs its path."""
    if shutil.which("phi3mobile"):
        return "phi3mobile"
    return _short(Path(sys.executable).parent / "phi3mobile")


def _short(path: Path) -> str:
    """Relative to the working directory where it lies in it, quoted for a shell."""
    path = path.absolute()
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
