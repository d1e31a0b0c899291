"""The recipe ios-coreai: programs in Core AI's own runtime against torch, the file, and what its process does when it dies."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exported import VOCAB, psnr
from tiny import random_tokens, tiny

pytest.importorskip("coreai", reason="Core AI is not installed: pip install 'phi3mobile[coreai]'")

from phi3mobile.bundle import open_bundle
from phi3mobile.engines import coreai
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.export.build import export
from phi3mobile.export.integers import first_difference
from phi3mobile.export.packed import EMBEDDING, HEAD, PackedModel
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.targets.coreai import decoder, door, package
from phi3mobile.export.targets.coreai.matrices import signed_nibbles
from phi3mobile.export.targets.coreai.read import AimodelIntegers
from phi3mobile.export.targets.coreai.reference import Twin, reference_model
from phi3mobile.export.targets.coreai.write import to_coreai, write_program
from phi3mobile.info import EngineInfo
from phi3mobile.manifest import MANIFEST
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.form import Form
from phi3mobile.session.session import Session

TINY = ("tiny-mha", "tiny-tied", "tiny-partial", "tiny-window", "tiny-longrope")


@pytest.fixture
def read_back(bundle_of):
    """Name of a tiny preset -> its bundle, and the integers that its program holds."""

    def get(name, recipe="ios-coreai"):
        bundle = open_bundle(bundle_of(name, recipe))
        return bundle, PackedModel(AimodelIntegers(bundle, tiny(name, vocab_size=VOCAB)), find_recipe(recipe))

    return get


# What it computes


@pytest.mark.parametrize("name", TINY)
def test_in_float32_a_program_says_what_torch_says(name, read_back, monkeypatch):
    """Prefill, decode, going back, a cache that grows, both sides of LongRoPE's switch: within 1e-4."""
    monkeypatch.setattr(coreai, "ROWS", 8)
    bundle, packed = read_back(name)
    model, engine = reference_model(packed, 256), Twin(bundle, packed)
    tokens, original = random_tokens(tiny(name), 256), bundle.info.original_context
    steps = [(0, 7, False), (7, 8, False), (8, 9, False), (9, 30, False), (12, 20, False), (20, 21, False)]
    if original is None:
        steps += [(21, 100, False), (100, 101, False)]
    else:
        steps += [(30, original, False), (original, original + 1, False)]  # the mix that a session avoids, as torch has it
        steps += [(start, start + 50, True) for start in (0, 50)] + [(100, 101, True)]
    for start, end, long in steps:
        model.filled = max(model.filled, start)
        expected = model(tokens[:, start:end], start, long)[0].numpy()
        error = np.abs(expected - engine.forward(tokens[0, start:end].numpy(), start, long)).max()
        assert error <= 1e-4 * max(1.0, np.abs(expected).max()), (start, end, error)
    engine.close()


def test_a_session_crosses_the_switch_as_torch_does(read_back):
    from phi3mobile.engines.eager import EagerEngine

    bundle, packed = read_back("tiny-longrope")
    assert list(bundle.manifest["runtime"]["functions"].items()) == [("main", 32), ("main_long", 256)]
    messages = [{"role": "user", "content": "hello"}]
    texts = []
    for engine in (Twin(bundle, packed), EagerEngine(reference_model(packed, 256), bundle.info.max_chunk)):
        texts.append("".join(Session(bundle, engine=engine).generate(messages, max_tokens=24)))
        engine.close()
    assert texts[0] == texts[1] and len(texts[0]) > 8


def test_the_float16_program_is_near(read_back):
    bundle, packed = read_back("tiny-gqa")
    model, engine = reference_model(packed, 256), open_engine(bundle)
    tokens = random_tokens(tiny("tiny-gqa"), 40)
    assert engine.load_s > 0 and engine.info.max_chunk == 128
    for start, end in ((0, 24), (24, 25), (25, 40)):
        logits = engine.forward(tokens[0, start:end].numpy(), start)
        assert logits.dtype == np.float32 and psnr(model(tokens[:, start:end], start)[0].numpy(), logits) >= 40
    engine.close()
    with pytest.raises(InputError, match="the engine is closed"):
        engine.forward(np.array([1]), 0)


