"""4-bit groups with offsets: exact where weights stand on such a grid, better elsewhere, and the same in every target."""

import numpy as np
import pytest
import torch
from exported import psnr
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_tokens

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.export.build import export
from phi3mobile.export.packed import PackedModel, load_packed
from phi3mobile.export.quantize import quantize
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.solve import build
from phi3mobile.export.solve.budget import choose, measure_classes
from phi3mobile.export.solve.calibration import card_tokens
from phi3mobile.export.solve.folder import Solved, read_part, write_part
from phi3mobile.export.solve.gptq import Inputs, solve
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.form import Form
from phi3mobile.models.loading import load_model
from phi3mobile.models.quantized import QuantizedLinear, group_sums, quantize_activation
from phi3mobile.text.vocabularies import load_tokenizer


def error(packed, weight) -> float:
    return float((packed.dequantized() - weight).square().mean() / weight.square().mean())


# One matrix


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([32, 64, 128]), st.floats(1e-3, 100), st.floats(-6, 6))
def test_weights_on_a_grid_with_offsets_are_kept(seed, group, size, shift):
    """As GGUF's Q4_1 has them: 16 levels between a group's least and largest weight."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (6, 4, group), generator=generator)
    codes[..., 0], codes[..., 1] = 0, 15
    step = (torch.rand(6, 4, 1, generator=generator) * 0.5 + 0.5) * size
    weight = ((codes - 8 + torch.rand(6, 4, 1, generator=generator) + shift) * step).flatten(1)
    off = (quantize(weight, 4, group, offsets=True).dequantized() - weight).abs()
    # bfloat16 scales are within 2**-9, offsets within half of a row's step of 1/127
    assert (off <= 8 * step.max() * 2**-8 + (16 + abs(shift)) * step.max() / 127).all()
    assert off.mean() < 0.3 * (quantize(weight, 4, group).dequantized() - weight).abs().mean()


@pytest.mark.parametrize("group", [32, 64, 128])
def test_offsets_lose_less_on_ordinary_weights(group):
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    assert error(quantize(weight, 4, group, offsets=True), weight) < 0.9 * error(quantize(weight, 4, group), weight)
    assert error(quantize(weight, 4, 64, offsets=True), weight) < error(quantize(weight, 4, 32), weight), "and in fewer bits"


def test_solving_with_offsets_beats_rounding_with_them():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(128, 128, generator=generator)
    x, weight = torch.randn(4000, 128, generator=generator) @ mixing, torch.randn(48, 128, generator=generator)
    found, rounded = solve(weight, Inputs(x.t() @ x), 4, 32, offsets=True), quantize(weight, 4, 32, offsets=True)
    assert found.form == rounded.form == Form(4, 32, True)
    losses = [(x @ (one.dequantized() - weight).t()).square().sum() for one in (found, rounded)]
    assert losses[0] < 0.8 * losses[1]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.sampled_from([32, 64]))
def test_bits_per_weight_are_what_is_stored(rows, groups, group):
    packed = quantize(torch.randn(rows, groups * group), 4, group, offsets=True)
    assert packed.form.bits_per_weight(groups * group) == pytest.approx(8 * packed.nbytes / (rows * groups * group))


def test_zeros_stay_zero_and_rows_keep_their_offsets():
    weight = torch.cat([torch.zeros(2, 64), torch.randn(6, 64) + 1])
    packed = quantize(weight, 4, 32, offsets=True)
    assert packed.dequantized()[:2].abs().max() < 1e-3
    index = torch.tensor([5, 1, 2])
    assert torch.equal(packed.rows(index).dequantized(), packed.dequantized()[index])


def test_a_linear_is_the_product_with_its_weights_but_for_the_sums_rounding():
    generator = torch.Generator().manual_seed(0)
    packed, x = quantize(torch.randn(16, 96, generator=generator), 4, 32, offsets=True), torch.randn(7, 96, generator=generator)
    rounded = quantize_activation(x)
    exact, found = rounded @ packed.dequantized().t(), QuantizedLinear(packed)(x)
    sums = group_sums(rounded, 32)
    most = float((sums.amax(1) - sums.amin(1).clamp(max=0)).max()) / 255 * packed.offsets.dequantized().abs().sum(1).max()
    assert 0 < (found - exact).abs().max() < most


def test_parts_come_back(tmp_path):
    packed = quantize(torch.randn(4, 64), 4, 32, offsets=True)
    write_part(tmp_path / "part.safetensors", {"a.weight": packed, "norm.weight": torch.ones(3)})
    back = read_part(tmp_path / "part.safetensors")
    assert set(back) == {"a.weight", "norm.weight"} and back["a.weight"].form == packed.form
    assert torch.equal(back["a.weight"].dequantized(), packed.dequantized())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    weight = torch.ones(4, 64)
    weight[2, 7] = value
    with pytest.raises(InputError, match="not finite"):
        quantize(weight, 4, 32, offsets=True)


# Every target


@pytest.fixture(scope="module")
def with_offsets(checkpoint_of, tmp_path_factory):
    """A preset's name -> a folder of it with offsets in all layers but the last, whose gate and up are symmetric."""
    made, text = {}, tmp_path_factory.mktemp("text") / "calibration.txt"
    text.write_text(" ".join(f"{number:x} cats and {number * 7} dogs," for number in range(900)))

    def forms_for(checkpoint, *_):
        last = f"layers.{checkpoint.config.num_hidden_layers - 1}.mlp"
        names = [name for name in checkpoint.names() if "layers." in name and len(checkpoint.shape(name)) == 2]
        return {name: Form(4, 32, not (last in name and "up" in name)) for name in names}

    def make(name):
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(build, "forms_for", forms_for)
                out = tmp_path_factory.mktemp("q") / name
                made[name] = build.quantize_checkpoint(checkpoint_of(name), out, calibration=text)
        return made[name]

    return make


