"""Mixtures of experts at full size with random weights: exported without a float copy on disk, decoded with less memory than
they need. For size, time and memory, not for text.

    python -m phi3mobile.bench.mixture export phi-tiny-moe OUT
    python -m phi3mobile.bench.mixture decode OUT [--experts-memory 4GB,8GB] [--tokens 32] [--prompt 64] [--picture moe.svg]
    python -m phi3mobile.bench.mixture compare OUT [--beside BUNDLE] [--llama phi-mini-moe] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phi3mobile.bench.host import OURS, compare
from phi3mobile.bench.mixture_gguf import decoded_bytes, write_random_gguf
from phi3mobile.bench.mixture_picture import draw
from phi3mobile.bench.peers import Entry, our_entry
from phi3mobile.bench.shape import POOL, from_pool, write_byte_tokenizer
from phi3mobile.bundle import open_bundle
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.export.build import write_bundle
from phi3mobile.export.plan import ExportPlan
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.targets import target_of
from phi3mobile.files import cache_folder, require_space, whole_file
from phi3mobile.memory import parse_memory
from phi3mobile.models.checkpoint import Checkpoint
from phi3mobile.models.config import DecoderConfig, RopeScaling
from phi3mobile.models.presets import SHAPES, preset
from phi3mobile.progress import Progress, silent
from phi3mobile.text.vocabularies import load_tokenizer


class RandomCheckpoint(Checkpoint):
    """A checkpoint whose tensors are made when they are asked for, the same ones each time."""

    def __init__(self, config: DecoderConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self._tensors = config.tensors()
        self._order = {name: number for number, name in enumerate(self._tensors)}
        self._pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0))

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def tensor(self, name: str) -> torch.Tensor:
        return self.drawn(name, self._tensors[name].shape)

    def drawn(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Its values: ones or zeros of a vector, by its name; else normal ones, so that products keep their inputs' size."""
        if len(shape) == 1:
            return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        count, width = math.prod(shape), math.prod(shape[1:])
        start = self._order[name] * 7919 % POOL  # no two tensors alike: a program stores equal ones once
        return (from_pool(self._pool, start, count) * width**-0.5).view(shape)

    def check_values(self, progress: Progress = silent) -> None:
        """They are finite as they are made."""

    def source_hash(self) -> str:
        return "random weights"


