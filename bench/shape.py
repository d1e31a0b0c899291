"""A checkpoint of any preset's exact shapes with seeded random weights: for size, time and memory, not for text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from phi3mobile.files import cache_folder
from phi3mobile.models.config import Phi3Config
from phi3mobile.models.presets import preset
from phi3mobile.models.weights import expected_tensors, write_checkpoint

POOL = 1 << 24  # distinct normal values; every tensor reads them from its own offset


def random_checkpoint(name: str) -> Path:
    """The folder of preset `name` in the user's cache, written (streaming, fp16) on first use.

    Its tokenizer knows the 256 bytes and no more.
    """
    config = preset(name)
    folder = cache_folder() / "shapes" / name
    if not folder.exists():
        write_checkpoint(folder, config, _tensors(config), torch.float16, finish=_write_tokenizer)
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def _tensors(config: Phi3Config) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(POOL, generator=generator).half()
    for name, shape in expected_tensors(config).items():
        if len(shape) == 1:
            yield name, torch.ones(shape, dtype=torch.float16)
            continue
        count = shape[0] * shape[1]
        start = int(torch.randint(POOL, (1,), generator=generator))
        spread = shape[1] ** -0.5
        values = torch.cat([pool[start:], *[pool] * (count // POOL + 1)])[:count]
        yield name, (values * spread).view(shape)
