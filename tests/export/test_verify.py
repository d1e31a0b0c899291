"""`phi3mobile verify`: a right program passes wherever its integers came from, a wrong one fails and is told what is wrong."""

import importlib.util
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from phi3mobile.bundle import open_bundle
from phi3mobile.cli import main
from phi3mobile.engines.native import native_library
from phi3mobile.export import layerwise
from phi3mobile.export.build import export
from phi3mobile.export.layer_result import Layers
from phi3mobile.export.packed import PackedModel
from phi3mobile.export.solve.build import quantize_checkpoint
from phi3mobile.export.targets import target_of
from phi3mobile.export.targets.executorch.program import Pte
from phi3mobile.export.verify import run_check, source_of
from phi3mobile.files import sha256
from phi3mobile.manifest import MANIFEST

PROMPT = np.random.default_rng(0).integers(3, 304, 20).tolist()
NEEDS = {"host": native_library(), "litert": importlib.util.find_spec("ai_edge_litert"), "android-cpu": True}
NEEDS["ios-gpu"] = NEEDS["ios-ane"] = NEEDS["ios-executorch"] = importlib.util.find_spec("coremltools")


def verified(capsys, *arguments):
    code = main(["verify", *map(str, arguments)])
    captured = capsys.readouterr()
    assert captured.out, captured.err
    return code, captured.out, json.loads(captured.out.splitlines()[-1])


