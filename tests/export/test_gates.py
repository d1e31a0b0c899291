"""No gate passes on a value that is not finite: verify's decibels, the quality card, and what decides by it."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import random_model, tiny

from phi3mobile.bundle import open_bundle
from phi3mobile.cli import main
from phi3mobile.engines.eager import EagerEngine
from phi3mobile.errors import InputError
from phi3mobile.export.solve.build import refuse_loss
from phi3mobile.export.solve.card import compare as compare_answers
from phi3mobile.export.solve.card import signal_to_noise
from phi3mobile.export.verify import Comparison, Error, compare
from phi3mobile.manifest import MANIFEST
from phi3mobile.models.checkpoint import open_checkpoint

BAD = [math.nan, math.inf, -math.inf]
PROMPT = [5, 6, 7, 8, 9]


def errors(*pairs):
    error = Error()
    for reference, values in pairs:
        error.add(np.array(reference, np.float32), np.array(values, np.float32))
    return error


@pytest.mark.parametrize("value", BAD)
def test_decibels_of_what_is_not_finite_are_the_least(value):
    good = [1.0, 2.0], [1.0, 2.0]
    assert errors(good).psnr == 200
    for pair in (([1.0, value], [1.0, 2.0]), ([1.0, 2.0], [1.0, value]), ([1.0, value], [1.0, value])):
        for order in ((pair,), (pair, good), (good, pair)):
            assert errors(*order).psnr == -200 and not errors(*order).finite


def test_decibels_of_nothing_are_the_least():
    assert Error().psnr == -200 and errors(([], [])).psnr == -200


@given(st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), min_size=1, max_size=8))
def test_decibels_are_a_finite_number_and_high_only_for_finite_pairs(pairs):
    error = errors(([one for one, _ in pairs], [other for _, other in pairs]))
    assert math.isfinite(error.psnr)
    if not all(math.isfinite(value) for pair in pairs for value in pair):
        assert error.psnr == -200


@pytest.mark.parametrize("gate", [None, 40.0, -300.0])
def test_a_comparison_passes_only_on_what_was_compared_and_finite(gate):
    good, bad = errors(([1.0], [1.0])), errors(([1.0], [math.nan]))
    assert Comparison("x", gate, {"prefill": good}).passed
    assert Comparison("x", gate, {"prefill": good}, [good, Error()]).passed  # a layer that the engine does not show
    assert not Comparison("x", gate, {}).passed
    assert not Comparison("x", gate, {"prefill": Error()}).passed
    assert not Comparison("x", gate, {"prefill": good, "decode": bad}).passed
    assert not Comparison("x", gate, {"prefill": good}, [good, bad]).passed


def spoilt(model, name, value):
    """The same model with one value of one weight replaced."""
    weight = model.get_parameter(name)
    weight.data = weight.data.clone()
    weight.data.view(-1)[0] = value
    return model


@pytest.mark.parametrize("side", ["reference", "engine", "both"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_of_nan_does_not_pass(value, side):
    models = [random_model(tiny("tiny-gqa")), random_model(tiny("tiny-gqa"))]
    assert compare("x", 100.0, EagerEngine(models[0]), models[1], [PROMPT]).passed
    for model in {"reference": models[1:], "engine": models[:1], "both": models}[side]:
        spoilt(model, "model.norm.weight", value)
    for gate in (None, 40.0):
        found = compare("x", gate, EagerEngine(models[0]), models[1], [PROMPT])
        assert not found.passed and not found.document()["passed"]
        assert set(found.document()["logits_dB"].values()) == {-200}
        json.dumps(found.document(), allow_nan=False)


class Says(EagerEngine):
    """An engine whose logits of the ids that its model never says are something else."""

    value = 0.0

    def forward(self, *arguments, **options):
        logits = super().forward(*arguments, **options).copy()
        logits[:, list(self.model.config.masked_ids)] = self.value
        return logits


@pytest.mark.parametrize(("value", "passes"), [(-np.inf, True), (-4e4, True), (np.nan, False), (1e4, False), (np.inf, False)])
def test_ids_that_are_never_said_must_not_be(value, passes):
    config = tiny("small-tiny")
    assert config.masked_ids
    engine = Says(random_model(config))
    engine.value = value
    assert compare("x", 100.0, engine, random_model(config), [PROMPT]).passed == passes


def test_verify_fails_on_a_bundle_and_checkpoint_of_nan(bundle_of, checkpoint_of, tmp_path, capsys, monkeypatch):
    """As such a bundle could be made before: its weights are spoilt behind the exporter's back."""
    from phi3mobile.export import verify
    from phi3mobile.models import checkpoint as reading

    folder = shutil.copytree(checkpoint_of("tiny-gqa"), tmp_path / "c")
    bundle = shutil.copytree(bundle_of("tiny-gqa"), tmp_path / "b")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][:] = math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["provenance"] |= {"source": str(folder), "source_hash": open_checkpoint(folder).source_hash()}
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    assert main(["verify", str(bundle)]) == 2  # the checkpoint is refused, by the tensor's name
    assert "model.norm.weight has values that are not finite" in capsys.readouterr().err
    monkeypatch.setattr(reading, "require_finite", lambda *arguments: None)
    opened = open_bundle(bundle)
    comparisons = verify.verify(opened, verify.source_of(opened, None), [PROMPT])
    passed = {comparison.name: comparison.passed for comparison in comparisons}
    assert passed == {"weights": False, "int8 activations": True, "4 bit": False}  # the program's own weights are good


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_quality_card_is_not_made_of_nan(value):
    config = tiny("tiny-gqa")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (1, 8), generator=generator)
    exact, head = torch.randn(1, 8, 64, generator=generator), torch.randn(config.vocab_size, 64, generator=generator)
    assert compare_answers(config, tokens, exact, head, exact, head)["kl"] == 0
    other = exact.clone()
    other[0, 3, 5] = value
    for pair in ((exact, other), (other, exact), (other, other)):
        with pytest.raises(InputError, match=r"the log likelihoods are .*the models can't be compared"):
            compare_answers(config, tokens, pair[0], head, pair[1], head)
    assert math.isfinite(signal_to_noise(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)))


