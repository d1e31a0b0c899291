"""Models that see pictures at full size with random weights: exported without a float copy on disk, and a view timed beside
torch. For size, time and memory, not for text.

    python -m phi3mobile.bench.vision export phi-3.5-vision OUT [--recipe host] [--context 4096]
    python -m phi3mobile.bench.vision encode OUT [--rounds 5] [--torch-threads 2] [--skip-torch]
    python -m phi3mobile.bench.vision answer OUT [--num-crops 4] [--width 4032 --height 3024] [--transformers phi-3.5-vision]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phi3mobile.bench.measure import usable_cores
from phi3mobile.bench.mixture import RandomCheckpoint, make
from phi3mobile.bench.vision_transformers import first_token
from phi3mobile.bundle import open_bundle
from phi3mobile.engines.registry import open_engine, open_tower
from phi3mobile.errors import InputError
from phi3mobile.export.tower_pictures import measured_views
from phi3mobile.models.clip import Vision
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.vision_config import VisionConfig
from phi3mobile.session.pictures import Pictures


class SeeingCheckpoint(RandomCheckpoint):
    """With a tower's tensors, too."""

    def __init__(self, config: DecoderConfig, folder: Path) -> None:
        super().__init__(config, folder)
        if config.vision is None:
            raise InputError(f"model_type {config.family} sees no pictures: take phi-3-vision or phi-3.5-vision")
        self._tower = config.vision_tensors()
        self._order |= {name: len(self._order) + number for number, name in enumerate(self._tower)}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tower[name] if name in self._tower else super().shape(name)

    def tensor(self, name: str) -> torch.Tensor:
        return self.drawn(name, self._tower[name]) if name in self._tower else super().tensor(name)


def encode(bundle: Path, rounds: int, threads: int, skip_torch: bool) -> dict[str, Any]:
    """Seconds of one view and of 757 projected rows: ours, and torch's in float32 and int8, taking turns."""
    opened = open_bundle(bundle)
    start = time.perf_counter()
    tower = open_tower(opened)
    about, view = opened.vision, measured_views()[:1]
    assert about is not None
    tower.encode(view[0].numpy())  # loads
    loaded = time.perf_counter() - start
    rows = np.random.default_rng(0).standard_normal((757, 4 * about["width"])).astype(np.float32)
    runs: dict[str, Callable[[], object]] = {
        "view": lambda: tower.encode(view[0].numpy()),
        "757 rows": lambda: tower.project(rows),
    }
    if not skip_torch:
        torch.set_num_threads(threads)
        floats = _random_vision(VisionConfig(about["hidden"], about["width"]))
        eight = torch.ao.quantization.quantize_dynamic(_random_vision(floats.config), {torch.nn.Linear}, dtype=torch.qint8)
        runs |= {"torch float32, view": lambda: floats.encode(view), "torch int8, view": lambda: eight.encode(view)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    tower.close()
    seconds = {name: {"median_s": statistics.median(own), "best_s": min(own)} for name, own in times.items()}
    return {"bundle": str(bundle), "open_and_first_view_s": round(loaded, 2), "rounds": rounds, **seconds}


def _random_vision(config: VisionConfig) -> Vision:
    torch.manual_seed(0)
    return Vision(config).eval()


def answer(bundle: Path, num_crops: int, width: int, height: int) -> dict[str, Any]:
    """Seconds until the first token after a picture and 20 tokens of text: encoder, prefill, all."""
    opened = open_bundle(bundle)
    engine, chunk = open_engine(opened), opened.info.max_chunk
    pictures = Pictures(open_tower(opened), num_crops)
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([x * 255 // width, y * 255 // height, (x ^ y) & 255], -1).astype(np.uint8)
    text = np.random.default_rng(0).integers(3, engine.info.vocab, 20)
    engine.forward(text, 0)
    start = time.perf_counter()
    ids = pictures.ids(picture)
    prepared = time.perf_counter() - start
    rows, position = pictures.embeddings(ids), 0
    encoded = time.perf_counter() - start
    long = engine.info.original_context is not None and len(ids) + len(text) > engine.info.original_context
    for at in range(0, len(rows), chunk):
        part = rows[at : at + chunk]
        engine.prefill_embeddings(part, position, long)
        position += len(part)
    engine.forward(text, position, long)
    total = time.perf_counter() - start
    views = pictures.views
    engine.close()
    pictures.close()
    return {
        "bundle": str(bundle),
        "tokens": len(ids) + len(text),
        "views": views,
        "preprocessing_s": round(prepared, 3),
        "tower_s": round(encoded - prepared, 3),
        "view_s": round(pictures.encode_s / views, 3),
        "prefill_s": round(total - encoded, 3),
        "first_token_s": round(total, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    exporting = verbs.add_parser("export")
    exporting.add_argument("name")
    exporting.add_argument("out", type=Path)
    exporting.add_argument("--recipe", default="host")
    exporting.add_argument("--context", type=int, default=4096)
    encoding = verbs.add_parser("encode")
    encoding.add_argument("bundle", type=Path)
    encoding.add_argument("--rounds", type=int, default=5)
    encoding.add_argument("--torch-threads", type=int, default=2)
    encoding.add_argument("--skip-torch", action="store_true")
    answering = verbs.add_parser("answer")
    answering.add_argument("bundle", type=Path)
    answering.add_argument("--num-crops", type=int, default=4)
    answering.add_argument("--width", type=int, default=4032)
    answering.add_argument("--height", type=int, default=3024)
    answering.add_argument(
        "--transformers", metavar="NAME", help="that shape in transformers, too: 4 bytes a parameter of memory"
    )
    args = parser.parse_args()
    try:
        if args.verb == "export":
            found = make(args.name, args.out, args.recipe, args.context, SeeingCheckpoint)
        elif args.verb == "encode":
            found = encode(args.bundle, args.rounds, args.torch_threads, args.skip_torch)
        else:
            found = answer(args.bundle, args.num_crops, args.width, args.height)
            if args.transformers is not None:
                found["transformers"] = first_token(args.transformers, found["views"], found["tokens"], usable_cores())
    except InputError as error:
        sys.exit(f"vision: {error}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