def make(
    name: str, out: Path, recipe_name: str, context: int, checkpoint: type[RandomCheckpoint] = RandomCheckpoint
) -> dict[str, Any]:
    """Write the bundle of preset `name`; what that cost."""
    scaling = None
    if name in SHAPES:
        pairs = SHAPES[name].rotary_dim // 2
        scaling = RopeScaling((1.0,) * pairs, tuple(1.0 + i / 8 for i in range(pairs)))  # speed is the same with any
    config, recipe = preset(name, scaling), replace(find_recipe(recipe_name), method="rtn")
    target, scratch = target_of(recipe), out.with_name(f".{out.name}.tokenizer")
    scratch.mkdir(parents=True, exist_ok=True)
    write_byte_tokenizer(scratch)
    require_space(out, space := config.parameters() * 5 // 8)
    start = time.perf_counter()
    plan = ExportPlan(
        source=name,
        folder=scratch,
        out=out,
        checkpoint=checkpoint(config, scratch),
        recipe=recipe,
        target=target,
        method="rtn",
        calibration=None,
        bits=None,
        context=context,
        chunk=recipe.chunk,
        eos=[2],
        tokenizer=load_tokenizer(scratch),
        chat={"template": None, "bos": "", "eos": "", "segments": None},
        generation={},
        notes=[],
        space=space,
    )
    write_bundle(plan)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.perf_counter() - start
    return {"bundle": str(out), "export_s": round(seconds, 1), "peak_gb": round(peak / 1e9, 2), "bytes": size_of(out)}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def decode(bundle: Path, memory: int | None, tokens: int, prompt: int) -> dict[str, Any]:
    """Prefill and greedy decode of random tokens; rates, and what was counted of the experts while decoding."""
    start = time.perf_counter()
    engine = open_engine(open_bundle(bundle), experts_memory=memory)
    opened = time.perf_counter() - start
    ids = np.random.default_rng(0).integers(3, engine.info.vocab, prompt + tokens)
    chunk, text = engine.info.max_chunk, []
    start = time.perf_counter()
    for at in range(0, prompt, chunk):
        engine.prefill(ids[at : min(at + chunk, prompt)], at)
    prefill = time.perf_counter() - start
    before = getattr(engine, "experts", None) or {}
    start = time.perf_counter()
    for at in range(prompt, prompt + tokens):
        text.append(int(engine.forward(ids[at : at + 1], at)[-1].argmax()))
    seconds = time.perf_counter() - start
    after = getattr(engine, "experts", None) or {}
    engine.close()
    counted = {key: after[key] - before[key] for key in ("hits", "misses", "bytes_read", "stall_s") if key in after}
    rates = {"open_s": round(opened, 2), "prefill_tokens_s": round(prompt / prefill, 2), "tokens_s": round(tokens / seconds, 3)}
    about = {key: after.get(key) for key in ("slots", "mapped", "bytes", "bytes_of_one")}
    per_token = {"read_gb_a_token": round(counted.get("bytes_read", 0) / tokens / 1e9, 4)}
    return {"memory": memory, **rates, **about, **counted, **per_token, "text": text[:16]}


def compare_with(bundle: Path, beside: Path | None, llama: str | None, rounds: int) -> dict[str, Any]:
    """The mixture, another bundle of ours and llama.cpp on a preset's shapes, taking turns (bench.host.compare)."""
    ours = open_bundle(bundle)
    entries = {OURS: our_entry(ours)}
    if beside is not None:
        entries[beside.name] = our_entry(open_bundle(beside))
    if llama is not None:
        config: Any = preset(llama)
        path = cache_folder() / "shapes" / f"{llama}-random-Q4_0.gguf"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            write_random_gguf(config, path)
        entries["llama.cpp"] = Entry(
            "llama.cpp", path, decoded_bytes(config), config.kv_bytes_per_token(2), config.sliding_window
        )
    document = compare(entries, ours.info.max_context, rounds, [128], prompts=(128, 512))
    runtimes = document.pop("runtimes")
    return document | {name: figures | {"logits_cosine": None} for name, figures in runtimes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    exporting = verbs.add_parser("export")
    exporting.add_argument("name")
    exporting.add_argument("out", type=Path)
    exporting.add_argument("--recipe", default="host")
    exporting.add_argument("--context", type=int, default=1024)
    decoding = verbs.add_parser("decode")
    decoding.add_argument("bundle", type=Path)
    decoding.add_argument("--experts-memory", help="one amount or several, each measured (default: all that they need)")
    decoding.add_argument("--tokens", type=int, default=32)
    decoding.add_argument("--prompt", type=int, default=64)
    decoding.add_argument("--picture", type=Path, help="an SVG of hits against memory")
    comparing = verbs.add_parser("compare")
    comparing.add_argument("bundle", type=Path)
    comparing.add_argument("--beside", type=Path, help="another bundle")
    comparing.add_argument("--llama", metavar="PRESET", help="llama.cpp on random blocks of these shapes: speed only")
    comparing.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    try:
        if args.verb == "compare":
            found = compare_with(args.bundle, args.beside, args.llama, args.rounds)
        elif args.verb == "export":
            found = make(args.name, args.out, args.recipe, args.context)
        else:
            budgets = [None] if args.experts_memory is None else map(parse_memory, args.experts_memory.split(","))
            rows = [decode(args.bundle, memory, args.tokens, args.prompt) for memory in budgets]
            found = {"bundle": str(args.bundle), "same_text": len({tuple(row["text"]) for row in rows}) == 1, "rows": rows}
            if args.picture:
                with whole_file(args.picture) as partial:
                    partial.write_text(draw(f"{args.bundle.name}, random weights: experts found in memory", rows), "utf-8")
    except InputError as error:
        sys.exit(f"mixture: {error}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
