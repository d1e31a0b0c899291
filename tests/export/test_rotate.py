"""Turned checkpoints: the turn is orthogonal and even, the model's function stays, int8 gains, the solve takes them."""

import json
import shutil

import numpy as np
import pytest
import torch
from exported import talking_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import random_tokens

from phi3mobile.bundle import open_bundle
from phi3mobile.cli import main
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.export.build import export
from phi3mobile.export.cards import quality_line
from phi3mobile.export.packed import PackedModel, load_packed
from phi3mobile.export.quantize import quantize
from phi3mobile.export.recipe import EMBEDDING, HEAD, find_recipe
from phi3mobile.export.solve.build import forms_for, quantize_checkpoint
from phi3mobile.export.solve.calibration import calibration_of
from phi3mobile.export.solve.folder import Solved
from phi3mobile.export.solve.rotate import Rotated, turn
from phi3mobile.export.solve.stream import load_layer, load_norm, rounded, run_layer
from phi3mobile.models.checkpoint import open_checkpoint, write_checkpoint
from phi3mobile.models.decoder import Decoder
from phi3mobile.models.loading import load_model
from phi3mobile.models.tensors import shapes
from phi3mobile.text.vocabularies import load_tokenizer

MODELS = ["tiny-gqa", "tiny-tied", "tiny-partial", "tiny-window", "tiny-longrope", "small-tiny", "small-tiny-longrope"]
quick = settings(max_examples=30, deadline=None)
sizes = st.builds(lambda two, odd: 2**two * odd, st.integers(0, 9), st.sampled_from([1, 3, 5, 7, 9, 15]))


# The turn


@quick
@given(sizes, st.integers(0, 2**31))
def test_turning_keeps_lengths_and_ones_and_undoes_itself(size, seed):
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
    turned = turn(x)
    assert torch.allclose(turn(turned), x, atol=1e-4)
    assert torch.allclose(turned.norm(dim=1), x.norm(dim=1), rtol=1e-4)
    assert torch.allclose(turn(torch.ones(size)), torch.ones(size), atol=1e-4)
    assert torch.allclose(turn(x.t(), 0), turned.t(), atol=1e-4)
    assert torch.equal(turn(x[:, None], 2)[:, 0], turned)


@quick
@given(sizes, st.data())
def test_a_single_coordinate_is_spread_over_all(size, data):
    spike = torch.zeros(size)
    spike[data.draw(st.integers(0, size - 1))] = 1
    assert turn(spike).abs().max() <= 2.7 / size**0.5


@pytest.mark.parametrize(
    ("size", "peak"), [(576, 1.34), (3072, 1.16), (4096, 1.01), (5120, 1.35), (64, 1.01), (96, 1.64), (128, 1.42)]
)
def test_the_sizes_of_real_models_are_turned_evenly(size, peak):
    """The largest entry, over what it would be if all were alike. Random signs between two Hadamard matrices leave 4 to 5."""
    some = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:32]
    rows = turn(torch.eye(size)[some])
    assert torch.equal(rows[:, some], rows[:, some].t())
    assert torch.allclose(rows @ rows.t(), torch.eye(32), atol=1e-5)
    assert rows.abs().max() * size**0.5 <= peak


# The turned model


def as_model(checkpoint: Rotated, context: int = 128):
    model = Decoder(checkpoint.config, context).eval()
    model.load_state_dict({name: checkpoint.tensor(name) for name in checkpoint.names()})
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_turned_model_computes_the_same(name, checkpoint_of):
    source = open_checkpoint(checkpoint_of(name))
    turned, exact = as_model(Rotated(source)), load_model(source.folder)
    shown = [token for token in range(source.config.vocab_size) if token not in source.config.masked_ids]
    for length in (20, 48):  # 32: where the long models' factors change
        tokens = random_tokens(source.config, length)
        expected, found = exact(tokens)[..., shown], turned(tokens)[..., shown]
        assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
        exact.reset(), turned.reset()


