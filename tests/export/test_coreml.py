"""ios-gpu: the package's structure, its weights, and its logits in the interpreter against torch."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from exported import psnr, talking_checkpoint
from tiny import random_tokens

pytest.importorskip("coremltools", reason="coremltools is not installed: pip install 'phi3mobile[coreml]'")

from phi3mobile import extras
from phi3mobile.bundle import open_bundle
from phi3mobile.cli import main
from phi3mobile.engines import EngineInfo, mil
from phi3mobile.engines.coreml import MilEngine, open_mil
from phi3mobile.errors import InputError
from phi3mobile.export.build import export
from phi3mobile.export.packed import PackedModel
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.targets.coreml import decoder
from phi3mobile.export.targets.coreml.reference import reference_model
from phi3mobile.export.targets.coreml.write import to_coreml
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.presets import PRESETS
from phi3mobile.session.session import Session

RECIPE = find_recipe("ios-gpu")
CONFIGS = ["tiny-gqa", "tiny-longrope", "tiny-partial", "tiny-tied", "tiny-window", "small-tiny", "small-tiny-longrope"]


def packed_of(folder) -> PackedModel:
    return PackedModel(open_checkpoint(folder), RECIPE)


@pytest.fixture(scope="module")
def engine_of(checkpoint_of, bundle_of):
    """(name, half) -> the interpreter over the bundle of a tiny preset, and its torch reference."""
    engines = {}

    def get(name, half):
        if (name, half) not in engines:
            bundle = open_bundle(bundle_of(name, "ios-gpu"))
            model = reference_model(packed_of(checkpoint_of(name)), bundle.info.max_context, half=not half)
            engines[name, half] = open_mil(bundle, half), model
        return engines[name, half]

    return get


def forwards(original):
    """Chunks, single tokens, padded ones, the cache's end, and going back: (start, end, long)."""
    steps = [(0, 28, False), (28, 29, False), (29, 30, False), (30, 34, False), (12, 20, False), (20, 21, False)]
    long = original is not None
    steps += [(0, 100, long), (100, 228, long), (228, 235, long), (235, 255, long), (255, 256, long)]
    return steps + ([(0, original, False), (0, original + 1, False)] if long else [])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("half", "gate"), [(False, 70), (True, 40)], ids=["float32", "float16"])
def test_the_program_computes_what_torch_does(name, half, gate, engine_of):
    engine, model = engine_of(name, half)
    tokens = random_tokens(model.config, 256)
    for start, end, long in forwards(model.config.original_context):
        expected = model(tokens[:, start:end], start, long)[0].numpy()
        logits = engine.forward(tokens[0, start:end].numpy(), start, long)
        said = expected[0] > -1e30
        assert psnr(expected[:, said], logits[:, said]) >= gate, (start, end, long)
        assert (logits[:, ~said] < -6e4).all()  # ids that phi-3-small never says


def test_the_regimes_of_longrope_differ(engine_of):
    engine, model = engine_of("tiny-longrope", False)
    tokens = random_tokens(model.config, 20)[0].numpy()
    assert psnr(engine.forward(tokens, 0), engine.forward(tokens, 0, long=True)) < 40


def test_a_session_writes_the_same_text_over_torch_and_over_the_program(engine_of, bundle_of):
    from phi3mobile.engines.eager import EagerEngine

    bundle = open_bundle(bundle_of("tiny-longrope", "ios-gpu"))
    engine, model = engine_of("tiny-longrope", False)
    texts = []
    for other in (engine, EagerEngine(model)):
        session = Session(bundle, engine=other)
        texts.append("".join(session.complete("the cat sat on the mat", max_tokens=40, lookup=True)))
        assert session.statistics.long_switch
    assert texts[0] == texts[1] != ""


@pytest.mark.parametrize("name", ["tiny-longrope", "small-tiny"])
def test_the_shortest_context_has_one_shape(name, checkpoint_of, tmp_path):
    packed = packed_of(checkpoint_of(name))
    program = to_coreml(packed, tmp_path, 1, 1)
    package = mil.load(tmp_path / program.runtime["program"])
    engine = MilEngine(package, EngineInfo(packed.config.vocab_size, 1, 1, packed.config.original_context), program.runtime)
    tokens = random_tokens(packed.config, 1)
    expected = reference_model(packed, 1, half=True)(tokens)[0].numpy()
    said = expected[0] > -1e30
    assert psnr(expected[:, said], engine.forward(tokens[0].numpy(), 0)[:, said]) >= 70


# The package