def test_every_form_of_a_matrix(checkpoint_of, tmp_path):
    """8-bit down, offsets, groups of 64 (one and two to a row), a table and a head in 4 bits: read back, multiplied by."""
    recipe = find_recipe("ios-coreai-down8")
    qkv, gate_up, down = (f"model.layers.{at}" for at in ("1.self_attn.qkv_proj", "0.mlp.gate_up_proj", "0.mlp.down_proj"))
    names = [f"{qkv}.weight", f"{gate_up}.weight", f"{down}.weight", EMBEDDING, HEAD]
    chosen = (Form(4, 64), Form(4, 32, True), Form(4, 64, True), Form(4, 32, True), Form(4, 32))
    forms = dict(zip(names, chosen, strict=True))
    packed = PackedModel(open_checkpoint(checkpoint_of("tiny-gqa")), recipe, forms)
    assert packed.form_of("model.layers.1.mlp.down_proj.weight") == Form(8, 128)
    runtime = to_coreai(packed, tmp_path, 64, 16).runtime
    bundle = SimpleNamespace(program=tmp_path / "model.aimodel", manifest={"runtime": runtime})
    held = AimodelIntegers(bundle, packed.config)
    assert {name: held.form_of(name) for name in names} == forms and first_difference(held, packed) == ""
    write_program(PackedModel(held, recipe), tmp_path / "twin.aimodel", 64, "float32")
    info = EngineInfo(vocab=VOCAB, max_context=64, max_chunk=16, original_context=None)
    engine = coreai.CoreaiEngine(tmp_path / "twin.aimodel", info, runtime, 1)
    tokens = random_tokens(packed.config, 16)
    expected = reference_model(PackedModel(held, recipe), 64)(tokens)[0].numpy()
    assert np.abs(expected - engine.forward(tokens[0].numpy(), 0)).max() <= 1e-4 * np.abs(expected).max()
    engine.close()


# The file


def packed_codes(packed):
    """A matrix's bytes as a program holds them."""
    codes = packed.codes.numpy()
    return signed_nibbles(codes) if packed.bits == 4 else codes


@pytest.mark.parametrize("name", ["tiny-gqa", "tiny-tied"])
def test_the_bytes_of_every_packed_matrix_are_in_the_program(name, bundle_of, checkpoint_of):
    bundle = open_bundle(bundle_of(name, "ios-coreai"))
    data = (bundle.program / "main.mlirb").read_bytes()
    wanted = PackedModel(open_checkpoint(checkpoint_of(name)), find_recipe("ios-coreai"))
    rows = decoder.part_rows(wanted.config)
    for tensor in (*wanted.checkpoint.names(), HEAD):
        if wanted.form_of(tensor) is None:
            assert wanted.vector(tensor).half().numpy().tobytes() in data
            continue
        codes = packed_codes(wanted.matrix(tensor))
        for part in rows.values() if "qkv_proj" in tensor else [slice(None)]:
            assert codes[part].tobytes() in data, tensor


def test_hash_names_and_types_are_those_that_apples_loader_sees(bundle_of):
    from coreai.authoring import AIModelAsset

    bundle = open_bundle(bundle_of("tiny-longrope", "ios-coreai"))
    data = (bundle.program / "main.mlirb").read_bytes()
    assert (bundle.program / "main.hash").read_bytes() == hashlib.sha256(data).digest()
    assert AIModelAsset.is_valid(bundle.program)
    told = AIModelAsset.load(bundle.program).summary(include_statistics=True)
    assert sorted(told.function_names) == ["main", "main_long"]
    for function in told.function_names:
        assert [name for name, *_ in told.function_inputs(function)] == ["input_ids", "position_ids"]
        assert [name for name, *_ in told.function_states(function)] == ["keyCache", "valueCache"]
        assert [name for name, *_ in told.function_outputs(function)] == ["logits"]
    storage = str(told.storage_types)
    assert "Int4" in storage and "Int8" in storage and "Int64" not in storage.replace("('UInt64', 1)", "")  # of a shape
    assert "coreai.blockwise_shift_scale" in bundle.manifest["runtime"]["operators"]


