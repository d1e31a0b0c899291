"""Bundles of models that see pictures: vision.pte and rows in the decoder, by both runtimes, against torch."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from exported import psnr
from photos import drawn, say

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.eager import EagerEngine, EagerTower
from phi3mobile.engines.native import NativeProgram, native_library
from phi3mobile.engines.registry import open_engine, open_tower
from phi3mobile.errors import InputError
from phi3mobile.export.build import export
from phi3mobile.export.cards import bundle_card
from phi3mobile.export.packed import PackedModel, load_packed
from phi3mobile.export.packed_vision import PackedVision, load_packed_vision
from phi3mobile.export.plan import packed_bytes, plan_export
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.solve.calibration import calibration_of
from phi3mobile.export.targets.executorch.program import Pte
from phi3mobile.export.targets.executorch.read_vision import tower_difference
from phi3mobile.export.targets.executorch.target import TARGET
from phi3mobile.export.tower_check import compare_tower
from phi3mobile.export.tower_pictures import measured_views
from phi3mobile.manifest import MANIFEST
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.vision_config import PREFIX
from phi3mobile.session.session import Session
from phi3mobile.text.vocabularies import load_tokenizer

CONTEXT = 2048  # two pictures of 757 tokens, past the switch at 1024
RECIPES = ["android-cpu", pytest.param("host", marks=pytest.mark.skipif(native_library() is None, reason="make native"))]
TOKENS = np.arange(5, 15)


A, B = drawn(1), drawn(2, 30, 50)


@pytest.fixture(scope="module")
def folder(checkpoint_of):
    return checkpoint_of("vision-tiny")


@pytest.fixture(scope="module")
def seeing(once, folder):
    """Recipe -> its bundle."""

    def get(recipe: str):
        made = once(f"seeing-{recipe}", lambda out: export(folder, out, recipe, CONTEXT, method="rtn"))
        return open_bundle(made)

    return get


@pytest.fixture(scope="module")
def packed(folder):
    return PackedVision(open_checkpoint(folder))


@pytest.fixture(scope="module")
def reference(packed):
    return load_packed_vision(packed)


def eager(folder, recipe: str = "android-cpu") -> EagerEngine:
    return EagerEngine(load_packed(PackedModel(open_checkpoint(folder), find_recipe(recipe)), CONTEXT), 128)


@pytest.mark.parametrize("recipe", [pytest.param("android-cpu", marks=pytest.mark.slow), RECIPES[1]])
def test_a_tower_is_torchs_with_the_same_integers(seeing, reference, recipe):
    bundle = seeing(recipe)
    tower, views = open_tower(bundle), measured_views()
    for view in views:
        expected = reference.encode(view[None])[0].numpy()
        noise = np.square(tower.encode(view.numpy()) - expected).sum(-1) / np.square(expected).sum(-1)
        assert np.quantile(noise, 0.75) < 1e-9 and noise.max() < 1e-3  # a few values lie at an edge between two integers
    rows = np.random.default_rng(0).standard_normal((300, 128)).astype(np.float32)
    expected = reference.project(torch.from_numpy(rows)).numpy()
    assert psnr(expected, tower.project(rows)) > 100 and tower.project(rows[:1]).shape == (1, 64)
    np.testing.assert_array_equal(tower.project(rows)[:128], tower.project(rows[:128]))
    assert tower.project(rows[:0]).shape == (0, 64)
    for own, wanted in zip(tower.separators, reference.separators, strict=True):
        np.testing.assert_array_equal(own, wanted.numpy())
    assert (tower.num_crops, tower.hidden) == (4, 64) and tower.name == open_tower(bundle).name
    tower.close()
    tower.close()
    with pytest.raises(InputError, match="the tower is closed"):
        tower.encode(views[0].numpy())


def test_a_tower_is_one_delegate_a_layer(seeing, packed):
    bundle = seeing("android-cpu")
    encode, project = (Pte(bundle.folder / "vision.pte", method) for method in ("encode", "project"))
    assert len(encode.calls()) == packed.config.layers + 1 and len(project.calls()) == 1
    kernels = [encode.plan.operators[call.op_index].name for call in encode.instructions if hasattr(call, "op_index")]
    assert sorted(kernels) == ["aten::slice_copy", "aten::view_copy"] and tower_difference(bundle, packed) == ""


def test_a_tower_of_another_checkpoint_is_found_out(seeing, packed, folder):
    other, bundle = PackedVision(open_checkpoint(folder)), seeing("android-cpu")
    vector = packed.vector
    for name, said in (
        ("encoder.layers.1.mlp.fc2.bias", "fc2 of clip_layer 1 holds other integers, scales or biases than its source"),
        ("encoder.layers.0.layer_norm2.weight", "clip_layer 0 has other norms or positions than its source"),
        ("embeddings.patch_embedding.weight", "patch of patches holds other integers, scales or biases than its source"),
        ("glb_GN", "the separators are others than its source's"),
    ):
        other.vector = lambda asked, name=name: vector(asked) * (1.01 if asked.endswith(name) else 1)
        assert tower_difference(bundle, other) == said
        (check,) = TARGET.tower_checks(bundle, packed)
        assert not compare_tower(check, said).passed
    flipped = PackedVision(open_checkpoint(folder))
    flipped.vector = lambda asked: vector(asked).flip(0) if asked.endswith("layers.0.layer_norm1.bias") else vector(asked)
    (wrong,), (right,) = (TARGET.tower_checks(bundle, held) for held in (flipped, packed))
    assert not compare_tower(wrong, "").passed and compare_tower(right, "").passed


@pytest.mark.parametrize("recipe", RECIPES)
def test_rows_of_tokens_are_tokens_to_the_bit(seeing, folder, recipe):
    engine, info = open_engine(seeing(recipe)), seeing(recipe).info
    assert info.hidden == 64 and info.max_context == CONTEXT
    rows = engine.embed(TOKENS)
    np.testing.assert_array_equal(rows, eager(folder, recipe).embed(TOKENS))
    expected = engine.forward(TOKENS, 0)
    np.testing.assert_array_equal(engine.forward_embeddings(rows, 0), expected)
    parts = [engine.forward_embeddings(rows[:4], 0), engine.forward(TOKENS[4:5], 4), engine.forward_embeddings(rows[5:], 5)]
    assert psnr(expected, np.concatenate(parts)) > 45  # an int8 cache rounds what chunks share
    for position, long in ((1020, True), (1500, False)):  # past the switch, and before it as if past
        np.testing.assert_array_equal(
            engine.forward_embeddings(rows, position, long), engine.forward(TOKENS, position, long), strict=True
        )
    for wrong in (rows[0], rows[None], rows[:, :63]):
        with pytest.raises(InputError, match=r"embeddings of shape .* were given: they are \[T, hidden\], here \[T, 64\]"):
            engine.forward_embeddings(wrong, 0)
    with pytest.raises(InputError, match=r"200 tokens were given: 1\.\.128 fit one forward"):
        engine.forward_embeddings(np.zeros((200, 64), np.float32), 0)
    with pytest.raises(InputError, match=r"the vocabulary has 304"):
        engine.embed(np.array([304]))
    engine.close()
    with pytest.raises(InputError, match="the engine is closed"):
        engine.forward_embeddings(rows, 0)


def test_rows_give_what_torch_computes(seeing, folder):
    engine, torchs = open_engine(seeing("android-cpu")), eager(folder)
    rows = np.random.default_rng(3).standard_normal((100, 64)).astype(np.float32)
    for position in range(0, 1100, 100):  # past the switch: all have the long factors
        expected, found = (other.forward_embeddings(rows, position, True) for other in (torchs, engine))
        assert psnr(expected, found) > 35  # fewer than one in a hundred values lies at an edge between two integers
    assert psnr(torchs.forward(TOKENS, 1100), engine.forward(TOKENS, 1100)) > 35
    engine.close()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_session_answers_about_pictures_as_torch_does(seeing, folder, reference, recipe):
    """Every token is torch's best one, but for what int8 rounds the other way; logits of a random model reach 4."""
    bundle, model = seeing(recipe), eager(folder, recipe).model
    asked = [
        ([say(A, "what is this?")], 1),
        ([say(A, "the cat ", B, "sat on")], 1),
        ([say(A, B, "hello there")], 4),  # past the switch
        ([{"role": "user", "content": "the cat sat"}], 4),
    ]
    lengths = []
    for messages, num_crops in asked:
        with Session(bundle, num_crops=num_crops) as session:
            list(session.generate(messages, max_tokens=6, repetition=True))
            length, rows = session.statistics.prompt_tokens, session._rows.tokens
            assert (session.pictures.views == 0) == isinstance(messages[0]["content"], str)
        with Session(bundle, EagerEngine(model), tower=EagerTower(reference, 4), num_crops=num_crops) as session:
            list(session.generate(messages, max_tokens=1, repetition=True))
            assert session._rows.tokens[:length] == rows[:length] and len(rows) > length
            logits = EagerEngine(model).forward(np.array(rows[length - 1 : -1]), length - 1)
        chosen = logits[np.arange(len(logits)), rows[length:]]
        assert (logits.max(1) - chosen).max() < 0.5 and np.median(logits.max(1) - chosen) < 0.05
        lengths.append(length)
    assert lengths[2] > 1024 > lengths[1] > lengths[0] > 300 > lengths[3]


