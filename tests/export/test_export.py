"""Export: what the runners read is in the program, bounds hold, and whatever is refused or killed leaves nothing behind."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from exported import VOCAB, talking_checkpoint, write_tokenizer
from safetensors.torch import load_file, save_file
from tiny import tiny

import phi3mobile
from phi3mobile.bundle import open_bundle
from phi3mobile.errors import InputError
from phi3mobile.export.build import export
from phi3mobile.export.plan import stop_ids
from phi3mobile.export.recipe import DEFAULT_RECIPE, find_recipe, recipes
from phi3mobile.export.targets.executorch.write import TraceSpec
from phi3mobile.files import whole_file
from phi3mobile.models.checkpoint import open_checkpoint


@pytest.fixture
def checkpoint(tiny_checkpoint_folder, tmp_path):
    """A checkpoint of one's own to damage, alone in its folder."""
    return shutil.copytree(tiny_checkpoint_folder, tmp_path / "in" / "checkpoint")


def refusal(source, out, **options):
    """The one line that export refuses with; nothing may be left where the bundle would be."""
    before = sorted(out.parent.glob("*"))
    with pytest.raises(InputError) as error:
        export(source, out, method="rtn", **options)
    assert sorted(out.parent.glob("*")) == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def program(tiny_bundle):
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
    from executorch.extension.pybindings import portable_lib
    from executorch.kernels import quantized  # noqa: F401

    return portable_lib._load_for_executorch(str(tiny_bundle / "model.pte"))


def test_the_runners_metadata_is_in_the_program(program):
    expected = {
        "get_max_seq_len": [128],
        "get_max_context_len": [256],
        "get_bos_id": [1],
        "get_eos_ids": [2, 0],
        "get_vocab_size": [VOCAB],
        "use_kv_cache": [True],
        "use_sdpa_with_kv_cache": [True],
        "enable_dynamic_shape": [True],
    }
    assert {name: list(program.run_method(name, ())) for name in expected} == expected


@pytest.mark.parametrize("length", [1, 2, 127, 128])
def test_any_length_up_to_the_chunk_runs(program, length):
    (logits,) = program.forward((torch.zeros(1, length, dtype=torch.int64), torch.tensor([256 - length])))
    assert logits.shape == (1, length, VOCAB) and logits.isfinite().all()


def test_more_than_the_chunk_is_refused_and_the_program_still_works(program):
    with pytest.raises(RuntimeError):
        program.forward((torch.zeros(1, 129, dtype=torch.int64), torch.tensor([0])))
    assert program.forward((torch.zeros(1, 1, dtype=torch.int64), torch.tensor([0])))[0].isfinite().all()


def test_trace_spec_examples_lie_within_its_bounds():
    for context, chunk in ((256, 128), (1, 1), (2, 2)):
        spec = TraceSpec(context, chunk)
        tokens, position = spec.example
        assert tokens.dtype == position.dtype == torch.int64 and tokens.shape[1] <= chunk and position.shape == (1,)


def test_the_bundle_says_what_is_in_it(tiny_bundle, tiny_checkpoint_folder):
    manifest = open_bundle(tiny_bundle).manifest
    config = open_checkpoint(tiny_checkpoint_folder).config
    program = (tiny_bundle / "model.pte").stat().st_size
    assert manifest["model"]["parameters"] == config.parameters()
    assert manifest["model"]["bits_per_weight"] == pytest.approx(program * 8 / config.parameters(), abs=1e-3)
    assert manifest["recipe"] == vars(find_recipe(DEFAULT_RECIPE)) | {"method": "rtn", "needs": []}
    assert manifest["provenance"]["source_hash"] == open_checkpoint(tiny_checkpoint_folder).source_hash()
    memory = manifest["memory"]
    assert memory["kv_per_token"] == 2 * 2 * 2 * 16 * 4  # k and v, layers, kv heads, head_dim, float32
    assert memory["peak"]["256"] == program + memory["kv_per_token"] * 256 + memory["activations"]
    assert memory["activations"] >= 128 * VOCAB * 4  # the logits of one chunk at least
    assert manifest["chat"]["segments"]["generation"] == "<|im_start|>assistant\n"