def test_loss_that_is_no_number_is_refused():
    good = {"ratio": 1.01, "kl": 0.01, "perplexity": 10.1, "perplexity_float": 10.0}
    refuse_loss(good, 1000)
    for key in good:
        for value in BAD:
            with pytest.raises(InputError, match="the quantized model is of no use"):
                refuse_loss(good | {key: value}, 1000)


def test_a_budget_is_not_chosen_by_nan(checkpoint_of, monkeypatch):
    from phi3mobile.export.solve import budget

    checkpoint = open_checkpoint(checkpoint_of("tiny-gqa"))
    run = budget.run_layer
    monkeypatch.setattr(budget, "run_layer", lambda *arguments: run(*arguments) * math.inf)
    with pytest.raises(InputError, match="what layer 0 makes is not finite"):
        budget.measure_classes(checkpoint, torch.tensor([PROMPT]))


def test_a_card_that_is_not_finite_is_no_manifest(bundle_of, tmp_path):
    bundle = shutil.copytree(bundle_of("tiny-gqa"), tmp_path / "b")
    manifest = json.loads((bundle / MANIFEST).read_text())
    card = dict.fromkeys(("bits_per_weight", "tokens", "perplexity_float", "perplexity", "ratio", "kl", "top1"), 1.0)
    card |= {"method": "gptq", "rotated": False, "calibration": {}, "layers_db": [30.0]}
    (bundle / MANIFEST).write_text(json.dumps(manifest | {"quality": card}))
    open_bundle(bundle)
    for change in ({"ratio": math.nan}, {"kl": math.inf}, {"layers_db": [30.0, math.nan]}, {"layers_db": [-math.inf]}):
        (bundle / MANIFEST).write_text(json.dumps(manifest | {"quality": card | change}))
        with pytest.raises(InputError):
            open_bundle(bundle)


def test_perplexity_and_scores_of_nan_are_refused():
    from phi3mobile.bench.evaluate.forwards import Reader
    from phi3mobile.bench.evaluate.results import result_line
    from phi3mobile.bench.perplexity import perplexity

    engine = EagerEngine(random_model(tiny("tiny-gqa")), chunk=4)
    assert 1 < perplexity(engine, PROMPT) < math.exp(700) and Reader(engine).score(PROMPT, 0, {1}).following
    for value in (math.nan, math.inf):
        broken = EagerEngine(spoilt(random_model(tiny("tiny-gqa")), "model.norm.weight", value), chunk=4)
        with pytest.raises(InputError, match=r"logits are not finite \(NaN or infinity\)"):
            perplexity(broken, PROMPT)
        with pytest.raises(InputError, match="logits after 4 tokens are not finite"):
            Reader(broken).score(PROMPT, 0, {1})
        with pytest.raises(InputError, match=f"mmlu: the score is {value}"):
            result_line("mmlu", {"score": value}, {}, "x")


def test_a_perplexity_past_all_bounds_is_a_number():
    from phi3mobile.bench.perplexity import perplexity

    model = random_model(tiny("tiny-gqa"))
    model.lm_head.weight.data *= 1e6
    assert perplexity(EagerEngine(model, chunk=4), PROMPT) == math.exp(700)


def test_results_of_nan_are_not_read(tmp_path):
    from phi3mobile.bench.evaluate.results import read_results, result_line

    line = result_line("mmlu", {"score": 0.5, "metric": "acc", "n": 3, "metrics": {}}, {"name": "x"}, "hash")
    (tmp_path / "r.jsonl").write_text(json.dumps(line))
    assert read_results(tmp_path / "r.jsonl") == [line]
    (tmp_path / "r.jsonl").write_text(json.dumps(line | {"score": math.nan}))
    with pytest.raises(InputError, match="line 1 has the score nan"):
        read_results(tmp_path / "r.jsonl")


def test_a_search_is_not_led_by_nan():
    from phi3mobile.training.batches import stream_rows
    from phi3mobile.training.long_eval import needle_losses
    from phi3mobile.training.loop import mean_loss
    from phi3mobile.training.model import empty_hf

    model = empty_hf(replace(tiny("tiny-gqa"), num_hidden_layers=1))
    tokens = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
    rows = stream_rows(tokens, torch.zeros_like(tokens))
    assert math.isfinite(mean_loss(model, rows)) and len(needle_losses(model, rows)) == 2
    model.model.norm.weight.data[0] = math.nan
    with pytest.raises(InputError, match="the loss on held-out rows is nan"):
        mean_loss(model, rows)
    with pytest.raises(InputError, match="the loss of the needles has values that are not finite"):
        needle_losses(model, rows)