def test_a_second_question_costs_no_encoder(seeing):
    with Session(seeing("android-cpu"), num_crops=1) as session:
        said = "".join(session.generate([say(A, "what is this?")], max_tokens=4, repetition=True))
        views, filled = session.pictures.views, session.statistics.prompt_tokens
        again = [say(A, "what is this?"), {"role": "assistant", "content": said}, {"role": "user", "content": "and why?"}]
        list(session.generate(again, max_tokens=4, repetition=True))
        assert session.pictures.views == views == 2 and session.statistics.reused_tokens >= filled - 1


def test_what_does_not_fit_is_refused_with_the_crops_that_would(seeing, tiny_bundle):
    with Session(seeing("android-cpu"), num_crops=16) as session:
        session.generate([say(A, "what is this?")])
        with pytest.raises(InputError, match=r"of pictures, num_crops 8 would fit"):
            session.generate([say(A, B, "what are these?")])
    with Session(tiny_bundle) as session, pytest.raises(InputError, match="a picture was given, and this model reads text"):
        session.generate([say(A, "what is this?")])
    with pytest.raises(InputError, match="sees no pictures: give one of a model_type with a vision tower"):
        open_tower(open_bundle(tiny_bundle))


def test_towers_refuse_other_shapes(seeing):
    tower = open_tower(seeing("android-cpu"))
    with pytest.raises(InputError, match=r"a view of shape \[3, 335, 336\] was given: it is \[3, 336, 336\]"):
        tower.encode(np.zeros((3, 335, 336), np.float32))
    with pytest.raises(InputError, match=r"rows of shape \[2, 64\] were given: they are \[T, 128\]"):
        tower.project(np.zeros((2, 64), np.float32))


