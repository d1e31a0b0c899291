"""ios-ane and ios-executorch in the interpreter, `phi3mobile verify`, and the demo model's golden text."""

import json

import pytest
from exported import psnr, talking_checkpoint
from tiny import random_tokens

ct = pytest.importorskip("coremltools", reason="coremltools is not installed: pip install 'phi3mobile[coreml]'")

from phi3mobile.bundle import open_bundle  # noqa: E402
from phi3mobile.cli import main  # noqa: E402
from phi3mobile.engines import mil  # noqa: E402
from phi3mobile.engines.coreml import open_mil  # noqa: E402
from phi3mobile.engines.coreml_ane import open_ane  # noqa: E402
from phi3mobile.engines.coreml_delegate import open_delegate  # noqa: E402
from phi3mobile.engines.registry import open_engine  # noqa: E402
from phi3mobile.errors import InputError  # noqa: E402
from phi3mobile.export.build import export  # noqa: E402
from phi3mobile.export.packed import PackedModel  # noqa: E402
from phi3mobile.export.recipe import find_recipe  # noqa: E402
from phi3mobile.export.targets.coreml import ane  # noqa: E402
from phi3mobile.export.targets.coreml.reference import reference_model  # noqa: E402
from phi3mobile.export.targets.coreml.write import to_coreml  # noqa: E402
from phi3mobile.models.checkpoint import open_checkpoint  # noqa: E402
from phi3mobile.models.presets import PRESETS  # noqa: E402
from phi3mobile.session.sampling import GREEDY  # noqa: E402
from phi3mobile.session.session import Session  # noqa: E402


def packed_of(folder, recipe):
    return PackedModel(open_checkpoint(folder), find_recipe(recipe))


def same_logits(engine, model, gate):
    """Chunks, single and padded tokens, going back, LongRoPE's regimes, the cache's end."""
    tokens, original, chunk = random_tokens(model.config, 256), model.config.original_context, engine.info.max_chunk
    long = original is not None
    steps = [(0, 28, False), (28, 29, False), (29, 31, False), (12, 20, False)]
    steps += [(start, start + chunk, long) for start in range(0, 256 - chunk, chunk)]
    steps += [(256 - chunk, 255, long), (255, 256, long)] + ([(0, original + 1, False)] if long else [])
    for start, end, regime in steps:
        expected = model(tokens[:, start:end], start, regime)[0].numpy()
        assert psnr(expected, engine.forward(tokens[0, start:end].numpy(), start, regime)) >= gate, (start, end)


# ios-ane


SLOW = pytest.mark.slow


@pytest.mark.parametrize("name", ["tiny-longrope", *(pytest.param(n, marks=SLOW) for n in ("tiny-partial", "tiny-window"))])
def test_the_packages_for_the_neural_engine_compute_what_torch_does(name, checkpoint_of, bundle_of):
    bundle, packed = open_bundle(bundle_of(name, "ios-ane")), packed_of(checkpoint_of(name), "ios-ane")
    same_logits(open_ane(bundle), reference_model(packed, 256, half=True), 70)
    same_logits(open_ane(bundle, half=True), reference_model(packed, 256), 40)


def test_parts_joined_compute_what_one_does(checkpoint_of, bundle_of, monkeypatch, tmp_path):
    packed = packed_of(checkpoint_of("tiny-partial"), "ios-ane")
    limit = sum(ane._bytes(packed, name) for name in packed.checkpoint.names()) // 2
    assert [part.last - part.first for part in ane.parts(packed)] == [3]
    monkeypatch.setattr(ane.parts, "__defaults__", (limit,))
    bundle = open_bundle(export(checkpoint_of("tiny-partial"), tmp_path / "bundle", "ios-ane", method="rtn"))
    assert len(bundle.manifest["runtime"]["packages"]) > 1
    same_logits(open_ane(bundle), reference_model(packed, 256, half=True), 70)


def test_the_neural_engines_limits_are_kept(checkpoint_of, bundle_of):
    """Rank 4, static, no linear and no gather but the embedding's, nothing wider than 16,384, one scale per channel."""
    bundle = open_bundle(bundle_of("tiny-gqa", "ios-ane"))
    assert {"conv", "softmax", "matmul"} < set(bundle.manifest["runtime"]["operators"])
    assert not {"linear", "read_state", "slice_update", "scatter"} & set(bundle.manifest["runtime"]["operators"])
    spec = ct.models.MLModel(str(bundle.program / "part_0.mlpackage"), skip_model_load=True).get_spec()
    for function in spec.mlProgram.functions.values():
        (block,) = function.block_specializations.values()
        gathers = 0
        for operation in block.operations:
            gathers += operation.type == "gather"
            if operation.type in ("conv", "matmul", "softmax", "mul", "add"):
                assert all(output.type.tensorType.rank == 4 for output in operation.outputs)
                sizes = [dimension for output in operation.outputs for dimension in output.type.tensorType.dimensions]
                assert all(dimension.WhichOneof("dimension") == "constant" for dimension in sizes)
        assert gathers == 1
    packed = packed_of(checkpoint_of("tiny-gqa"), "ios-ane")
    matrix = packed.tensor("model.layers.0.mlp.down_proj.weight")
    assert matrix.bits == 4 and matrix.scales.shape == (64, 1)
    for name, count in (("phi-3-mini-4k", 2), ("smollm2-135m", 3)):
        widths = [rows.stop - rows.start for rows in ane.head_parts(PRESETS[name])]
        assert len(widths) == count and sum(widths) == PRESETS[name].vocab_size and max(widths) <= 16384


