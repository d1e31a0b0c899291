"""The vision tower's package for the Neural Engine in the interpreter, against torch with the same integers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import random_tensors, write_folder

ct = pytest.importorskip("coremltools", reason="coremltools is not installed: pip install 'phi3mobile[coreml]'")

from phi3mobile.engines import mil  # noqa: E402
from phi3mobile.errors import InputError  # noqa: E402
from phi3mobile.export.packed_vision import PackedVision  # noqa: E402
from phi3mobile.export.plan import plan_export  # noqa: E402
from phi3mobile.export.targets.coreml.matrices import identifier  # noqa: E402
from phi3mobile.export.targets.coreml.reference import reference_vision  # noqa: E402
from phi3mobile.export.targets.coreml.tower import ROWS, write_tower  # noqa: E402
from phi3mobile.models.checkpoint import open_checkpoint  # noqa: E402
from phi3mobile.models.presets import PRESETS  # noqa: E402
from phi3mobile.models.vision_config import VisionConfig  # noqa: E402

TINY = PRESETS["vision-tiny"]
WIDE = replace(TINY, vision=VisionConfig(64, intermediate_size=4096, num_hidden_layers=3))  # as wide as the released tower


def decibels(reference: np.ndarray, values: np.ndarray) -> float:
    """Signal to noise."""
    return float(10 * np.log10(np.square(reference).sum() / np.square(reference - values).sum()))


@pytest.fixture(scope="module", params=["tiny", "wide", "tiny-4-bit"])
def written(request, tmp_path_factory):
    """The packed tower, its program, and the operators that it was written with."""
    config = WIDE if request.param == "wide" else TINY
    folder = tmp_path_factory.mktemp("tower")
    checkpoint = open_checkpoint(write_folder(folder / "model", config.to_hf(), random_tensors(config)))
    packed = PackedVision(checkpoint, 4 if "4-bit" in request.param else 8)
    operators = write_tower(packed, folder / "vision.mlpackage")
    return packed, folder / "vision.mlpackage", operators


def test_it_encodes_and_projects_as_torch_does(written):
    packed, path, _ = written
    vision, program = reference_vision(packed), mil.load(path)
    generator = torch.Generator().manual_seed(3)
    view = torch.randn(1, 3, 336, 336, generator=generator).half().float()
    rows = torch.randn(1, ROWS, packed.config.merged_size, generator=generator).half().float()
    features, embeddings = vision.encode(view).numpy(), vision.project(rows).numpy()
    for half, gate in ((False, 60), (True, 40)):
        found = program.run({"view": view.numpy()}, function="encode", half=half)["features"]
        assert found.shape == (1, 576, packed.config.hidden_size) and decibels(features, found) >= gate
        found = program.run({"rows": rows.numpy()}, function="project", half=half)["embeddings"]
        assert found.shape == (1, ROWS, packed.config.projection_size) and decibels(embeddings, found) >= gate


def test_the_neural_engines_limits_are_kept(written):
    """Static, convolutions in place of linears, no gather, nothing above rank 4, one patch convolution."""
    _, path, operators = written
    assert {"conv", "softmax", "matmul", "layer_norm", "gelu"} < set(operators)
    assert not {"linear", "gather", "read_state", "cast"} & set(operators)
    spec = ct.models.MLModel(str(path), skip_model_load=True).get_spec()
    for function in spec.mlProgram.functions.values():
        (block,) = function.block_specializations.values()
        for operation in block.operations:
            for output in operation.outputs:
                dimensions = output.type.tensorType.dimensions
                assert len(dimensions) <= 4 and all(one.HasField("constant") for one in dimensions)
                assert all(one.constant.size <= 16384 for one in dimensions)


def test_weights_are_the_packed_integers_bit_for_bit(written):
    from coremltools.converters.mil.frontend.milproto.load import load

    packed, path, _ = written
    model = ct.models.MLModel(str(path), skip_model_load=True)
    program = load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    operations = [op for function in program.functions.values() for op in function.operations]
    matrices = {op.name: op for op in operations if op.op_type == "constexpr_blockwise_shift_scale"}
    assert set(matrices) == {identifier(name) for name in packed.config.matrices()}
    for name in packed.config.matrices():
        ours, op = packed.matrix(name), matrices[identifier(name)]
        assert np.array_equal(op.data.val.reshape(ours.shape), ours.unpacked().numpy())
        assert np.array_equal(op.scale.val.reshape(ours.scales.shape), ours.scales.half().numpy())


# What a user gets


@pytest.mark.parametrize(
    "recipe, reason",
    [
        ("ios-ane", "of Core ML's recipes only ios-gpu's decoder takes rows of pictures, the others' take tokens"),
        ("ios-executorch", "of Core ML's recipes only ios-gpu's decoder takes rows of pictures, the others' take tokens"),
        (
            "litert",
            "LiteRT-LM's packages know one size of picture and one number of tokens, and here both depend on the picture",
        ),
    ],
)
def test_a_model_that_sees_is_refused_with_the_reason(recipe, reason, checkpoint_of, tmp_path):
    needs = rf"recipe {recipe} has no vision \(pictures\), which this model needs; take .* \(vision: {reason}\)$"
    with pytest.raises(InputError, match=needs):
        plan_export(checkpoint_of("vision-tiny"), tmp_path / "out", recipe, method="rtn")
