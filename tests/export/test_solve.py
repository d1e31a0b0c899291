"""Solved weights: GPTQ beats rounding, the pass agrees with the model, folders go on and refuse, cards are true."""

import json
import math
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from exported import talking_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import random_tokens, words

from phi3mobile.bundle import open_bundle
from phi3mobile.cli import main
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.export.build import export
from phi3mobile.export.packed import PackedModel, load_packed
from phi3mobile.export.plan import packed_bytes, plan_export
from phi3mobile.export.quantize import quantize
from phi3mobile.export.recipe import EMBEDDING, HEAD, find_recipe, recipes
from phi3mobile.export.scales import SMALLEST_SCALE
from phi3mobile.export.solve.balance import balance, best_sizes
from phi3mobile.export.solve.build import MOST_KL, quantize_checkpoint, refuse_loss
from phi3mobile.export.solve.calibration import FEWEST, calibration_of, card_tokens
from phi3mobile.export.solve.checkpoint import on_grid
from phi3mobile.export.solve.folder import Solved, is_solved, read_part, write_part
from phi3mobile.export.solve.gptq import Inputs, polish, round_in_order, search_scales, solve
from phi3mobile.export.solve.stream import hessian, load_layer, products, rounded, run_layer, run_watched
from phi3mobile.files import new_folder
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.form import Form
from phi3mobile.models.loading import load_model
from phi3mobile.models.presets import preset
from phi3mobile.models.quantized import Packed, quantize_activation
from phi3mobile.partial import alone
from phi3mobile.text.vocabularies import load_tokenizer

quick = settings(max_examples=30, deadline=None)