def test_both_functions_share_the_weights_and_bytes_are_the_same_again(bundle_of, checkpoint_of, tmp_path):
    long, plain = (open_bundle(bundle_of(name, "ios-coreai")) for name in ("tiny-longrope", "tiny-mha"))
    sizes = [(bundle.program / "main.mlirb").stat().st_size for bundle in (long, plain)]
    held, names = AimodelIntegers(plain, tiny("tiny-mha", vocab_size=VOCAB)), tiny("tiny-mha").tensors()
    assert sizes[0] - sizes[1] < sum(held.tensor(name).nbytes for name in names if "proj" in name) / 2
    again = export(checkpoint_of("tiny-longrope"), tmp_path / "again", "ios-coreai", method="rtn")
    for file in ("main.mlirb", "main.hash", "metadata.json"):
        assert (again / "model.aimodel" / file).read_bytes() == (long.program / file).read_bytes()
    assert not list(again.glob(".*"))


def test_a_changed_integer_is_found(bundle_of, checkpoint_of, tmp_path):
    copy = shutil.copytree(bundle_of("tiny-gqa", "ios-coreai"), tmp_path / "copy")
    bundle = open_bundle(copy)
    wanted = PackedModel(open_checkpoint(checkpoint_of("tiny-gqa")), find_recipe("ios-coreai"))
    assert first_difference(AimodelIntegers(bundle, wanted.config), wanted) == ""
    path, name = copy / "model.aimodel" / "main.mlirb", "model.layers.1.mlp.down_proj.weight"
    data = path.read_bytes()
    codes = packed_codes(wanted.matrix(name))
    at = data.index(codes.tobytes())
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    found = AimodelIntegers(bundle, wanted.config)
    assert first_difference(found, wanted) == f"{name} holds other integers than its source, first in row 0 (1 rows)"


@pytest.mark.parametrize("damage", [b"", b"ML\xefR", b"other", b"ML\xefR\x0dX\x00\x0c\x03\x07\x00"])
def test_a_file_that_is_no_bytecode_is_named(damage, bundle_of, tmp_path):
    copy = shutil.copytree(bundle_of("tiny-gqa", "ios-coreai"), tmp_path / "copy")
    bundle = open_bundle(copy)
    (copy / "model.aimodel" / "main.mlirb").write_bytes(damage)
    with pytest.raises(InputError, match=r"is no MLIR bytecode|lacks model"):
        AimodelIntegers(bundle, tiny("tiny-gqa", vocab_size=VOCAB))


# What Apple's engine reads


def test_the_folder_is_one_that_apples_engine_opens(bundle_of):
    folder = bundle_of("tiny-longrope", "ios-coreai")
    about = json.loads((folder / "metadata.json").read_text())
    assert (about["metadata_version"], about["kind"], about["assets"]) == ("0.2", "llm", {"main": "model.aimodel"})
    language = about["language"]
    assert language["max_context_length"] == 32  # short factors are exact up to the original context, and only there
    assert language["vocab_size"] == 304 and language["embedded_tokenizer"] and language["function_map"] == {"main": ["main"]}
    assert (folder / "tokenizer" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    told, manifest = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text()), open_bundle(folder).manifest
    assert told["additional_special_tokens"] == ["<|im_end|>", "<|endoftext|>"] and manifest["tokens"]["eos"] == [2, 0]
    assert told["eos_token"] in told["additional_special_tokens"] and told["eot_token"] != told["eos_token"]
    assert told["chat_template"] == manifest["chat"]["template"]
    assert {"metadata.json", "tokenizer/tokenizer.json", "model.aimodel/main.mlirb"} <= {*manifest["files"]}


