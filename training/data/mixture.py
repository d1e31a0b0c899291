"""What a training run reads: phases of weighted sources, in an order that is a function of the seed and the position alone.

Every source is cut into blocks of T tokens, permuted anew each epoch. A source named in several phases goes on where the
phase before stopped: no block comes again before the source's epochs allow it. In each phase every source has a fixed number
of blocks, spread evenly, so any stretch of a phase has the mixture asked for to within a block or so per source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from phi3mobile.errors import InputError
from phi3mobile.training.data.shards import Shards, Vocabulary, block, open_shards


@dataclass(frozen=True)
class Source:
    """A folder of shards, its share of the phase's tokens, and how often it may be read, earlier phases included."""

    path: Path
    weight: float = 1.0
    epochs: float = 1.0


@dataclass(frozen=True)
class Phase:
    """Sources read together. `tokens` 0: as many as the weights and epochs allow."""

    sources: tuple[Source, ...]
    tokens: int = 0
    name: str = ""


@dataclass(frozen=True)
class Mixture:
    """Phases in order. `disjoint`: no document of a phase may be in another phase's other sources (checked by content)."""

    phases: tuple[Phase, ...]
    seed: int = 0
    disjoint: bool = True


class Sampler:
    """The blocks of one rank: an iterator of {tokens, segments: int32 [length]; phase, source: int}.

    All ranks together read one global sequence (cut to a multiple of `world` blocks); `state_dict` is the same on all of
    them and may be loaded with another world size.

    folder: relative source paths start here. hashes: check the shards' contents on opening (one rank is enough).
    Raises InputError: unknown or damaged sources, bad weights, a phase that asks for more than its sources' epochs hold,
    sources of different tokenizers, documents common to two phases.
    """

    def __init__(
        self, mixture: Mixture, length: int, rank: int = 0, world: int = 1, *, folder: Path = Path(), hashes: bool = True
    ) -> None:
        _check(mixture, length, rank, world)
        self._mixture, self._length, self._rank, self._world = mixture, length, rank, world
        paths = dict.fromkeys(source.path for phase in mixture.phases for source in phase.sources)
        self._shards = {path: open_shards(folder / path, hashes=hashes) for path in paths}
        self.vocabulary = _one_vocabulary(self._shards)
        if mixture.disjoint:
            _check_disjoint(mixture, self._shards)
        self.quotas = plan(mixture, {path: shards.tokens // length for path, shards in self._shards.items()}, length)
        self._ends = np.cumsum([sum(quota) for quota in self.quotas])
        self.blocks = int(self._ends[-1]) // world  # of this rank, over all phases
        if not self.blocks:
            raise InputError(f"the mixture has {self._ends[-1]} blocks of {length} tokens for {world} ranks; give more data")
        self._taken, self._counts = 0, [0] * len(self.quotas[0])

    @property
    def tokens(self) -> int:
        """Tokens of the whole run, over all ranks."""
        return self.blocks * self._world * self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._taken >= self.blocks * self._world:
            raise StopIteration
        # Ranks take turns in a group: else, with two equal sources, each of two ranks would see one source only.
        mine = (self._rank + self._taken // self._world) % self._world
        return self._block(*[self._advance() for _ in range(self._world)][mine])

    def _advance(self) -> tuple[int, int, int]:
        """The next of the global sequence: phase, source in it, how many of the source's blocks came before in the run."""
        phase = int(np.searchsorted(self._ends, self._taken, "right"))
        if phase and self._taken == self._ends[phase - 1]:
            self._counts = [0] * len(self.quotas[phase])
        quota = self.quotas[phase]
        source = min((i for i in range(len(quota)) if quota[i]), key=lambda i: (self._counts[i] + 0.5) / quota[i])
        number = self._counts[source] + self._earlier(phase, source)
        self._counts[source] += 1
        self._taken += 1
        return phase, source, number

    def _earlier(self, phase: int, source: int) -> int:
        path = self._mixture.phases[phase].sources[source].path
        return sum(
            count
            for before, quota in zip(self._mixture.phases[:phase], self.quotas, strict=False)
            for other, count in zip(before.sources, quota, strict=True)
            if other.path == path
        )

    def _block(self, phase: int, source: int, number: int) -> dict[str, Any]:
        path = self._mixture.phases[phase].sources[source].path
        shards = self._shards[path]
        count = shards.tokens // self._length
        epoch, index = divmod(number, count)
        key = f"{self._mixture.seed} {path} {epoch}"
        offset = _hash(key) % (shards.tokens - count * self._length + 1)  # the tail is left out elsewhere each epoch
        start = offset + permuted(index, count, key) * self._length
        return block(shards, start, self._length) | {"phase": phase, "source": source}

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON values, and a fingerprint of what it is a position in."""
        return {"mixture": self.fingerprint(), "taken": self._taken, "counts": list(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly after what was read when `state` was taken. Raises InputError if it is of another mixture."""
        if state.get("mixture") != self.fingerprint():
            raise InputError(
                "the saved data position is of another mixture, seed, length or other shards; "
                "restore what it was saved with, or start a new run"
            )
        if state["taken"] % self._world:
            raise InputError(f"{state['taken']} blocks were read, not divisible by {self._world} ranks; use as many as before")
        self._taken, self._counts = state["taken"], list(state["counts"])

    def fingerprint(self) -> str:
        """Hash of all that decides the global sequence."""
        contents = [(str(path), shards.fingerprint) for path, shards in self._shards.items()]
        return hashlib.sha256(repr((asdict(self._mixture), self._length, contents)).encode()).hexdigest()[:32]


def plan(mixture: Mixture, blocks: Mapping[Path, int], length: int) -> list[list[int]]:
    """How many blocks each phase takes of each of its sources, `blocks` being those of one epoch.

    Raises InputError where a source's epochs do not last.
    """
    used, quotas = dict.fromkeys(blocks, 0), []
    for number, phase in enumerate(mixture.phases):
        name = phase.name or f"phase {number + 1}"
        total = sum(source.weight for source in phase.sources)
        left = {source.path: max(0, int(blocks[source.path] * source.epochs) - used[source.path]) for source in phase.sources}
        most = {s.path: int(left[s.path] * total / s.weight + 1e-9) for s in phase.sources if s.weight}
        short = min(most, key=most.get)
        wanted = phase.tokens // length or most[short]
        if not 0 < wanted <= most[short]:
            raise InputError(
                f"{name} asks for {phase.tokens:,} tokens in blocks of {length}, but {short} allows "
                f"{most[short] * length:,} at its weight: {blocks[short]} blocks an epoch, {used[short]} read before; "
                "lower tokens, length or its weight, or raise its epochs"
            )
        quota = apportion([source.weight / total for source in phase.sources], wanted)
        for source, count in zip(phase.sources, quota, strict=True):
            used[source.path] += count
        quotas.append(quota)
    return quotas


def apportion(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to `shares` (of sum 1) that add up to `total`: the largest remainders round up."""
    exact = [share * total for share in shares]
    counts = [int(value + 1e-9) for value in exact]
    order = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


def permuted(index: int, count: int, key: str) -> int:
    """Where `index` goes in a pseudo-random permutation of range(count), in constant memory.

    A four-round Feistel network over the next even number of bits; a value outside the range is put through again.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            left, right = right, left ^ (_hash(f"{key} {turn} {right}") & mask)
        index = left << half | right
        if index < count:
            return index


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _check(mixture: Mixture, length: int, rank: int, world: int) -> None:
    if length < 1 or not 0 <= rank < world:
        raise InputError(f"length {length}, rank {rank} of {world}; length is 1 or more, ranks are 0 to world - 1")
    if not mixture.phases or not all(phase.sources for phase in mixture.phases):
        raise InputError("the mixture has a phase without sources; give each phase at least one")
    for phase in mixture.phases:
        if len({source.path for source in phase.sources}) < len(phase.sources):
            raise InputError(f"{phase.name or 'a phase'} names a source twice; add up its weights")
        if any(s.weight < 0 or s.epochs <= 0 for s in phase.sources) or sum(s.weight for s in phase.sources) <= 0:
            raise InputError("weights must be 0 or more and not all 0, epochs above 0")
        if phase.tokens < 0:
            raise InputError(f"tokens is {phase.tokens}; give 0 (all there is) or more")


def _one_vocabulary(shards: Mapping[Path, Shards]) -> Vocabulary:
    (first, opened), *others = shards.items()
    for path, other in others:
        if other.vocabulary != opened.vocabulary:
            raise InputError(f"{path} and {first} were made with different tokenizers; build them with one")
    return opened.vocabulary


def _check_disjoint(mixture: Mixture, shards: Mapping[Path, Shards]) -> None:
    for one, other in combinations(mixture.phases, 2):
        for first in (source.path for source in one.sources):
            for second in (source.path for source in other.sources if source.path != first):
                common = len(np.intersect1d(shards[first].keys(), shards[second].keys()))
                if common:
                    raise InputError(
                        f"{common} documents of {first} are in {second} too, in another phase; "
                        "build them apart (score bounds), or set disjoint = false"
                    )
