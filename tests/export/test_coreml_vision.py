"""ios-gpu of a model that sees: rows in the decoder, the tower beside it, conversations about pictures against torch."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from exported import psnr
from photos import drawn, say

pytest.importorskip("coremltools", reason="coremltools is not installed: pip install 'phi3mobile[coreml]'")

from phi3mobile.bundle import open_bundle
from phi3mobile.cli import main
from phi3mobile.engines import mil
from phi3mobile.engines.coreml import MilEngine, open_mil, open_mil_tower
from phi3mobile.engines.eager import EagerEngine
from phi3mobile.engines.registry import open_engine, open_tower
from phi3mobile.errors import InputError
from phi3mobile.export.build import export
from phi3mobile.export.cards import bundle_card, placement
from phi3mobile.export.packed import EMBEDDING, PackedModel
from phi3mobile.export.packed_vision import PackedVision
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.targets.coreml import decoder
from phi3mobile.export.targets.coreml.matrices import Matrices
from phi3mobile.export.targets.coreml.package import Weights, write_package
from phi3mobile.export.targets.coreml.read_vision import tower_difference
from phi3mobile.export.targets.coreml.reference import reference_model, reference_vision
from phi3mobile.export.targets.coreml.target import TARGET
from phi3mobile.export.targets.coreml.write import to_coreml
from phi3mobile.export.tower_check import compare_tower
from phi3mobile.manifest import MANIFEST
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.vision import merge, views
from phi3mobile.session.session import Session

GREEDY = {"repetition": True, "repetition_penalty": 1.0, "temperature": 0.0}
CONTEXT = 2048  # two pictures of 757 tokens, past the switch at 1024
TOKENS = np.arange(5, 15)
WEIGHTS = "vision.mlpackage/Data/com.apple.CoreML/weights/weight.bin"


A, B = drawn(1), drawn(2, 30, 50)


@pytest.fixture(scope="module")
def folder(checkpoint_of):
    return checkpoint_of("vision-tiny")


@pytest.fixture(scope="module")
def bundle(once, folder):
    return open_bundle(once("seeing-ios-gpu", lambda out: export(folder, out, "ios-gpu", CONTEXT, method="rtn")))


@pytest.fixture(scope="module")
def packed(folder):
    return PackedModel(open_checkpoint(folder), find_recipe("ios-gpu"))


@pytest.fixture(scope="module")
def tower(folder):
    return PackedVision(open_checkpoint(folder))


@pytest.fixture(scope="module")
def torchs(packed, tower):
    """Engine and vision of torch with the program's own constants."""
    return EagerEngine(reference_model(packed, CONTEXT, half=True), CONTEXT), reference_vision(tower, half=True)


def rows_of(picture: np.ndarray, num_crops: int, vision) -> np.ndarray:
    plan, cut = views(picture, num_crops)
    features = vision.encode(torch.from_numpy(np.stack(list(cut)))).numpy()
    merged = merge(features, plan.grid, *(separator.numpy() for separator in vision.separators))
    return vision.project(torch.from_numpy(merged)).numpy()


# Rows in the decoder


def test_rows_of_tokens_are_tokens_to_the_bit(bundle, packed):
    engine = open_engine(bundle)
    assert isinstance(engine, MilEngine) and engine.info.hidden == 64
    rows = engine.embed(TOKENS)
    np.testing.assert_array_equal(rows, packed.matrix(EMBEDDING).dequantized().numpy()[TOKENS])
    expected = engine.forward(TOKENS, 0)
    np.testing.assert_array_equal(engine.forward_embeddings(rows, 0), expected)
    np.testing.assert_array_equal(engine.prefill_embeddings(rows, 0), expected[-1])
    parts = [engine.forward_embeddings(rows[:4], 0), engine.forward(TOKENS[4:5], 4), engine.forward_embeddings(rows[5:], 5)]
    assert psnr(expected, np.concatenate(parts)) > 100
    for position, long in ((1020, True), (1500, False)):  # past the switch, and before it as if past
        np.testing.assert_array_equal(
            engine.forward_embeddings(rows, position, long), engine.forward(TOKENS, position, long), strict=True
        )
    for wrong in (rows[0], rows[None], rows[:, :63]):
        with pytest.raises(InputError, match=r"embeddings of shape .* were given: they are \[T, hidden\], here \[T, 64\]"):
            engine.forward_embeddings(wrong, 0)
    with pytest.raises(InputError, match=r"the vocabulary has 304"):
        engine.embed(np.array([304]))
    engine.close()
    with pytest.raises(InputError, match="the engine is closed"):
        engine.embed(TOKENS)


