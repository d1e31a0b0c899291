"""Checkpoint and bundle of any preset's exact shapes with seeded random weights: for size, time and memory, not for text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from phi3mobile.bench.worker import Worker
from phi3mobile.bundle import is_bundle
from phi3mobile.errors import InputError
from phi3mobile.files import cache_folder
from phi3mobile.models.checkpoint import write_checkpoint
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.presets import preset
from phi3mobile.models.tensors import shapes

POOL = 1 << 24  # distinct normal values; every tensor reads them from its own offset


def random_checkpoint(name: str) -> Path:
    """The folder of preset `name` in the user's cache, written (streaming, fp16) on first use.

    Its tokenizer knows the 256 bytes and no more.
    """
    config = preset(name)
    folder = cache_folder() / "shapes" / name
    if not folder.exists():
        write_checkpoint(folder, config, _tensors(config), torch.float16, finish=write_byte_tokenizer)
    return folder


def shape_bundle(
    name: str, recipe: str, context: int, progress: Callable[[str, int, int], None]
) -> tuple[Path, dict[str, float]]:
    """The bundle of preset `name` in the user's cache, and what making it cost; {} if it was there.

    Exported in a process of its own, whose peak memory is then the export's.
    """
    from phi3mobile.export.recipe import find_recipe

    find_recipe(recipe)
    if not 1 <= context <= (most := preset(name).max_position_embeddings):
        raise InputError(f"--context {context}: {name} takes 1 to {most}")
    versions = f"{version('phi3mobile')}-et{version('executorch')}"
    out = cache_folder() / "shapes" / f"{name}-{recipe}-{context}-{versions}.bundle"
    if is_bundle(out):
        return out, {}
    progress("random weights", 0, 1)
    source = random_checkpoint(name)
    worker = Worker()
    try:
        return out, worker.ask("export", progress, source=str(source), out=str(out), recipe=recipe, context=context)
    finally:
        worker.close()


def write_byte_tokenizer(folder: Path) -> None:
    """A tokenizer that knows the 256 bytes and no more."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def from_pool(pool: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """`count` values of `pool` [P] from `start` on, round and round; the pool's own memory where it has them in one piece."""
    first = pool[start : start + count]
    rest = count - len(first)
    return torch.cat([first, *[pool] * (rest // len(pool)), pool[: rest % len(pool)]]) if rest else first


def _tensors(config: DecoderConfig) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(POOL, generator=generator).half()
    for name, shape in (shapes(config.tensors()) | config.vision_tensors()).items():
        if len(shape) == 1:
            yield name, torch.ones(shape, dtype=torch.float16)
            continue
        count, width = math.prod(shape), math.prod(shape[1:])
        start = int(torch.randint(POOL, (1,), generator=generator))
        spread = width**-0.5
        values = from_pool(pool, start, count)
        yield name, (values * spread).view(shape)