def test_weights_are_the_packed_integers_of_every_target_bit_for_bit(checkpoint_of, bundle_of):
    """Read back from the file with coremltools: codes, scales and the float16 that they stand for."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    bundle, packed = open_bundle(bundle_of("tiny-gqa", "ios-gpu")), packed_of(checkpoint_of("tiny-gqa"))
    android = PackedModel(packed.checkpoint, find_recipe("android-cpu"))
    model = ct.models.MLModel(str(bundle.program), skip_model_load=True)
    program = load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    matrices = {}
    for function in program.functions.values():
        found = {op.name: op for op in function.operations if op.op_type == "constexpr_blockwise_shift_scale"}
        assert len(found) == 4 * packed.config.num_hidden_layers + 2
        for name, op in found.items():
            matrices.setdefault(name, []).append(op)
    for tensor in packed.checkpoint.names():
        if packed.form_of(tensor) is None:
            continue
        ours = packed.tensor(tensor)
        for op in matrices[tensor.removeprefix("model.").removesuffix(".weight").replace(".", "_")]:
            codes, scales, values = op.data.val, op.scale.val, op.materialized_val_inference()
            assert np.array_equal(codes, ours.unpacked().numpy()) and scales.dtype == values.dtype == np.float16
            assert np.array_equal(scales, ours.scales.half().numpy())
            if ours.bits == 4:  # float16 holds every product of a 4-bit code and a bfloat16 scale
                assert np.array_equal(values.astype(np.float32), ours.dequantized().numpy())
            if "layers" in tensor or tensor.startswith("lm_head"):
                assert torch.equal(ours.codes, android.tensor(tensor).codes)  # what the .pte holds
                assert torch.equal(ours.scales, android.tensor(tensor).scales)


def test_functions_share_weights_and_states(checkpoint_of, tmp_path):
    packed = packed_of(checkpoint_of("tiny-gqa"))
    sizes = []
    for chunk in (1, 64):  # one function (decode and prefill are alike) or three
        folder = tmp_path / str(chunk)
        folder.mkdir()
        runtime = to_coreml(packed, folder, 256, chunk).runtime
        sizes.append((folder / runtime["program"] / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size)
        program = mil.load(folder / runtime["program"])
        assert set(program.functions) == set(runtime["functions"])
        states = [function.states for function in program.functions.values()]
        assert all(set(state) == set(states[0]) for state in states)
    assert abs(sizes[1] - sizes[0]) < 1000  # position constants, no weights


def test_the_package_needs_ios_18_and_only_core_operators(bundle_of):
    import coremltools as ct

    bundle = open_bundle(bundle_of("tiny-gqa", "ios-gpu"))
    runtime = bundle.manifest["runtime"]
    spec = ct.models.MLModel(str(bundle.program), skip_model_load=True).get_spec()
    assert spec.specificationVersion == ct.target.iOS18 == 9
    assert {function.name for function in spec.description.functions} == set(runtime["functions"])
    assert "scaled_dot_product_attention" not in runtime["operators"] and "coreml_update_state" in runtime["operators"]
    assert bundle.manifest["engine"] == "coreml" and bundle.program_bytes == bundle.manifest["memory"]["weights"]
    for function in spec.description.functions:
        shapes = {item.name: item.type.multiArrayType for item in function.input}
        counts = [tuple(shape.shape) for shape in shapes["keys"].enumeratedShapes.shapes]
        assert sorted(counts) == [(128,), (256,), (384,)] and runtime["rows"] == 384
        assert list(shapes["tokens"].shape) == [1, runtime["functions"][function.name]]


def test_a_damaged_package_is_refused(bundle_of, tmp_path):
    folder = shutil.copytree(bundle_of("tiny-gqa", "ios-gpu"), tmp_path / "bundle")
    weights = folder / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"weight\.bin has \d+ bytes, the manifest says"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["phi-3-mini-4k", "phi-3-small-8k"])
def test_plans_stay_within_what_core_ml_takes(name):
    for context in (1, 128, 2048, 8192, 16384):
        config = replace(PRESETS[name], max_position_embeddings=16384)
        plan = decoder.plan(config, context, min(128, context))
        assert len(plan.key_counts) <= 128 and plan.key_counts[-1] == plan.rows >= context + plan.lengths["prefill"]
        assert plan.rows % 64 == 0 and plan.rows < context + 128 + plan.key_step


# Bad input


def test_a_context_over_the_recipes_limit_is_refused(tmp_path):
    source = talking_checkpoint(tmp_path / "long", "tiny-longrope", max_position_embeddings=32768)
    with pytest.raises(InputError, match="context 20000: recipe ios-gpu takes 1 to 16384"):
        export(source, tmp_path / "out", "ios-gpu", 20000)
    assert not (tmp_path / "out").exists()


def test_without_coremltools_the_recipe_says_what_to_install(checkpoint_of, tmp_path, monkeypatch, capsys):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "coremltools" else find(name, *rest))
    source = str(checkpoint_of("tiny-gqa"))
    assert main(["export", source, "--recipe", "ios-gpu", "-o", str(tmp_path / "out")]) == 2
    assert extras.command("coreml") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("chunk", [0, 257])
def test_a_chunk_outside_the_context_is_refused(chunk, checkpoint_of, tmp_path):
    with pytest.raises(InputError, match="must be from 1 to the context, 256"):
        to_coreml(packed_of(checkpoint_of("tiny-gqa")), tmp_path, 256, chunk)