def correlated(tokens: int, width: int, seed: int) -> torch.Tensor:
    """Inputs [T, K] as layers have them: correlated, a few columns large."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    x = torch.randn(tokens, width, generator=generator) @ (mixing + torch.randn(1, width, generator=generator) / 4)
    x[:, :3] *= 8
    return x


def output_error(values: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> float:
    return float((x @ (values - weight).t()).square().sum() / (x @ weight.t()).square().sum())


# One matrix


@pytest.mark.parametrize("group", [32, 64, 192])
def test_solving_beats_rounding_on_inputs_that_it_has_not_seen(group):
    weight = torch.randn(48, 192, generator=torch.Generator().manual_seed(0)) * 0.05
    seen, unseen = correlated(4000, 192, 1)[:2000], correlated(4000, 192, 1)[2000:]
    solved = solve(weight, Inputs(seen.t() @ seen), 4, group)
    nearest = quantize(weight, 4, group)
    assert output_error(solved.dequantized(), weight, unseen) < 0.6 * output_error(nearest.dequantized(), weight, unseen)


@quick
@given(st.integers(0, 2**31), st.sampled_from([1e-6, 1e-2, 1.0, 1e3]), st.booleans())
def test_what_is_solved_is_what_every_target_can_hold(seed, size, dead):
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(seed)) * size
    x = correlated(100, 64, seed)
    if dead:
        x[:, 7], weight[2] = 0, 0
    packed = solve(weight, Inputs(x.t() @ x), 4, 32)
    codes, scales = packed.unpacked(), packed.scales
    assert packed.shape == (5, 64) and scales.dtype == torch.bfloat16 and packed.group == 32
    assert codes.min() >= -8 and codes.max() <= 7
    assert scales.float().min() >= SMALLEST_SCALE and torch.equal(scales.half().float(), scales.float())


@pytest.mark.parametrize("group", [32, 64, 160])
@pytest.mark.parametrize("signed", [False, True])
def test_every_step_of_solving_lowers_the_error(group, signed):
    weight = torch.randn(40, 320 if group != 160 else 160, generator=torch.Generator().manual_seed(2)) * 0.1
    inputs = inputs_of(correlated(800, weight.shape[1], 3), 0.01)

    def error(codes, scales):
        difference = codes * scales.repeat_interleave(group, 1) - weight
        return float(((difference @ inputs.hessian) * difference).sum())

    scales = search_scales(weight, inputs.hessian.diagonal(), group, signed)
    nearest = (weight / scales.repeat_interleave(group, 1)).round().clamp(-8, 7)
    codes, slope = round_in_order(inputs.along(weight), inputs, scales, group)
    difference = codes * scales.repeat_interleave(group, 1) - weight
    assert torch.allclose(slope, difference @ inputs.hessian, atol=5e-4 * float(slope.abs().max()))  # float32 of large sums
    better, fitted = polish(codes, slope, inputs.hessian, scales, group)
    assert error(nearest, scales) > error(codes, scales) > error(better, fitted)
    assert torch.equal(fitted, fitted.bfloat16().float()) and not torch.equal(fitted, scales)
    assert torch.equal(fitted.sign(), scales.sign()) and bool((scales < 0).any()) == signed


def inputs_of(x: torch.Tensor, damping: float) -> Inputs:
    return Inputs(x.t() @ x, damping=damping)


def test_rounding_in_order_is_gptqs_recursion():
    """Against the textbook: after each column, the remaining weights move to the best answer given all that is rounded."""
    generator = torch.Generator().manual_seed(4)
    weight, inputs = torch.randn(3, 96, generator=generator), inputs_of(correlated(400, 96, 5), 0.1)
    scales = search_scales(weight, inputs.hessian.diagonal(), 32)
    order = torch.argsort(inputs.hessian.diagonal(), descending=True).tolist()
    exact, h = weight.double().clone(), inputs.hessian.double()
    codes = torch.zeros(3, 96)
    for done, column in enumerate(order):
        codes[:, column] = (exact[:, column].float() / scales[:, column // 32]).round().clamp(-8, 7)
        error = codes[:, column].double() * scales[:, column // 32].double() - exact[:, column]
        rest = order[done + 1 :]
        if rest:
            exact[:, rest] -= torch.linalg.solve(h[rest][:, rest], torch.outer(h[rest, column], error)).t()
    same = round_in_order(inputs.along(weight), inputs, scales, 32)[0] == codes
    assert same.float().mean() > 0.97  # a tie may fall either way in float32


def test_the_rows_of_a_matrix_are_solved_apart():
    """As many as fit the cache; with offsets too."""
    weight, inputs = torch.randn(1100, 64, generator=torch.Generator().manual_seed(9)), inputs_of(correlated(200, 64, 9), 1)
    whole = solve(weight, inputs, 4, 32, True)
    some = solve(weight[1000:], inputs, 4, 32, True)
    assert torch.equal(whole.dequantized()[1024:], some.dequantized()[24:]) and whole.shape == (1100, 64)


def test_eight_bit_stays_as_rounding_has_it():
    weight, x = torch.randn(8, 64, generator=torch.Generator().manual_seed(6)), correlated(100, 64, 7)
    assert torch.equal(solve(weight, inputs_of(x, 1), 8, 64).codes, quantize(weight, 8, 64).codes)


def test_a_matched_weight_makes_good_what_was_spoilt_before_it():
    """Inputs spoilt in a way that can be undone: the matched weight undoes it, on inputs that it has not seen."""
    weight, spoil = torch.randn(8, 32, generator=torch.Generator().manual_seed(1)), torch.eye(32)
    spoil[3, 5], spoil[7, 7] = 0.5, 0.7
    exact = torch.randn(3000, 32, generator=torch.Generator().manual_seed(2))
    x, unseen = (exact @ spoil)[:2000], exact[2000:]
    seen = Inputs(x.t() @ x, seen=x.t() @ exact[:2000], damping=0.1)
    better, along = seen.matched(weight)
    expected = weight.t() + torch.linalg.solve(seen.hessian, x.t() @ (exact[:2000] - x) @ weight.t())
    assert torch.allclose(better, expected.t(), atol=1e-4) and torch.allclose(along, seen.along(better), rtol=1e-3, atol=1e-2)
    made = Inputs(x.t() @ x, made=x.t() @ exact[:2000] @ weight.t(), damping=0.1)
    assert torch.allclose(made.matched(weight[3:], 3)[0], better[3:], atol=1e-4)
    spoilt, undone = (((unseen @ spoil) @ w.t() - unseen @ weight.t()).square().sum() for w in (weight, better))
    assert undone < 0.1 * spoilt


@pytest.mark.parametrize("name", ["tiny-gqa", "tiny-partial", "small-tiny"])
@torch.no_grad()
def test_balancing_changes_no_output(name, checkpoint_of):
    checkpoint = open_checkpoint(checkpoint_of(name))
    config, layer = checkpoint.config, load_layer(checkpoint.config, 0, checkpoint.tensor)
    x = torch.randn(2, 24, config.hidden_size, generator=torch.Generator().manual_seed(3))
    before, inputs, made, _ = run_watched(config, layer, 0, x)
    balance(config, layer, 0, inputs, lambda name: Form(4, 32))
    after, seen, still, _ = run_watched(config, layer, 0, x)
    assert torch.allclose(before, after, atol=1e-4)
    assert all(torch.allclose(inputs[key], seen[key], atol=1e-3, rtol=1e-3) for key in inputs)
    assert made and all(torch.allclose(made[key], still[key], atol=1e-4) for key in made)
    if not name.startswith("small"):
        assert not torch.equal(layer.mlp.down_proj.weight, checkpoint.tensor("model.layers.0.mlp.down_proj.weight"))


def test_columns_are_made_alike_only_where_it_helps():
    """One enormous column: int8 activations lose all others. Weights that rounding keeps: only whole groups with offsets."""
    generator = torch.Generator().manual_seed(4)
    x, weight = torch.randn(1, 200, 64, generator=generator), torch.randn(16, 64, generator=generator)
    x[..., 5] *= 300
    sizes = best_sizes(weight, x, Form(8, 64))
    assert sizes[5] > 4 * sizes.median()
    plain, even = (((rounded(x / size) - x / size) @ (weight * size).t()).square().mean() for size in (1, sizes))
    assert even < 0.5 * plain

    x[..., 5] /= 100
    exact = torch.randint(-8, 8, (16, 64), generator=generator).float()
    exact[:, ::32] = -8
    assert (best_sizes(exact, x, Form(4, 32)) == 1).all()
    groups = best_sizes(exact, x, Form(4, 32, True)).view(2, 32)
    assert (groups == groups[:, :1]).all()

    x = torch.randn(1, 200, 64, generator=generator) * torch.rand(64, generator=generator) * 50
    shared = best_sizes(weight, x, Form(8, 64), (2, 4, 8))
    assert (shared.view(2, 4, 8) == shared.view(2, 4, 8)[:, :1]).all() and len(shared.unique()) > 4


def test_a_layer_that_was_trained_on_the_grid_keeps_its_integers(checkpoint_of):
    checkpoint = open_checkpoint(checkpoint_of("tiny-gqa"))
    wanted = PackedModel(checkpoint, find_recipe("android-cpu"))
    layer = load_layer(checkpoint.config, 0, checkpoint.tensor)
    assert on_grid(layer, 0, wanted.form_of) == {}
    for module in layer.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = quantize(module.weight, 4, 32).dequantized()
    kept = on_grid(layer, 0, wanted.form_of)
    assert len(kept) == 4
    for name, packed in kept.items():
        weight = layer.get_submodule(name.removeprefix("model.layers.0.").removesuffix(".weight")).weight
        assert torch.allclose(packed.dequantized(), weight, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("bits", "group"), [(3, 32), (4, 48), (4, 16)])
def test_what_cannot_be_packed_is_refused(bits, group):
    with pytest.raises(InputError, match=r"bit weights|group"):
        solve(torch.ones(2, 64), Inputs(torch.eye(64)), bits, group)


# The pass


@quick
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 1e4]))
def test_activations_are_rounded_as_the_reference_rounds_them(seed, size):
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(seed)) * size
    x[0, 0], x[0, 1], x[1, 2, 3] = 0, x[0, 1].abs(), 300 * size
    difference = (rounded(x) - quantize_activation(x)).abs()
    step = (x.amax(-1, keepdim=True).clamp(min=0) - x.amin(-1, keepdim=True).clamp(max=0)) / 255
    assert (difference <= 1.01 * step + 1e-12).all()  # a tie may fall either way,
    assert (difference > 0.01 * step).float().mean() < 0.01  # and ties are rare


@pytest.mark.parametrize("width", [16, 1100])
def test_sums_over_tokens_weigh_them(width):
    x, y, weights = torch.randn(2, 30, width), torch.randn(2, 30, 20), torch.rand(2, 30)
    shares = weights / weights.sum()
    found = hessian(x, weights)
    assert torch.allclose(found, torch.einsum("btk,btl,bt->kl", x, x, shares), atol=1e-5) and torch.equal(found, found.t())
    assert torch.allclose(products(x, y, weights), torch.einsum("btk,btl,bt->kl", x, y, shares), atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-gqa", "tiny-partial", "small-tiny"])
@torch.no_grad()
def test_the_layers_run_as_the_model_does(name, checkpoint_of):
    checkpoint = open_checkpoint(checkpoint_of(name))
    config, model = checkpoint.config, load_model(checkpoint.folder)
    tokens = torch.cat([random_tokens(config, 24, seed) for seed in (1, 2)]) % 300
    x = model.model.embed_tokens(tokens) * config.embedding_multiplier
    for index in range(config.num_hidden_layers):
        x = run_layer(config, load_layer(config, index, checkpoint.tensor), index, x)
    for row, sequence in enumerate(tokens):
        model.reset()
        hidden = {}
        norm = model.model.final_layernorm if name.startswith("small") else model.model.norm
        handle = norm.register_forward_pre_hook(lambda module, inputs, hidden=hidden: hidden.update(x=inputs[0]))
        model(sequence[None])
        handle.remove()
        assert torch.allclose(x[row], hidden["x"][0], atol=1e-4)


# Folders and cards


@pytest.fixture(scope="module")
def solved(tmp_path_factory, checkpoint_of, text):
    """tiny-gqa, quantized."""
    return quantize_checkpoint(checkpoint_of("tiny-gqa"), tmp_path_factory.mktemp("solved") / "q", calibration=text)


def test_a_quantized_folder_holds_every_tensor_as_its_recipe_says(solved, checkpoint_of):
    opened, checkpoint = Solved(solved), open_checkpoint(checkpoint_of("tiny-gqa"))
    wanted, packed = PackedModel(checkpoint, find_recipe("android-cpu")), PackedModel(opened, find_recipe("android-cpu"))
    assert is_solved(solved) and opened.config.hidden_size == checkpoint.config.hidden_size
    for name in (*checkpoint.names(), HEAD):
        assert packed.shape(name) == wanted.shape(name) and packed.form_of(name) == wanted.form_of(name)
        if packed.form_of(name) is None:  # norms: divided by what the columns behind them were multiplied by
            assert (packed.tensor(name) / wanted.tensor(name) > 0).all()
    assert {path.name for path in checkpoint.folder.glob("tokenizer*")} <= {path.name for path in solved.iterdir()}
    assert opened.source_hash() == checkpoint.source_hash()


def test_the_card_says_what_the_quantized_model_does(solved, checkpoint_of):
    quality = Solved(solved).about["quality"]
    exact = load_model(checkpoint_of("tiny-gqa"))
    quantized = load_packed(PackedModel(Solved(solved), find_recipe("android-cpu")), context=exact.context)
    tokens = card_tokens(load_tokenizer(solved), exact.config)
    nll, kl, same, count = [0.0, 0.0], 0.0, 0, 0
    for row in tokens:
        logs = []
        for number, model in enumerate((exact, quantized)):
            model.reset()
            logs.append(model(row[None])[0, :-1].double().log_softmax(-1))
            nll[number] -= float(logs[-1].gather(1, row[1:, None]).sum())
        kl += float((logs[0].exp() * (logs[0] - logs[1])).sum())
        same += int((logs[0].argmax(-1) == logs[1].argmax(-1)).sum())
        count += len(row) - 1
    assert quality["tokens"] == count > 500
    assert quality["perplexity_float"] == pytest.approx(math.exp(nll[0] / count), rel=1e-3)
    assert quality["perplexity"] == pytest.approx(math.exp(nll[1] / count), rel=1e-3)
    assert quality["kl"] == pytest.approx(kl / count, rel=0.02, abs=2e-5)
    assert quality["top1"] == pytest.approx(same / count, abs=5e-3)
    assert quality["bits_per_weight"] == 4.5 and len(quality["layers_db"]) == exact.config.num_hidden_layers
    assert min(quality["layers_db"]) > 10


@pytest.mark.slow
def test_a_model_with_biases_is_solved_and_exported(checkpoint_of, text, tmp_path):
    """phi-3-small's linears have biases: they stay as they are."""
    source, checkpoint = tmp_path / "q", open_checkpoint(checkpoint_of("small-tiny"))
    opened = Solved(quantize_checkpoint(checkpoint_of("small-tiny"), source, calibration=text))
    biases = [name for name in checkpoint.names() if name.endswith(".bias") and "norm" not in name]
    assert biases and all(torch.equal(opened.tensor(name).float(), checkpoint.tensor(name).float()) for name in biases)
    bundle = open_bundle(export(source, tmp_path / "bundle", "host", context=64))
    assert bundle.manifest["quality"]["ratio"] > 0.5


