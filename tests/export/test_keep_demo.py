"""The demo's bundle: its GGUF's own integers, a card that shows it, and the answers of the file."""

import numpy as np
import pytest

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.eager import EagerEngine
from phi3mobile.engines.registry import open_engine
from phi3mobile.export.demo_model import demo_gguf, make_bundle
from phi3mobile.models.loading import model_from
from phi3mobile.models.source import open_source

pytestmark = pytest.mark.slow
MARGIN = 0.5  # of logits: nearer than that, int8 activations may choose the other


@pytest.fixture(scope="module")
def kept_demo(demo_folder, tmp_path_factory):
    """Recipe android-cpu (a minute)."""
    path = tmp_path_factory.mktemp("kept") / "bundle"
    make_bundle(path, "android-cpu")
    return open_bundle(path)


def test_the_card_says_that_the_integers_are_the_files(kept_demo):
    quality = kept_demo.manifest["quality"]
    assert quality["method"] == "keep" and quality["bits_per_weight"] == pytest.approx(4.797, abs=0.001)
    assert quality["kept"] == {"Q8_0": {"8 bit, rounded again": 2}, "Q4_1": {"4 bit, offsets, its integers": 120}}
    assert quality["kl"] < 0.016 and quality["ratio"] < 1.025


@pytest.mark.parametrize("question", ["What is the capital of France?", "Name the largest planet of the solar system."])
def test_its_answers_begin_as_the_files(kept_demo, question):
    """Along the dequantized file's own likeliest tokens, the bundle has the same one wherever the file is not torn."""
    ids = list(kept_demo.chat.encode(kept_demo.tokenizer, [{"role": "user", "content": question}]))
    ours, file = open_engine(kept_demo), EagerEngine(model_from(open_source(demo_gguf()), 256), chunk=128)
    new, at, sure = ids, 0, 0
    for _ in range(12):
        found, exact = (engine.forward(np.array(new), at)[-1] for engine in (ours, file))
        second, first = np.sort(exact)[-2:]
        if first - second > MARGIN:
            assert found.argmax() == exact.argmax()
            sure += 1
        at, new = at + len(new), [int(exact.argmax())]
    assert sure >= 6
    ours.close()
    file.close()
