"""Where a training step's rows come from: token shards through the mixture's sampler, or examples packed beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from phi3mobile.errors import InputError
from phi3mobile.training.batches import Rows, stack, stream_rows
from phi3mobile.training.data.mixture import Mixture, Sampler


class Source(Protocol):
    """Rows of this process, step after step; the state says where the next step begins."""

    def next(self) -> Rows: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


class TextSource:
    """Rows of a mixture of token shards: `rows` in all processes, `length` tokens each."""

    def __init__(self, mixture: Mixture, rows: int, length: int, rank: int = 0, world: int = 1) -> None:
        if rows % world:
            raise InputError(f"batch: {rows} rows on {world} processes; give a multiple")
        # One token more than a row: the last label. Only one process need hash the files.
        self.sampler = Sampler(mixture, length + 1, rank, world, folder=Path(), hashes=rank == 0)
        self.rows = rows // world

    def check(self, steps: int, vocab: int, tokenizer: str | Path | None) -> None:
        """InputError if the data is too short for `steps`, or was made with another tokenizer than the model's."""
        if (asked := steps * self.rows) > self.sampler.blocks:
            raise InputError(
                f"{steps} steps read {asked:,} rows a process, the mixture holds {self.sampler.blocks:,}; "
                "lower schedule.steps, or raise the phases' tokens or epochs"
            )
        check_vocabulary(self.sampler.vocabulary, vocab, tokenizer)

    def next(self) -> Rows:
        blocks = [next(self.sampler) for _ in range(self.rows)]
        tokens, segments = (torch.from_numpy(np.stack([block[key] for block in blocks])) for key in ("tokens", "segments"))
        return stream_rows(tokens, segments)

    def state(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)


class PackedSource:
    """Packed examples in an order permuted anew each epoch: a function of the seed and the step alone."""

    def __init__(self, packed: Rows, rows: int, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        if rows % world:
            raise InputError(f"batch: {rows} rows on {world} processes; give a multiple")
        self.packed, self.rows, self.seed, self.rank, self.world, self.taken = packed, rows, seed, rank, world, 0
        self.order: tuple[int, np.ndarray] | None = None  # of the epoch that is read

    def next(self) -> Rows:
        places = range(self.taken, self.taken + self.rows)
        self.taken += self.rows
        index = torch.tensor([self._row(place) for place in places[self.rank :: self.world]])
        return self.packed.map(lambda tensor: tensor[index])

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken, "of": len(self.packed)}

    def load(self, state: dict[str, Any]) -> None:
        if state["of"] != len(self.packed):
            raise InputError(
                f"the saved run had {state['of']} rows of examples, now there are {len(self.packed)}; "
                "restore its files, or start a new run"
            )
        self.taken = state["taken"]

    def _row(self, place: int) -> int:
        epoch, within = divmod(place, len(self.packed))
        if self.order is None or self.order[0] != epoch:
            self.order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.packed))
        return int(self.order[1][within])


class TakingTurns:
    """Several sources, one a step, in the repeating `order` of their numbers: mixed-window training."""

    def __init__(self, sources: list[Source], order: list[int]) -> None:
        self.sources, self.order, self.step = sources, order, 0

    def next(self) -> Rows:
        source = self.sources[self.order[self.step % len(self.order)]]
        self.step += 1
        return source.next()

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "sources": [source.state() for source in self.sources]}

    def load(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        for source, saved in zip(self.sources, state["sources"], strict=True):
            source.load(saved)


def check_vocabulary(vocabulary: Any, vocab: int, tokenizer: str | Path | None) -> None:
    """InputError if shards' ids do not fit the model, or their tokenizer file is not the model's."""
    from phi3mobile.files import sha256
    from phi3mobile.models.companions import vocabulary_file

    if vocabulary.size > vocab:
        raise InputError(f"the shards' tokenizer has {vocabulary.size} ids, the model {vocab}; take the same tokenizer")
    file = vocabulary_file(Path(tokenizer)) if tokenizer else None
    if file and vocabulary.sha256 and sha256(file) != vocabulary.sha256:
        raise InputError(f"the shards were made with another tokenizer than {file}; run phi3mobile data again with this one")


def held_out(folder: str | Path, length: int, rows: int = 0) -> Rows:
    """The first `rows` rows (0: all) of a shard folder, in order: for measuring."""
    from phi3mobile.training.data.shards import open_shards

    found = []
    for block in open_shards(folder).blocks(length + 1):
        found.append(stream_rows(*(torch.from_numpy(block[key])[None] for key in ("tokens", "segments"))))
        if len(found) == rows:
            break
    return stack(found)