def test_phi3_small_is_refused_for_the_neural_engine(checkpoint_of, tmp_path):
    refused = r"recipe ios-ane has no layernorm \(every layer\), .*blocksparse \(layer 0\).*; take ios-gpu, android-cpu, .*host"
    with pytest.raises(InputError, match=refused):
        export(checkpoint_of("small-tiny"), tmp_path / "out", "ios-ane")
    assert not list(tmp_path.iterdir())


# ios-executorch


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-gqa", "tiny-longrope", "tiny-window"])
def test_the_delegates_package_computes_what_torch_does(name, checkpoint_of, bundle_of):
    bundle, packed = open_bundle(bundle_of(name, "ios-executorch")), packed_of(checkpoint_of(name), "ios-executorch")
    (program,) = mil.blobs_of_pte(bundle.program)
    assert set(program.functions) == {"decode", "prefill"} and bundle.manifest["runtime"]["operators"] == []
    same_logits(open_delegate(bundle), reference_model(packed, 256, half=True), 70)
    same_logits(open_delegate(bundle, half=True), reference_model(packed, 256), 40)


def test_an_operator_that_core_ml_does_not_take_is_named_with_its_layer(checkpoint_of, tmp_path, monkeypatch):
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as registry

    from phi3mobile.export.targets.coreml import torch_ops  # noqa: F401  registers what is taken away here

    name = next(name for name in registry.name_to_func_mapping if name.startswith("phi3mobile") and "rotated" in name)
    lowerings = {key: value for key, value in registry.name_to_func_mapping.items() if "rotated" not in key}
    assert name not in lowerings
    monkeypatch.setattr(registry, "name_to_func_mapping", lowerings)
    with pytest.raises(InputError, match=r"the operator phi3mobile\.rotated\.default of layers\.0; take recipe ios-gpu"):
        to_coreml(packed_of(checkpoint_of("tiny-gqa"), "ios-executorch"), tmp_path, 64, 8)


# verify


def verified(capsys, *arguments):
    code = main(["verify", *map(str, arguments)])
    out = capsys.readouterr().out
    return code, out, json.loads(out.splitlines()[-1])


def test_verify_measures_every_stage_and_layer(capsys, bundle_of):
    code, out, document = verified(capsys, bundle_of("tiny-longrope", "ios-gpu"), "--prompt", "the cat sat on the mat")
    assert code == 0 and document["passed"]
    assert list(document["comparisons"]) == ["weights", "rewriting", "float16", "4 bit"]
    for comparison in list(document["comparisons"].values())[1:]:
        stages = {"prefill", "decode", "draft", "long factors", "long decode", "crossing"} - {"draft"}
        assert stages <= set(comparison["logits_dB"]) and len(comparison["layers_dB"]) == 2
    assert min(document["comparisons"]["rewriting"]["logits_dB"].values()) >= 70
    assert document["comparisons"]["4 bit"]["gate_dB"] is None
    assert document["comparisons"]["4 bit"]["logits_dB"]["prefill"] < 40 and "layers, first to last" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", " "], "a --prompt is empty"),
        (["--checkpoint", "nowhere"], "was made from nowhere, which is not here; give its folder with --checkpoint"),
        (["--checkpoint", "OTHER"], "is not the checkpoint that"),
    ],
)
def test_verify_refuses_bad_input_in_one_line(arguments, message, capsys, bundle_of, tmp_path):
    if arguments[1] == "OTHER":
        arguments = ["--checkpoint", str(talking_checkpoint(tmp_path / "other", "tiny-tied"))]
    assert main(["verify", str(bundle_of("tiny-gqa", "ios-gpu")), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


# The demo model


@pytest.mark.slow
def test_the_demo_models_golden_text_is_the_ptes(demo_checkpoint, demo_bundle, tmp_path):
    """Greedy, in float16 as the phone rounds, on sentences whose second best token is far behind; see test_parity_ladder."""
    from test_parity_ladder import GOLDEN, REPEAT

    bundle = open_bundle(export(demo_checkpoint, tmp_path / "bundle", "ios-gpu", 256, method="rtn"))
    engines = open_engine(open_bundle(demo_bundle)), open_mil(bundle, half=True)
    for sentence in GOLDEN:
        texts = [
            "".join(
                Session(bundle, engine=engine).generate(
                    [{"role": "user", "content": REPEAT + sentence}], max_tokens=32, sampling=GREEDY
                )
            )
            for engine in engines
        ]
        assert texts == [sentence, sentence]
