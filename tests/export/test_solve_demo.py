"""The demo model by the default method: what its card says, what it answers, and that it beats rounding. Minutes."""

import pytest
import torch

from phi3mobile.bundle import open_bundle
from phi3mobile.export.build import export
from phi3mobile.export.packed import PackedModel, load_packed
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.solve.calibration import card_tokens
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.session.session import Session
from phi3mobile.text.vocabularies import load_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def solved_bundle(demo_checkpoint, tmp_path_factory):
    return export(demo_checkpoint, tmp_path_factory.mktemp("solved") / "bundle")


def test_the_card_beats_rounding_to_nearest(demo_checkpoint, solved_bundle):
    quality = open_bundle(solved_bundle).manifest["quality"]
    checkpoint = open_checkpoint(demo_checkpoint)
    nearest = load_packed(PackedModel(checkpoint, find_recipe("android-cpu")), 512)
    nll = count = 0
    for row in card_tokens(load_tokenizer(demo_checkpoint), checkpoint.config):
        nearest.reset()
        nll -= float(nearest(row[None])[0, :-1].log_softmax(-1).gather(1, row[1:, None]).sum())
        count += len(row) - 1
    rounded = torch.tensor(nll / count).exp().item()
    assert quality["bits_per_weight"] == 4.5 and quality["tokens"] == count
    assert quality["perplexity_float"] < quality["perplexity"] < rounded
    assert quality["ratio"] - 1 < 0.6 * (rounded / quality["perplexity_float"] - 1)


def test_it_answers(solved_bundle):
    with Session(solved_bundle) as session:
        answer = "".join(session.generate([{"role": "user", "content": "What is the capital of France?"}], max_tokens=40))
    assert "Paris" in answer