def test_what_cannot_be_exported_is_named(checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "out" / "bundle"
    assert f"recipe 'fast' is not known; take one of: {', '.join(recipes())}" in refusal(checkpoint, out, recipe="fast")
    assert "context 0: this model takes 1 to 256" in refusal(checkpoint, out, context=0)
    assert "context 257: this model takes 1 to 256" in refusal(checkpoint, out, context=257)
    assert "context 2.5" in refusal(checkpoint, out, context=2.5)
    assert "does not exist; give a file, a folder, or a hub id" in refusal(tmp_path / "nothing", out)
    assert "has no config.json" in refusal(tmp_path, out)
    assert "model.safetensors is not a GGUF file" in refusal(checkpoint / "model.safetensors", out)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
        assert "needs 0.1 GB, the disk has 0.0 GB free; make room" in refusal(checkpoint, out)
    (tmp_path / "file").write_text("")
    assert f"can't be made ({tmp_path / 'file'}: File exists)" in refusal(checkpoint, tmp_path / "file" / "bundle")


@pytest.mark.parametrize("kind", ["folder", "file", "broken link"])
def test_what_exists_is_never_replaced(checkpoint, tmp_path, kind):
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    assert "exists; give another name or remove it" in refusal(checkpoint, out)
    assert os.path.lexists(out)


def test_wrong_weights_are_all_named(checkpoint, tmp_path):
    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.norm.weight"]
    tensors["model.extra.weight"] = torch.zeros(1)
    save_file(tensors, weights)
    message = refusal(checkpoint, tmp_path / "b")
    assert "model.norm.weight is missing" in message and "model.extra.weight is not part of the model" in message
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated or damaged" in refusal(checkpoint, tmp_path / "b")


def test_weights_that_are_not_finite_stop_a_running_export(checkpoint, tmp_path):
    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.0.self_attn.qkv_proj.weight"][3, 5] = float("nan")
    save_file(tensors, weights)
    assert "not finite" in refusal(checkpoint, tmp_path / "out" / "b")
    assert not (tmp_path / "out" / "b").exists()


def test_a_width_that_the_groups_do_not_divide_is_named(tmp_path):
    folder = talking_checkpoint(tmp_path / "c", intermediate_size=72)
    assert f"recipe {DEFAULT_RECIPE} takes 32 columns a scale: 72 columns" in refusal(folder, tmp_path / "b")


def test_a_tokenizer_of_another_model_is_refused(checkpoint, tmp_path):
    write_tokenizer(checkpoint, VOCAB + 2)
    message = refusal(checkpoint, tmp_path / "b")
    assert f"the tokenizer has {VOCAB + 2} ids, the model {VOCAB}: files of two models?" in message
    (checkpoint / "tokenizer.json").unlink()
    assert "no tokenizer" in refusal(checkpoint, tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can't be read"),
        ("[]", "must hold a JSON object"),
        ('"chat_template"', "must hold a JSON object"),
        ('{"chat_template": "{% for %}"}', "template"),
        ('{"chat_template": 3}', "no chat template"),
    ],
)
def test_a_damaged_tokenizer_config_is_named(checkpoint, tmp_path, text, message):
    (checkpoint / "tokenizer_config.json").write_text(text)
    assert message in refusal(checkpoint, tmp_path / "b")


def test_stop_ids_come_from_the_generation_config_else_the_config(checkpoint):
    config = open_checkpoint(checkpoint).config
    path = checkpoint / "generation_config.json"
    for value, expected in (([2, 0], [2, 0]), (7, [7]), (None, [2])):
        path.write_text(json.dumps({"eos_token_id": value}))
        assert stop_ids(checkpoint, config) == expected
    path.unlink()
    assert stop_ids(checkpoint, config) == [2]
    for value in (VOCAB, -1, [2, VOCAB], True, "2", 2.0, [[2]], {"a": 1}):
        path.write_text(json.dumps({"eos_token_id": value}))
        with pytest.raises(InputError, match=rf"eos_token_id .*; give ids from 0 to {VOCAB - 1}"):
            stop_ids(checkpoint, config)
    for text in ("{", "[]", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError, match=r"generation_config\.json"):
            stop_ids(checkpoint, config)
    path.unlink()
    with pytest.raises(InputError, match="eos_token_id is missing"):
        stop_ids(checkpoint, tiny("tiny-gqa", eos_token_ids=()))


def run_verb(*arguments, **environment):
    command = [sys.executable, "-m", "phi3mobile.cli", *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_killed_export_leaves_nothing_and_the_next_one_beside_it_cleans_up(tiny_checkpoint_folder, tmp_path):
    """Whatever it makes: a run that was killed may never be repeated."""
    process = run_verb("export", tiny_checkpoint_folder, "-o", tmp_path / "bundle", "--method", "rtn")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".bundle.partial-*/.packed-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = {path.name.partition(".partial-")[0] for path in tmp_path.iterdir()}
    assert left == {".bundle"}
    other = tmp_path / "other"
    phi3mobile.export(tiny_checkpoint_folder, other, context=64, method="rtn")
    assert list(tmp_path.iterdir()) == [other]
    assert open_bundle(other).info.max_context == open_bundle(other).info.max_chunk == 64


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_an_export_killed_at_any_moment_is_cleaned_up_after(tiny_checkpoint_folder, tmp_path, seed):
    process = run_verb("export", tiny_checkpoint_folder, "-o", tmp_path / "bundle", "--method", "rtn")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".bundle.partial-*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(random.Random(seed).random() * 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with whole_file(tmp_path / "note.txt") as file:
        file.write_text("x")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    if (tmp_path / "bundle").exists():
        open_bundle(tmp_path / "bundle").verify()


def test_an_interrupted_export_cleans_up_itself(tiny_checkpoint_folder, tmp_path):
    def interrupt(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tiny_checkpoint_folder, tmp_path / "bundle", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_hub_id_exports_from_the_hubs_cache(tiny_checkpoint_folder, tmp_path):
    repository = tmp_path / "home" / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / ("b" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(tiny_checkpoint_folder.iterdir())):
        shutil.copyfile(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "home" / "hub"), "HF_HUB_OFFLINE": "1"}
    process = run_verb("export", "org/name", "-o", tmp_path / "bundle", "--context", 128, "--method", "rtn", **environment)
    stdout, stderr = process.communicate(timeout=1800)
    said = [line for line in stderr.decode().splitlines() if not line.startswith("Export org/name: ")]  # a line a minute
    assert process.returncode == 0 and said == [], stderr
    result = json.loads(stdout.splitlines()[-1])
    bundle = open_bundle(tmp_path / "bundle")
    assert result["bundle"] == str(tmp_path / "bundle") and result["bytes"] == bundle.program.stat().st_size
    assert bundle.manifest["name"] == "name" and bundle.manifest["provenance"]["source"] == "org/name"
    assert not any(path.is_symlink() for path in (tmp_path / "bundle").iterdir())
    process = run_verb("export", "org/other", "-o", tmp_path / "other", **environment)
    _, stderr = process.communicate(timeout=1800)
    assert process.returncode == 2
    assert stderr.decode().startswith("phi3mobile: org/other is not a path, and is not in the hub's cache; HF_HUB_OFFLINE")
