"""How surely a passage is about a question: one number from the words they share and the cosine of their vectors.

A logistic function. `python -m phi3mobile.bench.retrieval --calibrate` fits its numbers on the questions of
bench/text/collections that are marked for it, half of them; what docs/assistant.md reports is measured on the other half.
"""

from __future__ import annotations

import math

BY_WORDS, BY_COSINE, LEAST = 6.11, 19.62, -8.09
LEAST_BY_WORDS = -2.07  # where the cosine is not known
ENOUGH = 0.65  # of the words, by their weights: such a passage is shown, however far its vector is
RELEVANT = 0.5  # what is less likely to be about the question is not shown
_LANGUAGE = 100  # passages that stand for the language in a small library: there too a word that it lacks says more


def weight(count: int, passages: int) -> float:
    """How much a word says that `count` of so many passages have."""
    return math.log((passages + _LANGUAGE) / (count + 1))


def relevance(share: float, cosine: float | None) -> float:
    """From 0 to 1, given the share of the question's words that the passage has, by their weights, and the cosine (None: not
    known, or the embedder does not know the language).
    """
    sum_ = BY_WORDS * share + (LEAST_BY_WORDS if cosine is None else BY_COSINE * cosine + LEAST)
    return max(1 / (1 + math.exp(-sum_)), RELEVANT if share >= ENOUGH else 0.0)