def test_a_tied_head_keeps_its_embeddings_integers(text, tmp_path):
    opened = Solved(quantize_checkpoint(talking_checkpoint(tmp_path / "c", "tiny-tied"), tmp_path / "q", calibration=text))
    head, table = opened.tensor(HEAD), opened.tensor(EMBEDDING)
    assert torch.equal(head.codes, table.codes) and torch.equal(head.scales, table.scales)


def test_a_head_that_was_trained_on_the_grid_keeps_its_integers(solved, checkpoint_of, text, tmp_path):
    folder = shutil.copytree(checkpoint_of("tiny-gqa"), tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    trained = quantize(tensors[HEAD], 8, tensors[HEAD].shape[1])
    assert not torch.equal(Solved(solved).tensor(HEAD).codes, trained.codes), "a float head is scaled with its norm"
    save_file(tensors | {HEAD: trained.dequantized()}, folder / "model.safetensors")
    opened = Solved(quantize_checkpoint(folder, tmp_path / "q", calibration=text))
    assert torch.equal(opened.tensor(HEAD).codes, trained.codes)
    assert torch.equal(opened.tensor("model.norm.weight"), tensors["model.norm.weight"].float())


def test_solving_beats_rounding_over_a_whole_model(solved, checkpoint_of):
    checkpoint = open_checkpoint(checkpoint_of("tiny-gqa"))
    recipe, tokens = find_recipe("android-cpu"), torch.tensor([load_tokenizer(solved).encode(words(5000, 5050))[:200]])
    exact = load_model(checkpoint.folder)(tokens)
    rtn, gptq = (load_packed(PackedModel(source, recipe), 256)(tokens) for source in (checkpoint, Solved(solved)))
    assert (gptq - exact).square().mean() < 0.8 * (rtn - exact).square().mean()


@pytest.mark.slow
def test_a_bundle_of_a_quantized_folder_carries_its_integers_and_its_card(solved, tmp_path):
    bundle = open_bundle(export(solved, tmp_path / "bundle", context=64))
    quality = Solved(solved).about["quality"]
    assert bundle.manifest["quality"] == quality and bundle.manifest["recipe"]["method"] == "gptq"
    tokens = np.arange(3, 40)
    reference = load_packed(PackedModel(Solved(solved), find_recipe("android-cpu")), 64)(torch.tensor(tokens)[None])[0]
    engine = open_engine(bundle)
    difference = engine.forward(tokens, 0) - reference.numpy()
    engine.close()
    assert np.square(difference).mean() < 0.01 * float(reference.square().mean())


@pytest.mark.parametrize(("recipe", "instead"), [("android-small", "android-cpu or ios-cpu"), ("host-small", "host")])
def test_a_recipes_name_stands_for_its_integers(solved, recipe, instead, tmp_path):
    said = refusal(export, solved, tmp_path / "b", recipe)
    assert f"export with --recipe {instead}, or quantize again with --recipe {recipe}" in said
    assert "8-bit embedding, 8-bit head" in said and not (tmp_path / "b").exists()


def test_what_no_recipe_is_called_is_noted(solved, tmp_path):
    pytest.importorskip("coremltools")
    plan = plan_export(solved, tmp_path / "b", "ios-gpu", 64)
    assert plan.notes == ["weights as quantized for android-cpu: a scale for 32 columns, 8-bit embedding, 8-bit head"]
    assert not Solved(solved).signed() and plan_export(solved, tmp_path / "b", "host", 64).notes == []


def test_integers_on_scales_of_either_sign_go_where_programs_take_them(checkpoint_of, text, tmp_path):
    pytest.importorskip("coremltools")
    folder = quantize_checkpoint(checkpoint_of("tiny-gqa"), tmp_path / "q", "host", calibration=text)
    assert Solved(folder).signed() and plan_export(folder, tmp_path / "b", "host", 64).notes == []
    for recipe in ("android-cpu", "ios-gpu"):
        said = refusal(export, folder, tmp_path / "b", recipe)
        assert "scales of either sign" in said and f"quantize again with --recipe {recipe}" in said
        assert "--recipe host" in said and not (tmp_path / "b").exists()


def test_export_solves_by_itself_and_gives_the_same_card(solved, checkpoint_of, text, tmp_path):
    bundle = open_bundle(export(checkpoint_of("tiny-gqa"), tmp_path / "bundle", context=64, calibration=text))
    assert bundle.manifest["quality"] == Solved(solved).about["quality"]
    assert not list((tmp_path / "bundle").glob(".solved*"))


def test_a_killed_run_goes_on_where_it_was(solved, checkpoint_of, text, tmp_path):
    """Interrupted before its last layer; the second run solves only what is missing and ends with the same integers."""

    def interrupt(stage, done, total):
        if stage == "solve layers" and done == total - 2:
            raise KeyboardInterrupt

    source, out = checkpoint_of("tiny-gqa"), tmp_path / "q"
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, out, calibration=text, progress=interrupt)
    (left,) = tmp_path.iterdir()
    kept = {path.name: path.stat().st_mtime_ns for path in left.glob("packed-*")}
    assert left.name == ".q.unfinished" and 0 < len(kept) < len(list(solved.glob("packed-*")))
    quantize_checkpoint(source, out, calibration=text)
    assert [path.name for path in tmp_path.iterdir()] == ["q"]
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    for path in solved.glob("packed-*"):
        ours, same = load_file(out / path.name), load_file(path)
        assert ours.keys() == same.keys() and all(torch.equal(ours[key], same[key]) for key in ours)