@pytest.mark.parametrize("name", ["tiny-tied", "small-tiny"])
def test_a_turned_model_is_a_whole_checkpoint_that_can_be_written(name, checkpoint_of, tmp_path):
    source = open_checkpoint(checkpoint_of(name))
    assert source.config.tie_word_embeddings
    turned = Rotated(source)
    assert not turned.config.tie_word_embeddings and HEAD in turned.names()
    assert {key: turned.shape(key) for key in turned.names()} == shapes(turned.config.tensors())
    tensors = ((key, turned.tensor(key)) for key in turned.names())
    written = load_model(write_checkpoint(tmp_path / "c", turned.config, tensors, torch.float32))
    tokens = random_tokens(source.config, 12)
    assert torch.allclose(written(tokens), as_model(turned)(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny-gqa", "small-tiny"])
def test_norms_only_normalize(name, checkpoint_of):
    turned = Rotated(open_checkpoint(checkpoint_of(name)))
    norms = [key for key in turned.names() if "norm" in key]
    assert len(norms) > turned.config.num_hidden_layers
    for key in norms:
        if key.endswith("weight"):
            assert (turned.tensor(key) == 1).all()
        elif "final" not in key:  # a head has no bias that could take it over
            assert (turned.tensor(key) == 0).all()


def test_reading_a_turned_model_changes_nothing(checkpoint_of):
    source = open_checkpoint(checkpoint_of("small-tiny"))
    before = {name: source.tensor(name).clone() for name in source.names()}
    turned = Rotated(source)
    once = {name: turned.tensor(name) for name in turned.names()}
    assert all(torch.equal(turned.tensor(name), once[name]) for name in once)
    assert all(torch.equal(source.tensor(name), before[name]) for name in before)


def int8_loss(source, tokens: torch.Tensor) -> float:
    """Relative squared error of the logits when only what the linears see is rounded."""
    config, ends = source.config, []
    for rounding in (False, True):
        x = torch.nn.functional.embedding(tokens, source.tensor(EMBEDDING)) * config.embedding_multiplier
        for index in range(config.num_hidden_layers):
            layer = load_layer(config, index, source.tensor)
            for module in layer.modules():
                if rounding and isinstance(module, torch.nn.Linear):
                    module.register_forward_pre_hook(lambda linear, given: rounded(given[0]))
            x = run_layer(config, layer, index, x)
        x = load_norm(config, source.tensor)(x)
        ends.append((rounded(x) if rounding else x) @ source.tensor(HEAD).t())
    return float((ends[1] - ends[0]).square().sum() / ends[0].square().sum())


@torch.no_grad()
def test_an_enormous_channel_costs_less_once_turned(checkpoint_of, tmp_path):
    """One channel of the hidden states drowns the others; weights are small where it is read, as large models learn it."""
    source = open_checkpoint(checkpoint_of("tiny-gqa"))
    tensors = {name: source.tensor(name) for name in source.names()}
    tensors[EMBEDDING][:, 5] += 300
    for name in tensors:
        if "norm" in name:
            tensors[name] *= 300 / source.config.hidden_size**0.5
        elif name.endswith(("qkv_proj.weight", "gate_up_proj.weight", HEAD)):
            tensors[name][:, 5] /= 300
    folder = write_checkpoint(tmp_path / "c", source.config, tensors.items(), torch.float32)
    tokens = random_tokens(source.config, 100)
    plain, turned = (int8_loss(one, tokens) for one in (open_checkpoint(folder), Rotated(open_checkpoint(folder))))
    assert plain > 1e-3 and turned < 0.25 * plain


# Solved


@pytest.fixture(scope="module")
def solved(tmp_path_factory, checkpoint_of, text):
    """tiny-gqa, turned and quantized."""
    out = tmp_path_factory.mktemp("solved") / "q"
    return quantize_checkpoint(checkpoint_of("tiny-gqa"), out, recipe="host", calibration=text, rotate=True)


def test_the_card_of_a_turned_model_compares_with_the_model_that_was_given(solved, checkpoint_of, text, tmp_path):
    plain = Solved(quantize_checkpoint(checkpoint_of("tiny-gqa"), tmp_path / "q", recipe="host", calibration=text)).about
    turned = Solved(solved).about
    assert turned["quality"]["rotated"] is True and plain["quality"]["rotated"] is False
    assert turned["source_hash"] == plain["source_hash"]
    assert turned["quality"]["perplexity_float"] == pytest.approx(plain["quality"]["perplexity_float"], rel=1e-3)
    assert 0.8 < turned["quality"]["ratio"] < 1.25 and min(turned["quality"]["layers_db"]) > 10
    assert turned["quality"]["bits_per_weight"] == 4.5
    assert quality_line(turned["quality"]).startswith("gptq, rotated, 4.50 bits")
    assert quality_line(plain["quality"]).startswith("gptq, 4.50 bits")
    del plain["quality"]["rotated"]  # as cards were before there was a choice
    assert quality_line(plain["quality"]).startswith("gptq, 4.50 bits")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, checkpoint_of, text):
    """tiny-gqa, turned, solved and exported by the verb."""
    out = tmp_path_factory.mktemp("bundle") / "b"
    given = ["--recipe", "host", "--context", "64", "--calibration", str(text), "--rotate"]
    assert main(["export", str(checkpoint_of("tiny-gqa")), "-o", str(out), *given]) == 0
    return out


def logits_agree(bundle, solved, folder) -> None:
    """The bundle computes what its integers say, and that is what the checkpoint in `folder` computes, but for rounding."""
    tokens = np.arange(3, 40)
    engine = open_engine(open_bundle(bundle))
    found = torch.from_numpy(engine.forward(tokens, 0).copy())
    engine.close()
    exact, rounded_model = load_model(folder), load_packed(PackedModel(Solved(solved), find_recipe("host")), 64)
    shown = [token for token in range(exact.config.vocab_size) if token not in exact.config.masked_ids]
    logits, reference = (model(torch.tensor(tokens)[None])[0, :, shown] for model in (exact, rounded_model))
    assert (found[:, shown] - reference).square().mean() < 0.01 * reference.square().mean()
    assert (reference - logits).square().mean() < 0.3 * logits.square().mean()  # 2 if they had nothing in common


def test_a_turned_bundle_runs(bundle, solved, checkpoint_of):
    assert open_bundle(bundle).manifest["quality"] == Solved(solved).about["quality"]
    logits_agree(bundle, solved, checkpoint_of("tiny-gqa"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-tied", "small-tiny"])
def test_other_turned_bundles_run(name, checkpoint_of, text, tmp_path):
    solved = quantize_checkpoint(checkpoint_of(name), tmp_path / "q", "host", calibration=text, rotate=True)
    logits_agree(export(solved, tmp_path / "bundle", "host", context=64), solved, checkpoint_of(name))


@pytest.mark.parametrize("name", ["tiny-tied", "small-tiny"])
def test_a_tied_head_is_solved_by_itself(name, checkpoint_of, text, tmp_path):
    opened = Solved(quantize_checkpoint(checkpoint_of(name), tmp_path / "q", calibration=text, rotate=True))
    assert not opened.config.tie_word_embeddings and not torch.equal(opened.tensor(HEAD).codes, opened.tensor(EMBEDDING).codes)
    assert 0.8 < opened.about["quality"]["ratio"] < 1.25


def test_a_turned_run_does_not_take_over_what_a_plain_one_left(solved, checkpoint_of, text, tmp_path):
    def interrupt(stage, done, total):
        if stage == "solve layers" and done == total - 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(checkpoint_of("tiny-gqa"), tmp_path / "q", "host", calibration=text, progress=interrupt)
    assert list(tmp_path.glob(".q.unfinished/packed-layer-*"))
    quantize_checkpoint(checkpoint_of("tiny-gqa"), tmp_path / "q", "host", calibration=text, rotate=True)
    for path in solved.glob("packed-*"):
        ours, same = load_file(tmp_path / "q" / path.name), load_file(path)
        assert ours.keys() == same.keys() and all(torch.equal(ours[key], same[key]) for key in ours)


def test_a_budget_is_shared_out_on_the_turned_weights(checkpoint_of, text):
    source, recipe = open_checkpoint(checkpoint_of("tiny-tied")), find_recipe("host")
    turned = Rotated(source)
    calibration = calibration_of(load_tokenizer(source.folder), source.config, text)
    forms = forms_for(turned, recipe, calibration, 5.0, lambda *_: None)
    assert 4.5 < PackedModel(turned, recipe, forms).bits_per_weight() <= 5.0


# What people see


def test_both_verbs_rotate(bundle, solved, checkpoint_of, text, tmp_path, capsys):
    given = [str(checkpoint_of("tiny-gqa")), "--calibration", str(text), "--rotate"]
    assert main(["quantize", *given, "--recipe", "host", "-o", str(tmp_path / "q")]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["quality"] == Solved(solved).about["quality"] and "gptq, rotated" in out
    assert main(["inspect", str(bundle)]) == 0
    assert "gptq, rotated" in capsys.readouterr().out


def refusal(function, *arguments, **options) -> str:
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_only_what_is_solved_from_floats_is_turned(solved, checkpoint_of, tmp_path, capsys):
    source, out = checkpoint_of("tiny-gqa"), tmp_path / "out"
    assert "leave out --rotate or take gptq" in refusal(export, source, out, method="rtn", rotate=True)
    assert "is quantized already" in refusal(export, solved, out, rotate=True)
    assert "is quantized already" in refusal(quantize_checkpoint, solved, out, rotate=True)
    assert main(["export", str(source), "-o", str(out), "--method", "rtn", "--rotate"]) == 2
    assert "--rotate" in capsys.readouterr().err and not out.exists()


def damaged(folder, tensor: str, place: int, value: float, name: str):
    """A checkpoint of preset `name` with one other value."""
    talking_checkpoint(folder, name)
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor].view(-1)[place] = value
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("tensor", ["model.norm.weight", "model.layers.1.input_layernorm.weight", EMBEDDING])
def test_the_tensor_that_is_not_finite_is_named(tensor, text, tmp_path):
    folder = damaged(tmp_path / "c", tensor, 3, float("nan"), "tiny-gqa")
    said = refusal(quantize_checkpoint, folder, tmp_path / "q", calibration=text, rotate=True)
    assert said.startswith(f"{tensor} has values that are not finite")


def test_what_was_trained_on_the_grid_is_not_turned(checkpoint_of, text, tmp_path):
    folder = shutil.copytree(checkpoint_of("tiny-gqa"), tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if name.startswith("model.layers.0.") and value.dim() == 2:
            tensors[name] = quantize(value, 4, 32).dequantized()
    save_file(tensors, folder / "model.safetensors")
    said = refusal(quantize_checkpoint, folder, tmp_path / "q", calibration=text, rotate=True)
    assert "was trained on the 4-bit grid, which turning destroys: leave out --rotate" in said
    assert not (tmp_path / "q").exists()


def test_a_final_norm_whose_bias_has_no_weight_is_refused(text, tmp_path):
    folder = damaged(tmp_path / "c", "model.final_layernorm.weight", 3, 0.0, "small-tiny")
    said = refusal(quantize_checkpoint, folder, tmp_path / "q", calibration=text, rotate=True)
    assert "model.final_layernorm has weights near zero where its bias is not: leave out --rotate" in said


def test_a_manifest_whose_card_does_not_say_whether_is_refused(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "b")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["quality"]["rotated"] = "maybe"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "quality can't be" in refusal(open_bundle, folder)