@pytest.mark.parametrize(("half", "gate"), [(False, 100), (True, 40)], ids=["float32", "float16"])
def test_rows_give_what_torch_computes(half, gate, bundle, torchs):
    engine, (model, _) = open_mil(bundle, half=half), torchs
    rows = np.random.default_rng(3).standard_normal((128 + 8 + 1, 64)).astype(np.float16).astype(np.float32)
    model.reset()
    for position, long in ((0, False), (137, True)):
        expected = model.forward_embeddings(rows, position, long)[-len(rows) :]
        found = [
            engine.forward_embeddings(rows[start:end], position + start, long)
            for start, end in ((0, 128), (128, 136), (136, 137))
        ]
        assert psnr(expected, np.concatenate(found)) >= gate
    assert np.isfinite(engine.forward_embeddings(np.zeros((3, 64), np.float32), 0)).all()
    engine.close()


@pytest.mark.parametrize("name", ["small-tiny", "tiny-tied"])
def test_embeddings_have_the_multiplier_and_a_tables_own_integers(name, checkpoint_of, tmp_path):
    """Of families that see nothing: the function is the same for all, and so is the head of a tied table."""
    packed, weights = PackedModel(open_checkpoint(checkpoint_of(name)), find_recipe("ios-gpu")), Weights()
    sizes = decoder.plan(packed.config, 64, 16)
    function = decoder._embed(packed.config, sizes, Matrices(packed, weights))
    write_package(tmp_path / "rows.mlpackage", {"embed": function}, "embed", weights)
    program = mil.load(tmp_path / "rows.mlpackage")
    table = packed.matrix(EMBEDDING).dequantized().numpy() * np.float32(packed.config.embedding_multiplier)
    for count in sizes.lengths.values():
        tokens = np.arange(3, 3 + count)
        found = program.run({"tokens": tokens[None]})["embeddings"]
        np.testing.assert_allclose(found[0], table[tokens], rtol=1e-3)
    with pytest.raises(InputError, match=r"the input 'tokens' has shape \[1, 5\]; it takes \[1, "):
        program.run({"tokens": TOKENS[None, :5]})