KILLED = """
import os, signal, sys
from pathlib import Path
from phi3mobile.export.solve import folder
from phi3mobile.export.solve.build import quantize_checkpoint
save, written = folder.save_file, []
def save_file(tensors, path, **options):
    save(tensors, path, **options)
    written.append(path)
    if len(written) == 3:  # the third is written, and has not its name yet
        os.kill(os.getpid(), signal.SIGKILL)
folder.save_file = save_file
quantize_checkpoint(sys.argv[1], Path(sys.argv[2]), calibration=Path(sys.argv[3]))
"""


def test_a_run_killed_by_the_system_goes_on_where_it_was(solved, checkpoint_of, text, tmp_path):
    """What is whole stays for the next run; the file that was being written goes."""
    source, out = checkpoint_of("tiny-gqa"), tmp_path / "q"
    done = subprocess.run([sys.executable, "-c", KILLED, source, out, text], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    unfinished = tmp_path / ".q.unfinished"
    kept = {path.name: path.stat().st_mtime_ns for path in unfinished.glob("packed-*")}
    assert len(kept) == 2 and len(list(unfinished.glob(".packed-*.partial-*"))) == 2  # the third and its lock
    with alone(unfinished), pytest.raises(InputError, match="another run is making"):
        quantize_checkpoint(source, out, calibration=text)
    with new_folder(tmp_path / "other"):  # the next run beside it leaves it: it can go on
        pass
    quantize_checkpoint(source, out, calibration=text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "q"]
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert {path.name for path in out.iterdir()} == {path.name for path in solved.iterdir()}


def test_what_another_text_left_unfinished_is_not_taken_over(checkpoint_of, text, tmp_path):
    (tmp_path / ".q.unfinished").mkdir()
    (tmp_path / ".q.unfinished" / "packed-embedding.safetensors").write_bytes(b"of something else")
    assert is_solved(quantize_checkpoint(checkpoint_of("tiny-gqa"), tmp_path / "q", calibration=text))


def test_parts_come_back(tmp_path):
    packed = {
        "a.weight": quantize(torch.randn(4, 64), 4, 32),
        "b.weight": quantize(torch.randn(4, 64), 8, 64),
        "c.weight": quantize(torch.randn(4, 64), 4, 64),
        "norm.weight": torch.rand(64),
    }
    write_part(tmp_path / "part.safetensors", packed)
    back = read_part(tmp_path / "part.safetensors")
    assert back.keys() == packed.keys() and torch.equal(back["norm.weight"], packed["norm.weight"])
    for name in ("a.weight", "b.weight", "c.weight"):
        ours, theirs = packed[name], back[name]
        assert (ours.bits, ours.group) == (theirs.bits, theirs.group)
        assert torch.equal(ours.codes, theirs.codes) and torch.equal(ours.scales, theirs.scales)


# What is refused


def refusal(function, *arguments, **options) -> str:
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_calibration_text_must_be_readable_and_long_enough(checkpoint_of, tmp_path):
    folder = checkpoint_of("tiny-gqa")
    tokenizer, config = load_tokenizer(folder), open_checkpoint(folder).config
    short, binary = tmp_path / "short.txt", tmp_path / "binary"
    short.write_text("too short")
    binary.write_bytes(b"\xff\xfe\x00")
    assert f"give {FEWEST} at least" in refusal(calibration_of, tokenizer, config, short)
    assert "can't be read" in refusal(calibration_of, tokenizer, config, binary)
    assert "can't be read" in refusal(calibration_of, tokenizer, config, tmp_path / "none.txt")
    assert "can't be read" in refusal(quantize_checkpoint, folder, tmp_path / "q", calibration=tmp_path / "none.txt")
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("tensor", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight", "model.norm.weight"])
def test_weights_that_are_not_finite_are_named(tensor, checkpoint_of, text, tmp_path):
    folder = shutil.copytree(checkpoint_of("tiny-gqa"), tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor].view(-1)[5] = float("inf")
    save_file(tensors, folder / "model.safetensors")
    assert f"{tensor} has values that are not finite" in refusal(quantize_checkpoint, folder, tmp_path / "q", calibration=text)


def test_hidden_states_that_are_not_finite_are_refused(checkpoint_of, text, tmp_path):
    folder = shutil.copytree(checkpoint_of("tiny-gqa"), tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.gate_up_proj.weight"] *= 1e25
    save_file(tensors, folder / "model.safetensors")
    assert "not finite" in refusal(quantize_checkpoint, folder, tmp_path / "q", calibration=text)


def test_what_is_quantized_is_not_quantized_again(solved, tmp_path):
    assert "is quantized already" in refusal(quantize_checkpoint, solved, tmp_path / "q")
    assert "is quantized already" in refusal(export, solved, tmp_path / "b", method="rtn")
    assert "other groups of columns" in refusal(export, solved, tmp_path / "b", "ios-ane")


def test_a_quantized_folder_that_lost_a_layer_is_refused(solved, tmp_path):
    folder = shutil.copytree(solved, tmp_path / "q")
    (folder / "packed-layer-001.safetensors").unlink()
    assert "lacks model.layers.1." in refusal(export, folder, tmp_path / "b")
    (folder / "packed-end.safetensors").write_bytes(b"no")
    assert "truncated or damaged" in refusal(export, folder, tmp_path / "b")
    (folder / "packed.json").write_text('{"format": 99}')
    assert "has format 99" in refusal(export, folder, tmp_path / "b")


def test_an_unknown_method_is_refused(checkpoint_of, tmp_path):
    assert "method 'magic' is not known; take one of: gptq, rtn" in refusal(
        export, checkpoint_of("tiny-gqa"), tmp_path / "b", method="magic"
    )
    assert "reads no calibration text" in refusal(
        export, checkpoint_of("tiny-gqa"), tmp_path / "b", method="rtn", calibration="text.txt"
    )


def test_a_loss_above_the_threshold_does_not_ship(solved, tmp_path):
    """A card is only believed of a trained model: what guesses has nothing to lose."""
    card = {"kl": MOST_KL + 0.01, "ratio": 1.11, "perplexity_float": 20.0, "perplexity": 22.2, "bits_per_weight": 4.5}
    assert "0.160 nats (KL) from the float model's, perplexity 22.20 against 20.00" in refusal(refuse_loss, card, 1000)
    refuse_loss(card | {"perplexity_float": 900.0}, 1000)
    refuse_loss(card | {"kl": MOST_KL}, 1000)
    folder = shutil.copytree(solved, tmp_path / "q")
    about = json.loads((folder / "packed.json").read_text())
    about["quality"] |= card
    (folder / "packed.json").write_text(json.dumps(about))
    assert "--accept-quality" in refusal(export, folder, tmp_path / "b", context=64)
    assert not (tmp_path / "b").exists()
    bundle = open_bundle(export(folder, tmp_path / "b", context=64, accept_quality=True))
    assert bundle.manifest["quality"]["ratio"] == card["ratio"]


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"kl": 0.16}, "--rotate should pass"),
        ({"kl": 0.16, "rotated": True}, "--bits 4.6 should pass"),
        ({"kl": 0.25}, "--bits 4.6 should pass"),
        ({"kl": 0.25, "bits_per_weight": 4.65}, "--bits 4.7 should pass"),
        ({"kl": 0.4}, "--bits 4.7 should pass"),
        ({"kl": 0.9}, "--bits 4.8 should pass"),
        ({"kl": 9.0}, "take another calibration text"),
        ({"kl": 0.4, "method": "keep"}, "take --method gptq"),
    ],
)
def test_a_refused_loss_says_what_would_pass(changes, advice):
    card = {"ratio": 1.2, "perplexity_float": 20.0, "perplexity": 24.0, "bits_per_weight": 4.5, "method": "gptq"}
    assert f"ships: {advice}" in refusal(refuse_loss, card | changes, 1000)