def test_phis_end_of_turn_is_a_stop_there(tmp_path):
    """The released tokenizer_config.json names eos_token <|endoftext|> and lists no additional special tokens."""
    words = {"<|endoftext|>": 5, "<|end|>": 7, "<|user|>": 8}
    added = [{"id": number, "content": text, "special": True} for text, number in words.items()]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": added}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}, "bos_token": "<s>"}))
    told = package.tokenizer_config(tmp_path, [5, 7], "a template")
    assert told["eot_token"] == "<|end|>" and told["additional_special_tokens"] == ["<|endoftext|>", "<|end|>"]
    assert (told["eos_token"], told["bos_token"], told["chat_template"]) == ("<|endoftext|>", "<s>", "a template")
    assert "chat_template" not in package.tokenizer_config(tmp_path, [5], None)


def test_a_tokenizer_that_the_engine_cannot_read_is_refused(checkpoint_of, tmp_path, monkeypatch):
    import phi3mobile.export.build as build

    monkeypatch.setattr(build, "TOKENIZER_FILES", ("tokenizer_config.json",))
    with pytest.raises(InputError, match=r"Core AI's language engine reads tokenizer\.json only"):
        export(checkpoint_of("tiny-gqa"), tmp_path / "out", "ios-coreai", method="rtn")
    assert not list(tmp_path.iterdir())


# What is refused while a program is written


def written(body, inputs=2):
    program = door.Program()
    given = {f"in_{number}": ((1, None), "int32") for number in range(inputs)}
    states = dict.fromkeys(("k", "v"), ((1, None, 4), "float16"))
    with program.writing():
        program.function("main", given, states, body)


def test_more_inputs_than_apples_engine_takes_are_refused():
    with pytest.raises(InputError, match="function main: 3 inputs, 2 states; Core AI's engine takes 2 and 2"):
        written(lambda *values: {}, inputs=3)


def test_slices_at_computed_places_are_refused():
    def body(tokens, places, k, v):
        start = door.reshape(door.cast(tokens, "int32"), (None,))
        return {"k": door.between(k, [0, start, 0], [1, door.size(k, 1), 4], (1, None, 4)), "v": v}

    with pytest.raises(InputError, match="take places from sizes only, not from values"):
        written(body)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [((0, 4), "float16", r"shape \[0, 4\].*sizes of 0"), ((1, 4), "int64", "of int64: Core AI's programs have float16,")],
)
def test_what_devices_cannot_hold_is_refused(shape, dtype, message):
    with pytest.raises(InputError, match=message):
        written(lambda *values: {"k": door.zeros(shape, dtype), "v": values[3]})


def test_scales_of_other_blocks_are_refused_by_the_matrix(checkpoint_of, tmp_path):
    wide = PackedModel(open_checkpoint(checkpoint_of("tiny-gqa")), replace(find_recipe("ios-coreai"), group=16))
    with pytest.raises(InputError, match=r"qkv_proj.* has a scale for 16 of 64 columns; Core AI takes multiples of 32"):
        write_program(wide, tmp_path / "model.aimodel", 64)
    assert not list(tmp_path.iterdir())


# Its process


@pytest.fixture
def small(bundle_of):
    return open_bundle(bundle_of("tiny-gqa", "ios-coreai"))


