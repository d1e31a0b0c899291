"""`--bits`: the chosen forms keep to the budget, spend it where it gains most, and reach the exported program."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_tokens

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.export.build import export
from phi3mobile.export.cards import bundle_card
from phi3mobile.export.packed import PackedModel, load_packed
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.solve.budget import MatrixClass, choose, measure_classes
from phi3mobile.export.solve.build import quantize_checkpoint
from phi3mobile.export.solve.folder import Solved
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.form import Form

FORMS = ((4, 128), 4.125), ((4, 64), 4.25), ((4, 32), 4.5), ((8, 64), 8.5)


def bits_of(classes, chosen) -> float:
    bits = dict(FORMS)
    return sum(item.weights * bits[chosen[name]] for item in classes for name in item.names[:1]) / sum(
        item.weights for item in classes
    )


@st.composite
def classes(draw):
    made = []
    for index in range(draw(st.integers(1, 6))):
        losses = sorted((draw(st.floats(0, 1)) for _ in FORMS), reverse=True)
        forms = tuple((form, bits, loss) for (form, bits), loss in zip(FORMS, losses, strict=True))
        made.append(MatrixClass((f"{index}.a", f"{index}.b"), draw(st.integers(1, 1000)), forms))
    return made


@settings(max_examples=100, deadline=None)
@given(classes(), st.floats(4.0, 9.0))
def test_a_choice_keeps_to_the_budget_or_says_what_is_possible(made, budget):
    if budget < 4.125:
        with pytest.raises(InputError, match=r"take 4\.125 to 8\.500 bits per weight"):
            choose(made, budget)
        return
    chosen = choose(made, budget)
    assert set(chosen) == {name for item in made for name in item.names}
    assert bits_of(made, chosen) <= budget + 1e-6
    assert all(len({chosen[name] for name in item.names}) == 1 for item in made)


@settings(max_examples=60, deadline=None)
@given(classes(), st.floats(4.125, 6.0), st.floats(0, 2))
def test_more_bits_never_cost_more_on_equal_classes(made, budget, more):
    """With one class, a larger budget never expects a larger loss."""
    one = made[:1]
    loss = {form: value for form, _, value in one[0].forms}
    assert loss[choose(one, budget + more)["0.a"]] <= loss[choose(one, budget)["0.a"]]


def test_what_is_sensitive_gets_the_bits():
    forms = [tuple((form, bits, base / bits**2) for form, bits in FORMS) for base in (1.0, 100.0)]
    chosen = choose([MatrixClass(("dull",), 100, forms[0]), MatrixClass(("sharp",), 100, forms[1])], 6.32)
    assert chosen == {"dull": (4, 128), "sharp": (8, 64)}


@pytest.mark.parametrize("name", ["tiny-gqa", "small-tiny"])
def test_classes_are_measured_once_for_every_matrix(name, checkpoint_of):
    checkpoint = open_checkpoint(checkpoint_of(name))
    made = measure_classes(checkpoint, random_tokens(checkpoint.config, 32) % 300)
    linears = [n for n in checkpoint.names() if n.startswith("model.layers.") and len(checkpoint.shape(n)) == 2]
    assert sorted(name for item in made for name in item.names) == sorted(linears)
    for item in made:
        rows, width = checkpoint.shape(item.names[0])
        losses = {form: loss for form, _, loss in item.forms}
        assert item.weights == rows * width * len(item.names)
        for offsets in (False, True):  # with and without, fewer columns a group lose less
            ladder = [loss for form, loss in losses.items() if form.offsets == offsets and form.bits == 4]
            assert ladder == sorted(ladder)[::-1] and ladder[-1] > losses[Form(8, width)] > 0
        assert losses[Form(4, 32, True)] < losses[Form(4, 32)]


@pytest.mark.slow
def test_a_budget_reaches_the_program(checkpoint_of, tmp_path):
    """Bits, layer for layer, in the folder, in the manifest, and in what the exported program computes."""
    (tmp_path / "text.txt").write_text(" ".join(f"{number:x} cats and {number * 7} dogs," for number in range(900)))
    source = checkpoint_of("tiny-gqa")
    folder = quantize_checkpoint(source, tmp_path / "q", calibration=tmp_path / "text.txt", bits=6.0)
    packed = PackedModel(Solved(folder), find_recipe("android-cpu"))
    forms = {packed.form_of(name) for name in packed.checkpoint.names() if name.startswith("model.layers.")} - {None}
    assert packed.bits_per_weight() <= 6.0 and len(forms) > 1
    bundle = open_bundle(export(folder, tmp_path / "bundle", context=64))
    assert bundle.manifest["quality"]["bits_per_weight"] == packed.bits_per_weight() > 5.0
    assert "of at most 6 bits a weight" in bundle_card(bundle)["note"]
    tokens = np.arange(3, 40)
    reference = load_packed(packed, 64)(torch.tensor(tokens)[None])[0]
    engine = open_engine(bundle)
    difference = engine.forward(tokens, 0) - reference.numpy()
    engine.close()
    assert np.square(difference).mean() < 0.01 * float(reference.square().mean())


def test_an_impossible_budget_is_refused(checkpoint_of, tmp_path):
    with pytest.raises(InputError, match=r"--bits 3\.5: the layers of this model take 4\.\d+ to 8\.\d+ bits per weight"):
        export(checkpoint_of("tiny-gqa"), tmp_path / "b", bits=3.5)
    with pytest.raises(InputError, match="takes no --bits"):
        quantize_checkpoint(checkpoint_of("tiny-gqa"), tmp_path / "b", "ios-ane", bits=4.5)
    with pytest.raises(InputError, match="leave out --calibration and --bits"):
        export(checkpoint_of("tiny-gqa"), tmp_path / "b", method="rtn", bits=4.5)
    assert not (tmp_path / "b").exists()
