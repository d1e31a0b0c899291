"""Next-token sampling: pure functions from logits to a token. Filters' order and meaning are transformers'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phi3mobile.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Applied in this order: repetition penalty, temperature, top-k, top-p, min-p.

    Raises InputError for a value out of range.
    """

    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off; else relative to the most probable token
    repetition_penalty: float = 1.0  # 1: off; counts prompt and answer
    seed: int | None = None  # None: a new one each time
    penalize_prompt: bool = True  # False: the repetition penalty counts the answer alone, so that quoting costs nothing

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, _is_number(self.temperature) and self.temperature >= 0, "0 or more")
        _check("top_k", self.top_k, _is_int(self.top_k) and self.top_k >= 0, "an integer, 0 (off) or more")
        _check("top_p", self.top_p, _is_number(self.top_p) and 0 < self.top_p <= 1, "above 0, at most 1 (off)")
        _check("min_p", self.min_p, _is_number(self.min_p) and 0 <= self.min_p <= 1, "from 0 (off) to 1")
        penalty = self.repetition_penalty
        penalty_ok = _is_number(penalty) and 0.01 <= penalty <= 100
        _check("repetition_penalty", penalty, penalty_ok, "from 0.01 to 100, 1 is off")
        seed_ok = self.seed is None or (_is_int(self.seed) and self.seed >= 0)
        _check("seed", self.seed, seed_ok, "an integer, 0 or more, or None")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(name: str, value: object, ok: bool, allowed: str) -> None:
    if not ok:
        raise InputError(f"sampling: {name} is {value!r}; it must be {allowed}")


GREEDY = Sampling()


def distribution(logits: np.ndarray, sampling: Sampling, previous: Sequence[int]) -> np.ndarray:
    """Probabilities float64 [V] of the next token, from `logits` float32 [V] and the ids `previous` to it.

    At temperature 0 all of it is on the greedy token. Raises RuntimeError for NaN or +inf logits.
    """
    scores = _penalized(logits, sampling.repetition_penalty, previous)
    if sampling.temperature == 0:
        probabilities = np.zeros(len(scores))
        probabilities[int(scores.argmax())] = 1.0
        return probabilities
    with np.errstate(over="ignore"):  # the maximum goes first: a tiny temperature gives -inf elsewhere, which is right
        scores = (scores - scores.max()) / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores[scores < np.partition(scores, -sampling.top_k)[-sampling.top_k]] = -np.inf
    probabilities = np.exp(scores)
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        _keep_nucleus(probabilities, sampling.top_p)
    if sampling.min_p > 0:
        probabilities[probabilities < sampling.min_p * probabilities.max()] = 0.0
    return probabilities / probabilities.sum()


def sample(logits: np.ndarray, sampling: Sampling, previous: Sequence[int], rng: np.random.Generator) -> int:
    """The next token from `logits` float32 [V]: greedy at temperature 0 (of equals the lowest id), else drawn.

    Exactly one number from `rng` per drawn token: verifying a draft and plain decoding then see the same numbers.
    """
    if sampling.temperature == 0:
        return int(_penalized(logits, sampling.repetition_penalty, previous).argmax())
    cumulative = distribution(logits, sampling, previous).cumsum()
    # side="right" never lands on a token of probability 0; the total is not exactly 1, so the draw is scaled to it.
    token = int(cumulative.searchsorted(rng.random() * cumulative[-1], side="right"))
    return min(token, int(cumulative.searchsorted(cumulative[-1])))


def _penalized(logits: np.ndarray, penalty: float, previous: Sequence[int]) -> np.ndarray:
    """Logits float64 [V]; those of seen tokens divided by `penalty`, multiplied if negative (CTRL, 1909.05858)."""
    highest = logits.max()  # NaN if any logit is
    if not np.isfinite(highest):
        raise RuntimeError(f"the model returned unusable logits: their maximum is {highest}")
    scores = logits.astype(np.float64)
    if penalty != 1 and len(previous):
        seen = np.unique(np.asarray(previous, dtype=np.int64))
        seen = seen[seen < len(scores)]
        scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return scores


def _keep_nucleus(probabilities: np.ndarray, top_p: float) -> None:
    """Zero, in place, the least probable tokens that have at most 1 - top_p together; of equals, higher ids first."""
    cut = 1 - top_p
    # Tokens of at most cut/V each can't have more than `cut` together: they go without being sorted, mostly nearly all.
    small = (probabilities <= cut / len(probabilities)) & (probabilities < probabilities.max())
    rest = np.flatnonzero(~small)[::-1]
    rest = rest[probabilities[rest].argsort(kind="stable")]
    removed = probabilities[small].sum() + probabilities[rest].cumsum() <= cut
    removed[-1] = False
    probabilities[small] = 0.0
    probabilities[rest[removed]] = 0.0