def test_weights_are_stored_once_and_the_table_is_embeds_alone(bundle, packed, tmp_path):
    program = mil.load(bundle.program)
    assert set(program.functions) == {*bundle.manifest["runtime"]["functions"], "embed"}
    for name, function in program.functions.items():
        names = {op.name for op in function.block.walk() if op.type == "constexpr_blockwise_shift_scale"}
        assert names == {"embed_tokens"} if name == "embed" else "embed_tokens" not in names and "lm_head" in names
        assert ("tokens" in function.inputs) == (name == "embed") and bool(function.states) == (name != "embed")
    assert sorted(program.function("embed").inputs["tokens"].choices) == [(1, 1), (1, 8), (1, 128)]
    sizes = []
    for chunk in (1, 64):  # one length, or three
        (tmp_path / str(chunk)).mkdir()
        runtime = to_coreml(packed, tmp_path / str(chunk), 256, chunk).runtime
        package = tmp_path / str(chunk) / runtime["program"]
        sizes.append((package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size)
        engine = MilEngine(mil.load(package), bundle.info.__class__(304, 256, chunk, 1024, None, 64), runtime)
        assert engine.embed(TOKENS[:1]).shape == (1, 64) and engine.forward(TOKENS[:1], 0).shape == (1, 304)
    assert abs(sizes[1] - sizes[0]) < 1000


# The tower


def test_a_tower_is_torchs_with_the_same_integers(bundle, tower):
    vision, own = reference_vision(tower, half=True), open_tower(bundle)
    rows = np.random.default_rng(0).standard_normal((300, 128)).astype(np.float32)
    expected = vision.project(torch.from_numpy(rows)).numpy()
    assert psnr(expected, own.project(rows)) > 100 and own.project(rows[:1]).shape == (1, 64)
    np.testing.assert_array_equal(own.project(rows)[:128], own.project(rows[:128]))
    assert own.project(rows[:0]).shape == (0, 64)
    (view, *_) = views(A, 1)[1]
    assert psnr(vision.encode(torch.from_numpy(view)[None])[0].numpy(), own.encode(view)) > 80
    assert (own.num_crops, own.hidden) == (4, 64) and own.name == open_tower(bundle).name
    assert own.name != open_mil_tower(bundle, half=True).name  # other arithmetic
    for separator, wanted in zip(own.separators, vision.separators, strict=True):
        np.testing.assert_array_equal(separator, tower.separators()[separator is own.separators[1]].numpy())
        assert separator.shape == wanted.shape
    with pytest.raises(InputError, match=r"a view of shape \[3, 335, 336\] was given"):
        own.encode(np.zeros((3, 335, 336), np.float32))
    own.close()
    with pytest.raises(InputError, match="the tower is closed"):
        own.encode(view)


def test_a_tower_of_another_checkpoint_is_found_out(bundle, tower, folder):
    assert tower_difference(bundle, tower) == ""
    other, vector, matrix = PackedVision(open_checkpoint(folder)), tower.vector, tower.matrix
    for name, said in (
        ("encoder.layers.1.mlp.fc2.bias", "layers_1_mlp_fc2_bias of the tower holds other values than its source"),
        ("encoder.layers.0.layer_norm2.weight", "layers_0_layer_norm2 of the tower holds other values"),
        ("embeddings.position_embedding.weight", "embeddings_class_token of the tower holds other values"),
        ("embeddings.patch_embedding.weight", "embeddings_patch_embedding of the tower holds other values"),
        ("glb_GN", "the separators are others than its source's"),
    ):
        other.vector = lambda asked, name=name: vector(asked) * (1.01 if asked.endswith(name) else 1)
        found = tower_difference(bundle, other)
        assert said in found
        assert not compare_tower(TARGET.tower_checks(bundle, tower)[0], found).passed
    other.vector = vector
    backwards = torch.arange(63, -1, -1)
    other.matrix = lambda asked: matrix(asked).rows(backwards) if asked.endswith("0.mlp.fc1.weight") else matrix(asked)
    assert "layers_0_mlp_fc1_codes of the tower holds other values than its source" in tower_difference(bundle, other)


def test_a_tower_that_computes_otherwise_does_not_pass(bundle, tower, folder):
    """Checks that their own gates let pass what is right, and nothing else."""
    flipped = PackedVision(open_checkpoint(folder))
    vector = tower.vector
    flipped.vector = lambda asked: vector(asked).flip(0) if asked.endswith("layers.0.layer_norm1.bias") else vector(asked)
    for wrong, right in zip(*(TARGET.tower_checks(bundle, held) for held in (flipped, tower)), strict=True):
        assert not compare_tower(wrong, "").passed and compare_tower(right, "").passed


# Conversations


@pytest.mark.parametrize(
    ("parts", "num_crops"),
    [((A, "what is this?"), 1), (("the cat ", A, B, "sat on"), 1), ((B, A, "hello there"), 4)],
    ids=["one", "two", "past the switch"],
)
def test_a_session_says_what_torch_says(bundle, torchs, parts, num_crops):
    """Each token is the best one of a single forward of torch over all rows before it."""
    (model, vision), template = torchs, "".join(part if isinstance(part, str) else "@\n" for part in parts)
    with Session(bundle, num_crops=num_crops) as session:
        text = "".join(session.generate([say(*parts)], max_tokens=8, **GREEDY))
        filled, tokens = session.statistics.prompt_tokens, session._rows.tokens
        assert text and (filled > 1024) == (num_crops == 4)
    pieces = bundle.chat.render([{"role": "user", "content": template}]).split("@")
    prompt = [model.embed(np.array(bundle.tokenizer.encode(pieces[0])))]
    for picture, piece in zip((part for part in parts if not isinstance(part, str)), pieces[1:], strict=True):
        prompt += [rows_of(picture, num_crops, vision), model.embed(np.array(bundle.tokenizer.encode(piece)))]
    assert sum(map(len, prompt)) == filled
    answer = np.array(tokens[filled:])
    assert len(answer) >= 6
    model.reset()
    logits = model.forward_embeddings(np.concatenate([*prompt, model.embed(answer)]), 0)
    assert logits[filled - 1 : -1].argmax(-1).tolist() == answer.tolist()


def test_a_second_turn_computes_only_what_is_new(bundle, torchs):
    model, vision = torchs
    with Session(bundle, num_crops=1) as session:
        first = [say(A, "what is this?")]
        said = "".join(session.generate(first, max_tokens=4, **GREEDY))
        filled = session.statistics.prompt_tokens
        again = [*first, {"role": "assistant", "content": said}, say("and ", B)]
        list(session.generate(again, max_tokens=4, **GREEDY))
        assert session.pictures.views == 4 and session.statistics.reused_tokens >= filled - 1
        tokens, filled = session._rows.tokens, session.statistics.prompt_tokens
        rows = session.pictures.embeddings([token for token in tokens if token < 0])
    expected = np.concatenate([rows_of(picture, 1, vision) for picture in (A, B)])
    assert psnr(expected, rows) > 90
    whole, text = np.empty((len(tokens), 64), np.float32), np.array(tokens) >= 0
    whole[text], whole[~text] = model.embed(np.array(tokens)[text]), expected
    model.reset()
    logits = model.forward_embeddings(whole, 0)
    assert logits[filled - 1 : -1].argmax(-1).tolist() == tokens[filled:]


def test_numbers_of_pictures_that_do_not_fit_are_refused(bundle):
    with Session(bundle, num_crops=1) as session:
        for parts, message in (
            (("<|image_2|>", A), r"says <\|image_2\|>, and the conversation has 1 images"),
            (("<|image_1|>", A, B), r"gives 2 images and never says <\|image_2\|>"),
        ):
            with pytest.raises(InputError, match=message):
                session.generate([say(*parts)])
    with Session(bundle, num_crops=16) as session, pytest.raises(InputError, match=r"of pictures, num_crops 8 would fit"):
        session.generate([say(A, B, "what are these?")])


def test_the_command_line_takes_a_photo(bundle, tmp_path, capsys):
    from PIL import Image

    Image.fromarray(A).save(tmp_path / "photo.png")
    given = [
        str(bundle.folder),
        "What is this?",
        "--image",
        str(tmp_path / "photo.png"),
        "--num-crops",
        "1",
        "--max-tokens",
        "3",
    ]
    assert main(["run", *given]) == 0 and capsys.readouterr().out.strip()
    assert main(["run", *given[:3], str(tmp_path / "none.png")]) == 2
    assert "none.png" in capsys.readouterr().err


# The bundle


def test_the_manifest_counts_the_tower(bundle):
    files, about = bundle.manifest["files"], bundle.vision
    package, beside, rest = (
        sum(listed["bytes"] for path, listed in files.items() if path.startswith(name))
        for name in ("vision.mlpackage/", "separators.bin", "model.mlpackage/")
    )
    assert bundle.program_bytes == bundle.manifest["memory"]["weights"] == package + beside + rest
    parameters = bundle.manifest["model"]["parameters"]
    assert bundle.manifest["model"]["bits_per_weight"] == round(rest * 8 / parameters, 3)
    assert (about["program"], about["rows"], about["bits"], about["num_crops"]) == ("vision.mlpackage", 128, 8, 4)
    assert {"conv", "gelu", "coreml_update_state"} < set(bundle.manifest["runtime"]["operators"])
    assert "4 crops of a picture" in bundle_card(bundle)["pictures"]
    assert {"model.decode", "model.embed", "vision.encode", "vision.project"} < set(placement(bundle))


def changed(bundle, tmp_path, change):
    copy = shutil.copytree(bundle.folder, tmp_path / "copy")
    manifest = json.loads((copy / MANIFEST).read_text())
    change(manifest)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["vision"].update(program="other.mlpackage"), r"vision names other\.mlpackage, no file of the bundle"),
        (lambda m: m["vision"].update(program="vision.ml"), r"vision names vision\.ml, no file of the bundle"),
        (lambda m: m["vision"].update(separators="vision.mlpackage"), r"vision names vision\.mlpackage, no file"),
    ],
)
def test_a_damaged_section_is_told(bundle, tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        open_bundle(changed(bundle, tmp_path, change))


def test_a_damaged_vision_package_is_told(bundle, tmp_path):
    copy = changed(bundle, tmp_path, lambda manifest: None)
    weights = copy / WEIGHTS
    data = bytearray(weights.read_bytes())
    weights.write_bytes(data[:-1])
    with pytest.raises(InputError, match=r"vision\.mlpackage/.*weight\.bin has \d+ bytes, the manifest says"):
        open_bundle(copy)
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match=r"vision\.mlpackage/.*weight\.bin is damaged: its SHA-256"):
        open_bundle(copy)
    weights.unlink()
    with pytest.raises(InputError, match=r"lacks the file vision\.mlpackage/.*weight\.bin"):
        open_bundle(copy)


def test_programs_that_are_not_what_the_manifest_says_are_told(bundle, tmp_path, bundle_of):
    wider = open_bundle(changed(bundle, tmp_path / "a", lambda m: m["vision"].update(rows=200)))
    with pytest.raises(InputError, match=r"the input 'rows' has shape \[1, 200, 128\]"):
        open_tower(wider).project(np.zeros((3, 128), np.float32))
    swapped = open_bundle(changed(bundle, tmp_path / "b", lambda m: m["vision"].update(program="model.mlpackage")))
    with pytest.raises(InputError, match="this program has no function 'encode'; it has "):
        open_tower(swapped).encode(np.zeros((3, 336, 336), np.float32))
    blind = open_bundle(changed(bundle, tmp_path / "c", lambda m: m.pop("vision")))
    with pytest.raises(InputError, match="the program takes embeddings, and its manifest says something else"):
        open_engine(blind)
    with pytest.raises(InputError, match="MilEngine takes tokens only, no embeddings"):
        open_mil(open_bundle(bundle_of("tiny-gqa", "ios-gpu"))).embed(TOKENS)