def rehashed(folder, name):
    """The manifest's hash of a file made right again."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name]["sha256"] = sha256(folder / name)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


# What was solved


@pytest.fixture(scope="session")
def integers(once, checkpoint_of, text):
    """A quantized folder of mixed forms: 8 bit, and 4 bit with offsets."""
    return once("integers", lambda folder: quantize_checkpoint(checkpoint_of("tiny-gqa"), folder, calibration=text, bits=5.4))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("host", "android-cpu", "ios-executorch")]


@pytest.mark.parametrize("recipe", ["litert", "ios-gpu", *SLOW])
def test_a_quantized_folders_bundles_hold_its_integers(recipe, integers, tmp_path, capsys):
    if not NEEDS[recipe]:
        pytest.skip(f"nothing here runs {recipe}")
    bundle = export(integers, tmp_path / "bundle", recipe, 64, accept_quality=True)
    code, out, document = verified(capsys, bundle, "--prompt", "the cat sat on the mat")
    assert code == 0 and document["passed"], document
    weights, *checks, cost = document["comparisons"].values()
    assert weights["compared_with_source"] and min(weights["weights_dB"].values()) > 15
    assert all(check["gate_dB"] >= 40 for check in checks) and cost["gate_dB"] is None and "4 bit (reported)" in out
    forms = {packed.form_of(name) for packed in [integers_of(bundle)] for name in packed.names() if "layers" in name}
    assert len(forms - {None}) > 1


def integers_of(folder):
    bundle = open_bundle(folder)
    source = source_of(bundle, None)
    return target_of(source.recipe).integers(bundle, source.config)


@pytest.mark.parametrize("recipe", ["ios-gpu", "litert", pytest.param("host", marks=pytest.mark.slow)])
def test_a_bundle_that_was_solved_on_the_way_passes(recipe, checkpoint_of, text, tmp_path, capsys):
    if not NEEDS[recipe]:
        pytest.skip(f"nothing here runs {recipe}")
    bundle = export(checkpoint_of("tiny-tied"), tmp_path / "bundle", recipe, 64, calibration=text, accept_quality=True)
    code, _, document = verified(capsys, bundle, "--prompt", "hello there")
    weights = document["comparisons"]["weights"]
    assert code == 0 and not weights["compared_with_source"] and min(weights["weights_dB"].values()) > 15


@pytest.mark.slow
def test_a_turned_folders_bundle_is_compared_with_the_turned_weights(checkpoint_of, text, tmp_path, capsys):
    folder = quantize_checkpoint(checkpoint_of("tiny-tied"), tmp_path / "q", calibration=text, rotate=True)
    code, _, document = verified(
        capsys, export(folder, tmp_path / "b", "android-cpu", 64, accept_quality=True), "--prompt", "hi"
    )
    assert code == 0 and min(document["comparisons"]["weights"]["weights_dB"].values()) > 15


# Wrong weights, with hashes made right again


@pytest.mark.parametrize(("part", "said"), [("codes", "other bytes than the program's hash"), ("norm", "other values")])
def test_a_ptes_changed_weight_is_named(part, said, bundle_of, tmp_path, capsys):
    folder = shutil.copytree(bundle_of("tiny-gqa"), tmp_path / "bundle")
    read, pte = integers_of(folder), Pte(folder / "model.pte")
    name = "model.layers.1.self_attn.o_proj.weight" if part == "codes" else "model.layers.1.post_attention_layernorm.weight"
    wanted = read.tensor(name)
    wanted = (wanted.codes if part == "codes" else wanted).numpy().tobytes()
    del read
    data = bytearray(pte.path.read_bytes())
    at = data.index(wanted)
    data[at : at + len(wanted)] = wanted[-4:] + wanted[:-4]
    pte.path.unlink()
    pte.path.write_bytes(data)
    code, out, document = verified(capsys, rehashed(folder, "model.pte"), "--prompt", "hello")
    found = document["comparisons"]["weights"]
    assert code == 1 and not document["passed"] and "FAILED" in out
    assert found["failure"].startswith(name) and said in found["failure"]
    assert document["comparisons"]["int8 activations"]["passed"]  # the program computes rightly with what it has


@pytest.mark.parametrize(("recipe", "name"), [("litert", "model.tflite"), ("ios-gpu", "weights/weight.bin")])
def test_a_changed_weight_is_named_in_other_programs(recipe, name, bundle_of, tmp_path, capsys):
    if not NEEDS[recipe]:
        pytest.skip(f"nothing here runs {recipe}")
    folder = shutil.copytree(bundle_of("tiny-gqa", recipe), tmp_path / "bundle")
    listed = next(file for file in json.loads((folder / MANIFEST).read_text())["files"] if file.endswith(name))
    wanted = integers_of(folder).tensor("model.layers.1.mlp.down_proj.weight").codes.numpy() ^ np.uint8(0x88)
    data = (folder / listed).read_bytes()
    assert data.count(wanted.tobytes()) == 1
    (folder / listed).unlink()
    (folder / listed).write_bytes(data.replace(wanted.tobytes(), np.roll(wanted, 1, 1).tobytes()))
    code, _, document = verified(capsys, rehashed(folder, listed), "--prompt", "hello")
    failure = document["comparisons"]["weights"]["failure"]
    assert code == 1 and failure.startswith("model.layers.1.mlp.down_proj.weight holds other integers than its source")


# Wrong programs. Torch is made the wrong one: it is all the same which of the two is.


class Changed(PackedModel):
    """Integers of which `change` makes others, by name."""

    def __init__(self, packed, change):
        super().__init__(packed.checkpoint, packed.recipe)
        self.change = change

    def matrix(self, name):
        return self.change(name, super().matrix)

    def vector(self, name):
        return self.change(name, super().vector)


def scales(part, factor, row=slice(None)):
    def change(name, read):
        value = read(name)
        if part not in name:
            return value
        sizes = value.scales.float().clone()
        sizes[row] *= factor
        return replace(value, scales=sizes)

    return change


def layers_swapped(name, read):
    other = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}
    return read(next((name.replace(old, new) for old, new in other.items() if old in name), name))


def norm(part, factor):
    return lambda name, read: read(name) * factor if part in name else read(name)


def same(name, read):
    return read(name)


def off_by_one_in_decode(config, context, positions, long, rows=layerwise.rope_rows):
    return rows(config, context, positions + int(positions[0] > 0), long)


def int8_values_as_they_are(x):
    return x


DEFECTS = {
    "one layer's scales 10 % off": (scales("layers.0.self_attn.o_proj", 1.1), {}, "layer 0"),
    "two layers swapped": (layers_swapped, {}, "layer 0"),
    "a norm 10 % off": (norm("layers.0.post_attention_layernorm", 1.1), {}, "layer 0"),
    "the final norm 10 % off": (norm("model.norm", 1.1), {}, "logits"),
    "a row of the head 10 % off": (scales("lm_head", 0.9, 100), {}, "logits"),
    "rope off by one": (same, {"rope_rows": off_by_one_in_decode}, "decode: "),
    "a KV cache of other rounding": (same, {"int8_values": int8_values_as_they_are}, ""),
}


@pytest.fixture(scope="module")
def good(bundle_of):
    """The check of a good bundle, and what its program computed."""
    if native_library() is None:
        pytest.skip("the native library is not built: make native")
    bundle = open_bundle(bundle_of("tiny-gqa", "host"))
    source = source_of(bundle, None)
    target = target_of(source.recipe)
    (check,) = target.checks(bundle, PackedModel(target.integers(bundle, source.config), source.recipe))
    return check, layerwise._program(check, [PROMPT], Layers("", []))


def test_a_good_program_is_far_above_its_gates(good):
    found = run_check(good[0], [PROMPT])
    assert found.passed and found.failure == "" and min(found.document()["reached_dB"].values()) > 90


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_fails_and_is_placed(defect, good, monkeypatch):
    (check, program), (change, patches, where) = good, DEFECTS[defect]
    monkeypatch.setattr(layerwise, "_program", lambda *arguments: program)
    for name, function in patches.items():
        monkeypatch.setattr(layerwise, name, function)
    found = run_check(replace(check, packed=Changed(check.packed, change)), [PROMPT])
    assert not found.passed and where in found.failure and found.document()["failure"] == found.failure


def test_a_copy_that_computes_something_else_says_nothing_about_the_bundle(good, monkeypatch):
    check, _ = good
    opened = check.open()

    class Other:
        def forward(self, *arguments):
            return opened.forward(*arguments) + 1

        def close(self):
            opened.close()

    found = run_check(replace(check, open=Other), [PROMPT])
    assert found.failure == "the copy that tells its hidden states computes other logits than the bundle's program"


def test_nothing_passes_without_being_compared_and_finite():
    nothing = Layers("x", ["embedding", "logits"])
    assert nothing.failure == "nothing was compared"
    for value in (np.nan, np.inf):
        found = layerwise._noise(torch.ones(1, 2, 4), torch.tensor([[[1.0, 1, 1, 1], [1, value, 1, 1]]]))
        result = Layers("x", ["embedding"])
        result.add("prefill", 0, "embedding", found)
        assert found[0] == 0 and found[1] == np.inf and not result.passed
        json.dumps(result.document(), allow_nan=False)