# Sizes


def test_the_small_recipe_fits_phi_3_mini_into_its_size():
    config = preset("phi-3-mini-4k")
    rope = 2 * 2048 * config.head_dim // 2 * 4
    assert packed_bytes(config, find_recipe("android-small")) + rope < 1.968e9


@pytest.mark.parametrize("recipe", recipes())
def test_the_estimate_is_the_sum_of_what_is_packed(recipe, tmp_path):
    packed = PackedModel(open_checkpoint(talking_checkpoint(tmp_path / "c", "tiny-tied")), find_recipe(recipe))
    total = 0
    for name in (*packed.checkpoint.names(), HEAD):
        value = packed.tensor(name)
        total += value.nbytes if isinstance(value, Packed | torch.Tensor) else 0
        if name == EMBEDDING and value.bits == 4:
            total += value.scales.nbytes  # float32 there
    assert packed_bytes(packed.config, packed.recipe) == total


# What people see


def test_inspect_shows_the_card(solved, tmp_path, capsys):
    from phi3mobile.export.cards import quality_line

    line = quality_line(Solved(solved).about["quality"])
    assert line.startswith("gptq, 4.50 bits per layer weight; perplexity ") and "x float's; KL " in line
    assert quality_line(None) == "not measured"


def test_the_verb_ends_with_the_card_as_json(checkpoint_of, text, tmp_path, capsys):
    assert main(["quantize", str(checkpoint_of("tiny-gqa")), "-o", str(tmp_path / "q"), "--calibration", str(text)]) == 0
    out = capsys.readouterr().out
    document = json.loads(out.splitlines()[-1])
    assert document["folder"] == str(tmp_path / "q") and document["quality"] == Solved(tmp_path / "q").about["quality"]
    assert "bits per layer weight" in out
    assert main(["quantize", str(tmp_path / "q"), "-o", str(tmp_path / "again")]) == 2


@pytest.mark.parametrize(
    "damage", [{"kl": "small"}, {"layers_db": ["loud"]}, {"method": 4}, {"ratio": -1}, {"calibration": None}]
)
def test_a_manifest_with_a_damaged_card_is_refused(damage, solved, tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "b")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["quality"] is None
    manifest["quality"] = Solved(solved).about["quality"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert open_bundle(folder).manifest["quality"]["method"] == "gptq"
    manifest["quality"] |= damage
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "quality can't be" in refusal(open_bundle, folder)
