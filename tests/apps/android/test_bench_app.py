"""The SDK's half of `phi3mobile bench --device adb --app`: the host's request, the protocol's lines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from phones import needs_adb, plugged, readings, record_of, server  # noqa: F401  fixtures

from phi3mobile.bench.adb import Adb
from phi3mobile.bench.android import Android
from phi3mobile.bench.android_app import AppRunner
from phi3mobile.bench.protocol import Plan
from phi3mobile.bench.report_data import summarize
from phi3mobile.bench.request import Request
from phi3mobile.bench.steps import perform
from phi3mobile.bundle import open_bundle
from phi3mobile.engines.registry import open_engine

STEPS = ("prefill:9:2", "decode:8:4:2", "text:6:5,6,7,8", "sustain:0.05:4:4")


@pytest.fixture(scope="session")
def bundle(bundle_of: Callable[..., Path]) -> Path:
    return bundle_of("tiny-gqa", "host")


@pytest.fixture
def bench(check, bundle, tmp_path):
    """A request or a text -> what was printed, and the answer's lines."""
    shutil.copytree(bundle, tmp_path / "bench" / "models" / "b")
    (tmp_path / "bench" / "run").mkdir()

    def run(request: Request | str) -> tuple[list[str], list[dict[str, Any]]]:
        text = request if isinstance(request, str) else request.text()
        said = check("bench", bundle, text, scratch=tmp_path)
        answers = sorted((tmp_path / "bench" / "run").iterdir())
        return said, [json.loads(line) for line in answers[0].read_text().splitlines()] if answers else []

    return run


def test_the_lines_are_the_protocols(bench, bundle, tmp_path):
    said, lines = bench(Request("a.jsonl", "b", STEPS, threads=2, cold=True))
    assert said == ["running"]
    wanted: list[dict[str, Any]] = []
    opened = open_bundle(bundle)
    assert perform(lambda: open_engine(opened, 2), STEPS, wanted.append) == 0
    kinds = [line["kind"] for line in lines if line["kind"] != "sustain"]
    assert kinds == ["app", *(line["kind"] for line in wanted if line["kind"] != "sustain"), "exit"]
    assert lines[-1]["code"] == 0 and all(line["t"] > 1.7e9 for line in lines)
    for mine, other in zip(
        [x for x in lines[1:-1] if x["kind"] != "sustain"], [x for x in wanted if x["kind"] != "sustain"], strict=True
    ):
        assert set(mine) - {"t"} == set(other)
        for name in ("tokens", "depth"):
            assert mine.get(name) == other.get(name)
    load = lines[1]
    assert load["packed"] == "none" and load["peak_bytes"] > 1e7
    # Answered: a phone gives the activity its old intent again.
    assert bench(Request("a.jsonl", "b", STEPS))[0] == ["nothing"]


def test_what_fails_is_said(bench, tmp_path):
    _, lines = bench(Request("a.jsonl", "b", ("prefill:100000:1",)))
    assert lines[-2]["kind"] == "error" and "do not fit the context" in lines[-2]["reason"] and lines[-1]["code"] == 1
    assert lines[-2]["step"] == "prefill:100000:1"


def test_a_bundle_that_is_not_there(bench):
    _, lines = bench(Request("a.jsonl", "gone", ()))
    assert lines[-2]["kind"] == "error" and "manifest.json" in lines[-2]["reason"]


def test_removing_leaves_the_answer(bench, tmp_path):
    bench(Request("a.jsonl", remove=True))
    assert not list((tmp_path / "bench" / "models").iterdir())
    assert [path.name for path in (tmp_path / "bench" / "run").iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"out": "../x", "steps": []}',
        '{"out": "a", "bundle": "a/b", "steps": []}',
        '{"out": "a", "steps": ["rm -rf"]}',
        '{"out": "a", "steps": [], "threads": 1000}',
        '{"out": "a", "steps": [], "more": 1}',
        '{"out": "a", "steps": "text"}',
    ],
)
def test_any_app_may_ask_anything(bench, text):
    said, lines = bench(text)
    assert said[0].startswith("refused") and said[1] == "nothing" and lines == []


FILES = "sdcard/Android/data/org.phi3mobile.sample/files"


@needs_adb
def test_a_whole_benchmark_in_an_app_with_the_sdk(plugged, java, bundle, tmp_path):  # noqa: F811
    """The host's verb, the real adb, a stand-in of a phone; the app is the SDK on this machine's JVM."""
    phone = plugged()
    readings(phone)
    root, name = phone.root, "org.phi3mobile.sample"
    alive = f'pid=$(cat "{root}/app.pid" 2>/dev/null) && [ -d /proc/$pid ] && ! grep -q "^State:.*Z" /proc/$pid/status'
    start = f"setsid {' '.join(java)} bench none {root}/{FILES}"
    phone.script(
        "am",
        f"""case "$1" in
start) while [ $# -gt 0 ]; do [ "$1" = -n ] && component=$2; [ "$1" = --es ] && text=$3; shift; done
  [ "$component" = {name}/.MainActivity ] || exit 1
  {start} "$text" > {root}/app.log 2>&1 < /dev/null & echo $! > {root}/app.pid;;
force-stop) {alive} && kill -9 $pid;;
esac""",
    )
    phone.script("pidof", f"{alive} && echo $pid")
    phone.script("pm", f'[ "$2" = {name} ] && echo package:/data/app/base.apk')
    phone.script("cmd", f"echo priority=0 preferredOrder=0; echo {name}/.MainActivity")
    for tool in ("input", "wm"):
        phone.script(tool, ":")
    (root / FILES).mkdir(parents=True)
    plan = Plan("test", prompts=(16,), depths=(32,), count=8, rounds=2, cold=1, warm=1, text=12, threads=1, sample_s=5)
    opened = open_bundle(bundle)
    lines = record_of(Android(Adb(), AppRunner(name), poll=0.1), opened, plan, tmp_path / "record.jsonl")
    found = summarize(lines)
    assert (found.status, found.failed) == ("done", []), (root / "app.log").read_text()[-2000:]
    assert {"prefill 16", "ttft 16", "decode 32", "load cold", "memory peak"} <= found.figures.keys()
    assert not (root / FILES / "bench").exists()
