"""The training loop: resuming bit for bit, what stops a run, two processes, muP, engines, the verb."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exported import VOCAB
from hypothesis import given
from hypothesis import strategies as st
from training_tiny import SHAPE, chat_lines, pretrain_table, tokenizer_folder, write_shards, write_toml

from phi3mobile.cli import main
from phi3mobile.errors import InputError
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.loading import load_model
from phi3mobile.models.registry import read_config as read_hf
from phi3mobile.training import checkpoints
from phi3mobile.training.batches import stream_rows
from phi3mobile.training.checkpoints import checkpoint_folders, differences
from phi3mobile.training.config import STAGES, Pretrain, read_config
from phi3mobile.training.loop import logits_of
from phi3mobile.training.metrics import read_metrics
from phi3mobile.training.model import build_model, empty_hf, flops_per_token, initialize, load_hf, param_groups
from phi3mobile.training.pretrain import pretrain
from phi3mobile.training.settings import from_table


def run(table: dict) -> dict:
    return pretrain(from_table(table, Pretrain, "config"))


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out)]


def test_a_run_learns_and_leaves_a_folder_that_load_model_reads(tmp_path):
    run(pretrain_table(tmp_path, steps=30))
    out = tmp_path / "out"
    values = losses(out)
    assert len(values) == 30 and values[-1] < values[0] - 0.3
    hf, config = load_hf(out / "final")
    tokens = torch.arange(3, 40)[None]
    assert (load_model(out / "final")(tokens) - hf(tokens, use_cache=False).logits).abs().max() < 1e-4
    assert config.hidden_size == SHAPE["hidden_size"] and len(checkpoint_folders(out)) == 2
    line = read_metrics(out)[-1]
    assert {"lr", "grad_norm", "tokens_per_s", "mfu"} <= line.keys() and 0 < line["mfu"] < 1


def test_neither_micro_batches_nor_the_checkpoint_interval_change_the_losses(tmp_path):
    run(pretrain_table(tmp_path, "a"))
    run(pretrain_table(tmp_path, "b", batch={"micro": 1}, run={"checkpoint_every": 5}))
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=2e-5)


def start(config: Path) -> subprocess.Popen:
    code = "import sys; from phi3mobile.cli import main; sys.exit(main(['train', 'pretrain', sys.argv[1]]))"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-c", code, str(config)], **quiet)


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_losses_and_weights_bit_for_bit(tmp_path):
    table = {"steps": 60, "run": {"checkpoint_every": 7, "ema": 0.9}}
    run(pretrain_table(tmp_path, "whole", **table))
    config = write_toml(tmp_path / "killed.toml", pretrain_table(tmp_path, "killed", **table))
    out = tmp_path / "killed"
    process = start(config)
    deadline = time.monotonic() + 120
    while len(checkpoint_folders(out)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "final").exists() and len(read_metrics(out)) < 60
    assert main(["train", "pretrain", str(config)]) == 0
    assert losses(out) == losses(tmp_path / "whole")
    for folder in ("final", "final-ema"):
        one, two = open_checkpoint(out / folder), open_checkpoint(tmp_path / "whole" / folder)
        assert all(torch.equal(one.tensor(name), two.tensor(name)) for name in one.names())
    final, averaged = open_checkpoint(out / "final"), open_checkpoint(out / "final-ema")
    assert not torch.equal(final.tensor("lm_head.weight"), averaged.tensor("lm_head.weight"))


def test_a_finished_run_started_again_changes_nothing(tmp_path):
    table = pretrain_table(tmp_path)
    run(table)
    before = losses(tmp_path / "out"), (tmp_path / "out" / "final" / "model.safetensors").stat().st_mtime_ns
    run(table)
    assert (losses(tmp_path / "out"), (tmp_path / "out" / "final" / "model.safetensors").stat().st_mtime_ns) == before


def test_resuming_with_another_config_is_refused_but_may_log_otherwise(tmp_path):
    run(pretrain_table(tmp_path))
    with pytest.raises(InputError, match=r"optimizer\.lr was 0\.01, is 0\.02"):
        run(pretrain_table(tmp_path, optimizer={"lr": 0.02}))
    with pytest.raises(InputError, match=r"model\.shape\.hidden_size was 32"):
        run(pretrain_table(tmp_path, model={"shape": {**SHAPE, "hidden_size": 64}}))
    run(pretrain_table(tmp_path, run={"checkpoint_every": 3, "keep": 1}))


@given(st.dictionaries(st.text(max_size=4), st.integers(), max_size=6), st.dictionaries(st.text(max_size=4), st.integers()))
def test_differences_are_symmetric_and_empty_for_equals(one, two):
    assert differences(one, dict(one)) == [] and len(differences(one, two)) == len(differences(two, one))
    assert bool(differences({"run": one}, {"run": two})) == any(
        one.get(key) != two.get(key) for key in {*one, *two} - set(checkpoints.MAY_CHANGE)
    )


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    from phi3mobile.training import loop

    original, calls = loop.NextToken.loss, []

    def failing(self, model, rows):
        total, extra = original(self, model, rows)
        calls.append(1)
        return total * (float("nan") if len(calls) > 8 else 1.0), extra  # two micro-batches a step: from step 5 on

    monkeypatch.setattr(loop.NextToken, "loss", failing)
    with pytest.raises(InputError, match=r"loss is nan in step 5.*step-00000004; lower optimizer\.lr"):
        run(pretrain_table(tmp_path))
    assert [folder.name for folder in checkpoint_folders(tmp_path / "out")] == ["step-00000002", "step-00000004"]
    monkeypatch.undo()
    run(pretrain_table(tmp_path))
    run(pretrain_table(tmp_path, "whole"))
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


@pytest.mark.parametrize("how", ["before", "during"])
def test_a_full_disk_keeps_the_last_checkpoint(how, tmp_path, monkeypatch):
    real, calls = checkpoints.dcp.save, []

    def full(*args, **options):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(*args, **options)

    def no_room(path, needed):
        calls.append(1)
        if len(calls) > 1:
            raise InputError(f"{path} needs {needed}, the disk has 0.0 GB free")

    monkeypatch.setattr(checkpoints.dcp, "save", full) if how == "during" else monkeypatch.setattr(
        checkpoints, "require_space", no_room
    )
    with pytest.raises(InputError, match="disk"):
        run(pretrain_table(tmp_path))
    assert [folder.name for folder in checkpoint_folders(tmp_path / "out")] == ["step-00000002"]


# configs


def test_every_config_that_comes_along_is_read():
    folder = Path(read_config.__code__.co_filename).parent / "configs"
    files = [file for file in sorted(folder.glob("*.toml")) if not file.stem.startswith("data-")]  # those: test_data.py
    assert {"tiny", "mini", "small", "medium"} <= {file.stem.split("-")[0] for file in files}
    for file in files:
        config = read_config(file, file.stem.split("-")[-1])
        if config.model.shape:
            read_hf({"model_type": "phi3", **config.model.shape})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimiser": {}}, "unknown key optimiser; did you mean optimizer"),
        ({"optimizer": {"rate": 1}}, "unknown key rate"),
        ({"optimizer": {"lr": "fast"}}, "must be float"),
        ({"optimizer": {"lr": -1.0}}, "above 0"),
        ({"schedule": {"kind": "linear"}}, "'cosine' or 'wsd'"),
        ({"schedule": {"warmup": 100}}, "from 0 to steps 6"),
        ({"run": {"ema": 1.5}}, "from 0 to 1"),
        ({"run": {"device": "gpu"}}, "take auto, cpu or cuda"),
        ({"model": {"folder": "x"}}, "either folder"),
        ({"batch": {"length": 128}}, "the model takes 64 positions"),
        ({"batch": {"rows": 0}}, "above 0"),
        ({"batch": {"micro": -2}}, "0 .all rows at once. or more"),
        ({"model": {"mup_base_width": 16, "shape": {**SHAPE, "tie_word_embeddings": True}}}, "tie_word_embeddings = false"),
        ({"model": {"shape": {**SHAPE, "layers": 3}}}, "unknown key 'layers'"),
        ({"model": {"shape": {**SHAPE, "vocab_size": 128}}}, "the model 128"),
    ],
)
def test_bad_configs_are_one_line(changes, message, tmp_path, capsys):
    config = write_toml(tmp_path / "c.toml", pretrain_table(tmp_path, **changes))
    assert main(["train", "pretrain", str(config)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and __import__("re").search(message, error)


def test_unknown_stages_and_files_are_refused(tmp_path, capsys):
    assert main(["train", "teach", "x.toml"]) == 2
    assert main(["train", "pretrain", str(tmp_path / "x.toml")]) == 2
    (tmp_path / "x.toml").write_text("out = [")
    assert main(["train", "pretrain", str(tmp_path / "x.toml")]) == 2
    with pytest.raises(InputError, match="known are pretrain"):
        read_config(tmp_path / "x.toml", "teach")
    assert set(STAGES) == set(__import__("phi3mobile.training.verb", fromlist=["STAGES"]).STAGES)
    capsys.readouterr()


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_refuses_a_family_that_it_can_not_train(stage, checkpoint_of, tmp_path, capsys):
    start = checkpoint_of("small-tiny")
    table = pretrain_table(tmp_path, "out") | {"model": {"folder": str(start)}}
    if stage in ("sft", "dpo"):
        table["data"] = {"files": [str(chat_lines(tmp_path / "chats.jsonl"))]}
    if stage == "safety":
        del table["data"]
        table["safety"] = {}
    if stage == "longrope":
        table["search"] = {"length": 512, "text": str(tmp_path / "shards")}
    assert main(["train", stage, str(write_toml(tmp_path / "c.toml", table))]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(start) in error and "model_type phi3small" in error
    assert "training takes phi3, llama, mistral" in error and not (tmp_path / "out").exists()


def test_a_shape_of_another_family_is_refused(checkpoint_of, tmp_path, capsys):
    shape = json.loads((checkpoint_of("small-tiny") / "config.json").read_text())
    table = pretrain_table(tmp_path) | {"model": {"shape": {k: v for k, v in shape.items() if v is not None}}}
    assert main(["train", "pretrain", str(write_toml(tmp_path / "c.toml", table))]) == 2
    assert "shape is of model_type phi3small; training takes phi3" in capsys.readouterr().err


def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path):
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")
    with pytest.raises(InputError, match=f"{VOCAB} ids, the model 290"):
        write_shards(tmp_path / "small" / "shards", vocab=290)
        run(pretrain_table(tmp_path / "small", model={"tokenizer": str(tokenizer), "shape": {**SHAPE, "vocab_size": 290}}))
    write_shards(tmp_path / "shards", tokenizer=tokenizer)
    other = tokenizer_folder(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text + "\n")
    run(pretrain_table(tmp_path, steps=2, model={"tokenizer": str(tokenizer)}))
    assert (tmp_path / "out" / "final" / "tokenizer.json").is_file()
    with pytest.raises(InputError, match="made with another tokenizer"):
        run(pretrain_table(tmp_path, "b", model={"tokenizer": str(other)}))


# precision, memory, width


def test_bfloat16_and_activation_checkpointing_learn_alike(tmp_path):
    run(pretrain_table(tmp_path, "a"))
    run(pretrain_table(tmp_path, "b", model={"checkpoint_activations": True}))
    run(pretrain_table(tmp_path, "c", run={"dtype": "bfloat16"}))
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=1e-5)
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "c"), abs=0.02)


def _drift(width: int, base: int) -> float:
    """How far the logits move in 4 Adam steps at one learning rate."""
    config = read_hf(
        {
            "model_type": "phi3",
            **SHAPE,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_attention_heads": width // 16,
            "num_key_value_heads": width // 16,
        }
    )
    model = empty_hf(config)
    initialize(model, 0.05, base)
    optimizer = torch.optim.AdamW(param_groups(model, 0.0, base, width), lr=0.02)
    for group in optimizer.param_groups:
        group["lr"] = 0.02 * group["lr_scale"]
    tokens = torch.randint(3, VOCAB, (4, 33), generator=torch.Generator().manual_seed(0))
    rows = stream_rows(tokens, torch.zeros_like(tokens))
    before = logits_of(model, rows).detach()
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(logits_of(model, rows).flatten(0, 1), rows.labels.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float((logits_of(model, rows).detach() - before).std())


def test_under_mup_the_logits_move_alike_at_every_width_and_without_it_they_do_not():
    narrow, wide = _drift(32, 32), _drift(256, 32)
    standard = _drift(256, 0)
    assert 0.5 < wide / narrow < 2.0 < standard / narrow


def test_flops_are_six_per_weight_and_token():
    config = read_hf({"model_type": "phi3", **SHAPE})
    used = config.parameters() - config.vocab_size * config.hidden_size
    assert flops_per_token(config, 64) == 6 * used + 12 * 2 * 32 * 32
    assert flops_per_token(replace(config, sliding_window=8), 64) < flops_per_token(config, 64)


def test_training_goes_on_from_a_folder(tmp_path):
    run(pretrain_table(tmp_path))
    table = pretrain_table(tmp_path, "more", model={"folder": str(tmp_path / "out" / "final"), "shape": {}})
    (tmp_path / "shape").mkdir()
    with pytest.raises(InputError, match="tokenizer"):
        run(table)  # the folder has no tokenizer
    tokenizer_folder(tmp_path / "out" / "final")
    run(table)
    model, _ = build_model(from_table(table, Pretrain, "config").model)
    assert losses(tmp_path / "more")[0] < losses(tmp_path / "out")[0] and model.config.hidden_size == 32


# engines


def torchrun(processes: int, config: Path, **environment) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "-m",
        "phi3mobile.cli",
        "train",
        "pretrain",
        str(config),
    ]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, timeout=1800
    )


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_fsdp2_gives_one_processs_losses(processes, tmp_path):
    """Tolerance 1e-5: sums over two processes add in another order."""
    table = {"steps": 20, "run": {"checkpoint_every": 7, "ema": 0.9}, "batch": {"micro": 0}}
    run(pretrain_table(tmp_path, "one", **table))
    config = write_toml(tmp_path / "fsdp.toml", pretrain_table(tmp_path, "two", **table))
    done = torchrun(processes, config)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    for folder in ("final", "final-ema"):
        one, two = open_checkpoint(tmp_path / "one" / folder), open_checkpoint(tmp_path / "two" / folder)
        assert all(torch.allclose(one.tensor(name), two.tensor(name), atol=1e-4) for name in one.names())


@pytest.mark.slow
def test_fsdp2_resumes_and_one_process_can_take_over(tmp_path):
    import shutil

    whole, steps = pretrain_table(tmp_path, "whole", steps=12), "step-00000006"
    run(whole)
    table = pretrain_table(tmp_path, "two", steps=12, run={"keep": 9})
    config = write_toml(tmp_path / "two.toml", table)
    assert torchrun(2, config).returncode == 0
    out = tmp_path / "two"
    for folder in checkpoint_folders(out):
        if folder.name > steps:
            shutil.rmtree(folder)
    shutil.rmtree(out / "final")
    shutil.copytree(out, tmp_path / "kept")
    assert torchrun(2, config).returncode == 0
    resumed = losses(out)
    shutil.rmtree(out)
    (tmp_path / "kept").rename(out)
    run(table)
    assert resumed == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    assert losses(out) == pytest.approx(resumed, abs=1e-5)


@pytest.mark.slow
def test_deepspeed_gives_the_same_losses(tmp_path):
    pytest.importorskip("deepspeed")
    run(pretrain_table(tmp_path, "one"))
    changes = {"run": {"engine": "deepspeed", "checkpoint_every": 4}}
    config = write_toml(tmp_path / "ds.toml", pretrain_table(tmp_path, "two", **changes))
    done = torchrun(1, config, DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_tensorboard_files_are_written(tmp_path):
    pytest.importorskip("tensorboard")
    run(pretrain_table(tmp_path, steps=2, run={"tensorboard": True}))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["run"]["tensorboard"] is True