@pytest.mark.skipif(native_library() is None, reason="make native")
def test_the_runner_names_what_a_program_lacks(seeing, tiny_bundle):
    bundle, given = seeing("host"), np.zeros((2, 128), np.float32)
    program = NativeProgram(bundle.program, None)
    with pytest.raises(RuntimeError, match="the program has no method project"):
        program.compute("project", given, (2, 64))
    assert program.packed_cache == "none"
    program.close()
    tower = NativeProgram(bundle.folder / "vision.pte", None)
    assert tower.packed_cache == "heap: no cache file was given"
    assert tower.compute("project", given, (2, 64)).shape == (2, 64)
    with pytest.raises(RuntimeError, match="project"):
        tower.compute("project", given[:, :64].copy(), (2, 64))
    with pytest.raises(RuntimeError, match="project gave 128 values, not 64"):
        tower.compute("project", given, (1, 64))
    tower.close()
    tower.close()


def changed(bundle, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(bundle.folder, copy)
    manifest = json.loads((copy / MANIFEST).read_text())
    change(manifest)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["vision"].update(program="other.pte"), r"vision names other\.pte, no file of the bundle"),
        (lambda m: m["vision"].pop("separators"), "vision lacks separators"),
        (lambda m: m["vision"].update(rows=0), r"vision\.rows can't be 0"),
        (lambda m: m["vision"].update(hidden=65), r"vision\.hidden is 65, model\.hidden 64"),
        (lambda m: m.update(vision=[1]), "vision lacks program"),
        (lambda m: m["vision"].update(program="../vision.pte"), r"vision\.program can't be"),
    ],
)
def test_a_damaged_section_is_told(seeing, tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        open_bundle(changed(seeing("android-cpu"), tmp_path, change))


def test_separators_of_another_size_are_told(seeing, tmp_path):
    bundle = open_bundle(changed(seeing("android-cpu"), tmp_path, lambda m: m["vision"].update(width=16)))
    with pytest.raises(InputError, match=r"separators.bin has 256 values, 128 were expected"):
        open_tower(bundle)


def test_the_manifest_counts_the_tower(seeing, folder, packed):
    bundle = seeing("android-cpu")
    files = bundle.manifest["files"]
    tower = files["vision.pte"]["bytes"] + files["separators.bin"]["bytes"]
    assert bundle.program_bytes == bundle.manifest["memory"]["weights"] == files["model.pte"]["bytes"] + tower
    decoder = open_checkpoint(folder).config.parameters()
    assert bundle.manifest["model"]["bits_per_weight"] == round(files["model.pte"]["bytes"] * 8 / decoder, 3)
    assert bundle.vision["bits"] == 8 and "4 crops of a picture" in bundle_card(bundle)["pictures"]
    with_tower = plan_export(folder, "never", "host", method="rtn").space
    recipe = find_recipe("host")
    without = packed_bytes(open_checkpoint(folder).config, recipe)
    assert with_tower == 2 * (without + packed.nbytes()) + (64 << 20)
    assert files["vision.pte"]["bytes"] > packed.nbytes()


def test_text_only_bundles_have_one_method(tiny_bundle):
    names = {plan.name for plan in Pte(tiny_bundle / "model.pte").program.execution_plan}
    assert "forward" in names and not {"token_embedding", "text_decoder"} & names
    with pytest.raises(InputError, match=r"model\.pte has no method text_decoder"):
        Pte(tiny_bundle / "model.pte", "text_decoder")


@pytest.mark.slow
def test_four_bits_on_request_and_a_card(folder, tmp_path, text):
    from PIL import Image

    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(text, own / "words.txt")
    Image.fromarray(drawn(5, 300, 200)).save(own / "photo.png")
    out = export(folder, tmp_path / "out", "android-cpu", 512, calibration=own, vision_bits=4, accept_quality=True)
    bundle = open_bundle(out)
    card = bundle.manifest["quality"]["vision"]
    assert bundle.vision["bits"] == card["bits"] == 4 and 5 < card["features_db"] < 30 and len(card["layers_db"]) == 2
    assert "pictures: features" in bundle_card(bundle)["quality"]
    four = PackedVision(open_checkpoint(folder), 4)
    (check,) = TARGET.tower_checks(bundle, four)
    result = compare_tower(check, tower_difference(bundle, four))
    assert result.passed, result.document()


def test_bits_of_a_tower_are_checked(folder, tiny_checkpoint_folder):
    with pytest.raises(InputError, match="vision bits 5: a tower takes 4 or 8"):
        plan_export(folder, "never", vision_bits=5)
    with pytest.raises(InputError, match="this model sees no pictures: leave out --vision-bits"):
        plan_export(tiny_checkpoint_folder, "never", vision_bits=8)
    assert plan_export(folder, "never", vision_bits=4).recipe.vision_bits == 4


def test_a_calibration_folder_is_texts_and_pictures(folder, tiny_checkpoint_folder, text, tmp_path):
    tokenizer, config = load_tokenizer(folder), open_checkpoint(folder).config
    with pytest.raises(InputError, match="is empty; put texts"):
        calibration_of(tokenizer, config, tmp_path)
    words = text.read_text()
    (tmp_path / "a.txt").write_text(words[: len(words) // 2])
    (tmp_path / "b.md").write_text(words[len(words) // 2 :])
    first = calibration_of(tokenizer, config, tmp_path)
    assert first.name == str(tmp_path) and first.pictures == () and first.tokens.numel() > 2048
    from PIL import Image

    Image.fromarray(A).save(tmp_path / "c.png")
    second = calibration_of(tokenizer, config, tmp_path)
    assert second.pictures == (tmp_path / "c.png",) and second.sha256 != first.sha256
    assert measured_views(second.pictures).shape == (2, 3, 336, 336)
    plain = open_checkpoint(tiny_checkpoint_folder).config
    with pytest.raises(InputError, match=r"has c\.png, and this model sees no pictures"):
        calibration_of(tokenizer, plain, tmp_path)
    (tmp_path / "d.bin").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"d\.bin"):
        calibration_of(tokenizer, config, tmp_path)


def test_names_of_the_tower_are_not_the_decoders(packed):
    assert all(name.startswith(PREFIX) for name in packed.names())