@pytest.mark.parametrize(
    ("recipe", "name", "gate"),
    [
        pytest.param("android-cpu", "small-tiny", 40, marks=pytest.mark.slow),
        pytest.param("host-fp32-kv", "tiny-gqa", 40, marks=pytest.mark.slow),
        ("litert", "tiny-gqa", 40),
        ("ios-gpu", "tiny-gqa", 70),
        pytest.param("ios-executorch", "tiny-gqa", 60, marks=pytest.mark.slow),
        pytest.param("android-cpu", "tiny-gqa", 40, marks=pytest.mark.slow),
    ],
)
def test_a_program_computes_with_offsets_what_torch_does(recipe, name, gate, with_offsets, tmp_path):
    if recipe.startswith("ios"):
        pytest.importorskip("coremltools", reason="the coreml extra is not installed")
        from phi3mobile.export.targets.coreml.reference import reference_model
    if recipe == "litert":
        pytest.importorskip("ai_edge_litert", reason="the litert extra is not installed")
    folder = with_offsets(name)
    packed = PackedModel(Solved(folder), find_recipe(recipe))
    assert {packed.form_of(name).offsets for name in packed.checkpoint.names() if packed.form_of(name)} == {False, True}
    model = reference_model(packed, 64, half=True) if recipe.startswith("ios") else load_packed(packed, 64)
    bundle = open_bundle(export(folder, tmp_path / "bundle", recipe, context=64))
    tokens = random_tokens(packed.config, 40)
    expected = model(tokens)[0].numpy()
    engine = open_engine(bundle)
    parts = (0, 17), (17, 18), (18, 40)
    found = np.concatenate([engine.forward(tokens[0, start:end].numpy(), start) for start, end in parts])
    engine.close()
    said = expected[0] > -1e30
    assert psnr(expected[:, said], found[:, said]) >= gate


def test_the_card_is_of_what_the_bundle_computes(with_offsets, checkpoint_of):
    """Offsets' sums are rounded in the card's pass too."""
    solved = Solved(with_offsets("tiny-gqa"))
    tokens = card_tokens(load_tokenizer(solved.folder), solved.config)
    quantized = load_packed(PackedModel(solved, find_recipe("android-cpu")), tokens.shape[1])
    exact, kl = load_model(checkpoint_of("tiny-gqa")), 0.0
    for row in tokens:
        told, tells = (model(row[None])[0, :-1].log_softmax(-1) for model in (exact, quantized))
        kl += float((told.exp() * (told - tells)).sum(-1).mean()) / len(tokens)
        for model in (exact, quantized):
            model.reset()
    assert kl == pytest.approx(solved.about["quality"]["kl"], rel=0.02)


def test_a_budget_spends_on_offsets(checkpoint_of):
    checkpoint = open_checkpoint(checkpoint_of("tiny-gqa"))
    made = measure_classes(checkpoint, random_tokens(checkpoint.config, 32) % 300)
    for item in made:
        bits = [bits for _, bits, _ in item.forms]
        assert bits == sorted(bits)
    chosen = choose(made, 5.2)
    assert any(form.offsets for form in chosen.values())