def test_a_runtime_that_ends_is_an_error_with_its_name_and_not_our_end(small, tmp_path, monkeypatch):
    """And what it compiled, as large as the weights, goes with it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    engine = open_engine(small)
    assert list(tmp_path.glob("*/*.aimodelx"))
    os.kill(engine._child.pid, signal.SIGABRT)
    with pytest.raises(InputError, match=r"Core AI's runtime ended by SIGABRT .*while it was to run .*model\.aimodel"):
        engine.forward(np.array([1, 2]), 0)
    engine.close()
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_takes_too_long_is_ended(small, monkeypatch):
    engine = open_engine(small)
    os.kill(engine._child.pid, signal.SIGSTOP)
    monkeypatch.setattr(coreai, "WEIGHTS_PER_S", 1e12)
    engine._least = 0.2
    with pytest.raises(InputError, match="took more than 0 s to run"):
        engine.forward(np.array([1, 2]), 0)
    engine.close()
    assert engine._child.returncode == -signal.SIGKILL


def test_a_program_that_it_cannot_load_is_named(small, tmp_path):
    copy = shutil.copytree(small.folder, tmp_path / "copy")
    data = (copy / "model.aimodel" / "main.mlirb").read_bytes()
    (copy / "model.aimodel" / "main.mlirb").write_bytes(data[: len(data) // 2])
    bundle = open_bundle(small.folder)
    with pytest.raises(InputError, match=r"Core AI's runtime (can't load|ended)"):
        coreai.CoreaiEngine(copy / "model.aimodel", bundle.info, bundle.manifest["runtime"], 1)


def test_other_bundles_and_versions_are_refused(small, monkeypatch):
    with pytest.raises(InputError, match="runtime lacks functions, cache; export with the recipe ios-coreai"):
        coreai.CoreaiEngine(small.program, small.info, {}, 1)
    monkeypatch.setattr(coreai, "version", lambda package: "1.0.0b4")
    with pytest.raises(InputError, match=r"made by coreai-core 1\.0\.0b3, installed is 1\.0\.0b4: pip install coreai-core=="):
        open_engine(small)
    monkeypatch.setattr(coreai.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="the engine coreai needs coreai-core: pip install"):
        open_engine(small)


def test_a_session_answers(small, tmp_path, capsys):
    from phi3mobile.cli import main

    assert main(["run", str(small.folder), "hello", "--max-tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"]
    assert json.loads((small.folder / MANIFEST).read_text())["engine"] == "coreai"
    assert main(["inspect", str(small.folder)]) == 0
    assert "Core AI 1.0.0b3" in capsys.readouterr().out


# The demo model


@pytest.mark.slow
def test_the_demo_models_golden_text_is_the_ptes(demo_checkpoint, demo_bundle, tmp_path):
    """First 16 tokens of three answers, in float16 as the program is: minutes each in a runtime that is made for checking."""
    from test_parity_ladder import GOLDEN, REPEAT

    from phi3mobile.session.sampling import GREEDY

    bundle = open_bundle(export(demo_checkpoint, tmp_path / "bundle", "ios-coreai", 256, method="rtn"))
    pte = open_bundle(demo_bundle)
    ours, theirs = open_engine(bundle), open_engine(pte)
    for sentence in GOLDEN:
        prompt = [{"role": "user", "content": REPEAT + sentence}]
        expected, found = (
            "".join(Session(holds, engine=engine).generate(prompt, max_tokens=16, sampling=GREEDY))
            for holds, engine in ((pte, theirs), (bundle, ours))
        )
        assert found == expected and sentence.startswith(expected)


@pytest.mark.slow
def test_the_demo_models_float32_twin_is_torch(demo_checkpoint, tmp_path):
    bundle = open_bundle(export(demo_checkpoint, tmp_path / "bundle", "ios-coreai", 512, method="rtn"))
    config = open_checkpoint(demo_checkpoint).config
    packed = PackedModel(AimodelIntegers(bundle, config), find_recipe("ios-coreai"))
    model, engine = reference_model(packed, 512), Twin(bundle, packed)
    tokens = torch.tensor([bundle.tokenizer.encode("The KV cache holds the keys and values of all tokens that came before.")])
    for start, end in ((0, tokens.shape[1] - 2), (tokens.shape[1] - 2, tokens.shape[1] - 1)):
        expected = model(tokens[:, start:end], start)[0].numpy()
        assert np.abs(expected - engine.forward(tokens[0, start:end].numpy(), start)).max() <= 1e-4 * np.abs(expected).max()
