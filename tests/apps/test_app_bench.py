"""The app as a benchmark of its phone: host, adb, the staged app in its own process and window, ExecuTorch's classes played."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_xcrun import answer as ios_answer
from fake_xcrun import listed
from hypothesis import given
from hypothesis import strategies as st
from phones import Phone, needs_adb, plugged, readings, record_of, server  # noqa: F401  fixtures
from test_app_packaging import staged  # noqa: F401
from test_app_window import display  # noqa: F401

from phi3mobile.assistant import bench as app_bench
from phi3mobile.bench.adb import Adb
from phi3mobile.bench.android import Android
from phi3mobile.bench.android_app import APP, AppRunner
from phi3mobile.bench.ios import Ios
from phi3mobile.bench.memory import apple_memory, linux_memory, memory
from phi3mobile.bench.protocol import Plan, Record, _question, measure, read_record, runs_of
from phi3mobile.bench.report_data import summarize
from phi3mobile.bench.request import Request, parse_request
from phi3mobile.bench.steps import Steps
from phi3mobile.bundle import open_bundle
from phi3mobile.cli import main
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError

HERE = Path(__file__).parents[1]
FILES = f"sdcard/Android/data/{APP}/files"


# The request


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True),
    st.lists(st.sampled_from(["prefill:16:3", "decode:128:8:2", "text:8:1,2,3", "sustain:0.5:32:8"])).map(tuple),
    st.integers(0, 256),
    st.booleans(),
    st.floats(0, 3600),
)
def test_a_request_arrives_as_it_was_sent(name, steps, threads, cold, sample_s):
    sent = Request(name, name, steps, threads, cold, sample_s)
    assert parse_request(sent.text()) == sent


@given(
    st.text()
    | st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["out", "bundle", "steps", "x"]), inner),
    ).map(json.dumps)
)
def test_any_text_is_a_request_or_refused(text):
    try:
        given = parse_request(text)
    except InputError as error:
        assert "request" in str(error)
    else:
        assert "/" not in given.out + given.bundle and not given.out.startswith(".")


@pytest.mark.parametrize(
    "change",
    [
        {"out": "../chats.db"},
        {"out": ".x"},
        {"out": ""},
        {"bundle": "a/b"},
        {"bundle": ".."},
        {"steps": ["rm -rf /"]},
        {"steps": "x"},
        {"threads": -1},
        {"threads": True},
        {"cold": 1},
        {"sample_s": "x"},
        {"more": 1},
    ],
)
def test_a_request_stays_in_its_folder(change):
    text = json.dumps(json.loads(Request("a.jsonl", "b").text()) | change)
    with pytest.raises(InputError, match="request"):
        parse_request(text)


# Memory


def test_this_process_is_measured(tmp_path):
    now = memory()
    assert 0 < now["anonymous_bytes"] <= now["resident_bytes"] <= now["peak_bytes"] and now["dirty_bytes"] > 0
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t    30 kB\nVmRSS:\t    20 kB\nRssAnon:\t    10 kB\nThreads:\t3\n")
    assert linux_memory(tmp_path) == {"peak_bytes": 30720, "resident_bytes": 20480, "anonymous_bytes": 10240}
    (tmp_path / "smaps_rollup").write_text("5-6 ---p 0 00:00 0 [rollup]\nRss: 9 kB\nPss: 7 kB\nPrivate_Dirty: 5 kB\n")
    assert linux_memory(tmp_path)["pss_bytes"] == 7168 and linux_memory(tmp_path)["dirty_bytes"] == 5120


def test_apples_structure_is_read_as_c_lays_it_out(tmp_path):
    """A library of ours with the kernel's declaration (mach/task_info.h), compiled here."""
    source = """#include <stdint.h>
#pragma pack(push, 4)
struct task_vm_info { uint64_t virtual_size; int32_t region_count, page_size; uint64_t resident_size, resident_size_peak,
  device, device_peak, internal, internal_peak, external, external_peak, reusable, reusable_peak, purgeable_volatile_pmap,
  purgeable_volatile_resident, purgeable_volatile_virtual, compressed, compressed_peak, compressed_lifetime,
  phys_footprint, min_address, max_address; int64_t ledger_phys_footprint_peak; };
#pragma pack(pop)
uint32_t mach_task_self_ = 0x103;
int task_info(uint32_t task, uint32_t flavor, struct task_vm_info *out, uint32_t *count) {
  if (task != 0x103 || flavor != 22 || *count * 4 != sizeof *out) return 4;
  out->resident_size = 20; out->resident_size_peak = 30; out->internal = 7; out->compressed = 2; out->phys_footprint = 11;
  out->ledger_phys_footprint_peak = 13; return 0; }"""
    (tmp_path / "a.c").write_text(source)
    made = subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "a.so", tmp_path / "a.c"], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no C compiler: {made.stderr[:100]}")
    library = ctypes.CDLL(str(tmp_path / "a.so"))
    assert apple_memory(library) == {
        "resident_bytes": 20,
        "peak_bytes": 30,
        "anonymous_bytes": 9,
        "footprint_bytes": 11,
        "footprint_peak_bytes": 13,
    }
    ctypes.c_uint32.in_dll(library, "mach_task_self_").value = 1
    with pytest.raises(OSError, match="task_info gave 4"):
        apple_memory(library)


# The app's side, without a window


def said(request: Request, shared: Path) -> list[dict]:
    answer = app_bench.Answer(request.answer(shared))
    code = app_bench.work(request, shared, answer)
    answer.say({"kind": "late"})
    lines = [json.loads(line) for line in request.answer(shared).read_text().splitlines()]
    assert lines[0]["kind"] == "app" and lines[-1] == {"kind": "exit", "code": code, "t": lines[-1]["t"]}
    return lines


@pytest.fixture
def shared(tmp_path, bundle_of) -> Path:
    """The app's folder with a bundle in it, as the host leaves it."""
    (tmp_path / "bench" / "run").mkdir(parents=True)
    (tmp_path / "bench" / "models").mkdir()
    (tmp_path / "bench" / "models" / "tiny").symlink_to(bundle_of("tiny-gqa"))
    return tmp_path


def test_the_app_does_the_protocols_steps(shared):
    steps = ("prefill:16:2", "decode:16:4:1", "text:4:5,6,7")
    kinds = [line["kind"] for line in said(Request("a.jsonl", "tiny", steps, cold=True), shared)]
    assert kinds == ["app", "load", "prefill", "prefill", "memory", "decode", "memory", "text", "exit"]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request("a", "none"), "does not exist"),
        (Request("a", "tiny", ("jump:3",)), "give one of prefill"),
        (Request("a", "tiny", ("prefill:100000:1",)), "do not fit the context"),
    ],
)
def test_what_fails_is_said(shared, request_, says):
    lines = said(request_, shared)
    assert says in next(line for line in lines if line["kind"] == "error")["reason"] and lines[-1]["code"] == 1


def test_a_crash_of_the_engine_is_said(shared, monkeypatch):
    class JavaException(Exception): ...

    def open_engine(*_):
        raise JavaException("JVM exception occurred: no memory")

    monkeypatch.setattr(app_bench, "open_engine", open_engine)
    (error,) = [line for line in said(Request("a", "tiny"), shared) if line["kind"] == "error"]
    assert error["reason"] == "JavaException: JVM exception occurred: no memory"


def test_the_app_removes_what_the_host_brought_and_nothing_else(shared, tmp_path):
    (shared / "bench" / "run" / "old.jsonl").write_text("x")
    (shared / "bench" / "models" / "tiny").unlink()
    (shared / "bench" / "models" / "copied").mkdir()
    (shared / "mine.txt").write_text("x")
    said(Request("a", remove=True), shared)
    assert {path.name for path in shared.rglob("*")} == {"bench", "models", "run", "a", "mine.txt"}


def test_an_answered_request_is_not_done_again(shared, monkeypatch):
    """Android gives the activity its old intent when a person comes back to the app."""
    monkeypatch.setattr(app_bench, "device", lambda: "android")
    monkeypatch.setattr(app_bench, "shared_folder", lambda: shared)
    text = Request("a.jsonl", "tiny").text()
    monkeypatch.setattr(app_bench, "_android_extra", lambda: text)
    assert app_bench.requested() == (parse_request(text), shared)
    (shared / "bench" / "run" / "a.jsonl").write_text("")
    assert app_bench.requested() is None
    (shared / "bench" / "run" / "a.jsonl").unlink()
    text = "nonsense"
    with pytest.raises(InputError, match="can't be read"):
        app_bench.requested()
    (shared / "bench" / "run").rmdir()  # no host has prepared anything, or it cleaned up
    assert app_bench.requested() is None
    text = None
    assert app_bench.requested() is None


def test_arguments_are_the_request_on_ios(tmp_path, monkeypatch):
    monkeypatch.setattr(app_bench, "device", lambda: "ios")
    monkeypatch.setenv("HOME", str(tmp_path))
    text = Request("a.jsonl").text()
    assert app_bench.requested(["app", "--bench", text]) == (parse_request(text), tmp_path / "Documents")
    assert app_bench.requested(["app", "--bench"]) is None and app_bench.requested(["app"]) is None


def test_battery_and_heat_of_an_iphone():
    from fake_phone import FakePhone

    objc = FakePhone()
    assert app_bench.apple_reading(objc) == {"kind": "sample", "level": 0.8, "state": "unplugged", "thermal": "fair"}
    assert objc.live == []


# Whole: the host's verb, real adb, the staged app


PROGRAM = [sys.executable, str(HERE / "app_on_phone.py")]
ALIVE = 'pid=$(cat "{root}/app.pid" 2>/dev/null) && [ -d /proc/$pid ] && ! grep -q "^State:.*Z" /proc/$pid/status'


def install_app(phone: Phone, app: Path, screen: str, starts: bool = True) -> None:
    """Programs of the phone that know our app: `am` starts it in a process of its own."""
    root, alive = phone.root, ALIVE.format(root=phone.root)
    start = f"DISPLAY={screen} LIBGL_ALWAYS_SOFTWARE=1 setsid {' '.join(PROGRAM)} android {app} {root}/{FILES}"
    phone.script(
        "am",
        f"""case "$1" in
start) while [ $# -gt 0 ]; do [ "$1" = --es ] && text=$3; shift; done
  {f'{start} "$text" > {root}/app.log 2>&1 < /dev/null & echo $! > {root}/app.pid' if starts else ":"};;
force-stop) {alive} && kill -9 $pid;;
esac""",
    )
    phone.script("pidof", f"{alive} && echo $pid")
    phone.script("pm", f'[ "$2" = {APP} ] && echo package:/data/app/base.apk')
    for name in ("input", "wm"):
        phone.script(name, ":")


SHORT = Plan("test", prompts=(16,), depths=(32,), count=8, rounds=2, cold=0, warm=0, text=12, threads=1, sample_s=5)


@pytest.mark.slow
@needs_adb
@pytest.mark.parametrize("plan", [SHORT, pytest.param(replace(SHORT, cold=1, warm=1, sustain_s=2.0), marks=pytest.mark.slow)])
def test_a_whole_benchmark_in_the_app(plan, plugged, staged, display, bundle_of, tmp_path):  # noqa: F811
    phone = plugged()
    readings(phone)
    install_app(phone, staged, display)
    bundle, record = open_bundle(bundle_of("tiny-gqa")), tmp_path / "record.jsonl"
    lines = record_of(Android(Adb(), AppRunner(APP), poll=0.1), bundle, plan, record)
    found = summarize(lines)
    assert (found.status, found.failed) == ("done", []), (phone.root / "app.log").read_text()[-2000:]
    assert lines[0]["device"]["runner"] == APP and lines[0]["device"]["name"] == "Test Pixel X"
    assert {"prefill 16", "ttft 16", "decode 32", "memory peak", "memory dirty"} <= found.figures.keys()
    assert bool(plan.sustain_s) == ("sustained" in found.figures) and bool(plan.cold) == ("load cold" in found.figures)
    runs = {line["run"] for line in lines if line["kind"] == "start"}
    assert len({line["pid"] for line in lines if line["kind"] == "app"}) == len(runs)  # each is a fresh process
    assert {line["run"] for line in lines if line["kind"] == "sample"} == runs
    (tokens,) = [line["tokens"] for line in lines if line["kind"] == "text"]
    assert tokens == greedy(bundle, plan.text)  # the same program says the same here
    assert not (phone.root / FILES / "bench").exists() and not (phone.root / "data/local/tmp/phi3mobile/run").exists()
    assert main(["report", str(record), "-o", str(tmp_path / "report.html")]) == 0
    assert APP in (tmp_path / "report.html").read_text()


def greedy(bundle, count: int) -> list[int]:
    """Tokens of the checked answer, by the engine in this process."""
    runs, _ = runs_of(Plan(prompts=(), depths=(), cold=0, warm=0, text=count), bundle.info.max_context, _question(bundle))
    (line,) = Steps(open_engine(bundle)).run(runs[-1].steps[0])
    return line["tokens"]


@needs_adb
def test_an_app_that_cannot_run_is_explained(plugged, staged, bundle_of, tmp_path, capsys):  # noqa: F811
    phone = plugged()
    readings(phone)
    out = str(tmp_path / "r.jsonl")
    command = ["bench", str(bundle_of("tiny-gqa")), "--device", "adb", "--app", APP, "-o", out]
    assert main(command) == 2 and f"{APP} is not on the phone" in capsys.readouterr().err
    install_app(phone, staged, ":0", starts=False)
    assert main([*command[:1], str(bundle_of("tiny-gqa", "host")), *command[2:]]) == 2
    assert "export with --recipe android-cpu" in capsys.readouterr().err and not Path(out).exists()
    runner = AppRunner(APP)
    runner.start_within = 0.5
    (phone.root / FILES).mkdir(parents=True)
    phone.script("pidof", "echo 1")  # the activity is there, but it does not begin: a locked screen
    plan = Plan(prompts=(), depths=(), cold=1, warm=0, load_only=True)
    lines = record_of(Android(Adb(), runner, poll=0.1), open_bundle(bundle_of("tiny-gqa")), plan, Path(out))
    assert "did not begin: unlock the phone" in next(line for line in lines if line["kind"] == "failed")["reason"]
    phone.script("pidof", "exit 1")  # it ended before it said anything
    lines = record_of(Android(Adb(), AppRunner(APP), poll=0.1), open_bundle(bundle_of("tiny-gqa")), plan, tmp_path / "b.jsonl")
    assert "vanished without a trace" in next(line for line in lines if line["kind"] == "failed")["reason"]


PAUSED = """
import os, sys, time
os.environ["KIVY_NO_ARGS"] = "1"
from pathlib import Path
from phi3mobile.assistant.launch import _configure
_configure(None, frames=5)
from kivy.clock import Clock
from phi3mobile.assistant.ui import bench
from phi3mobile.bench.request import Request
bench.work = lambda *_: time.sleep(60)
app = bench.BenchApp(Request("a.jsonl", "m", ("prefill:16:2",)), Path(sys.argv[1]))
Clock.schedule_once(lambda _: app.dispatch(sys.argv[2]), 0.5)
app.run()
"""


@pytest.mark.parametrize(("event", "says"), [("on_pause", "sent to the background"), ("on_stop", "the window was closed")])
def test_a_run_that_a_person_ends_has_failed(event, says, shared, display):  # noqa: F811
    done = subprocess.run(
        [sys.executable, "-c", PAUSED, str(shared), event],
        capture_output=True,
        text=True,
        timeout=1800,
        env=os.environ | {"DISPLAY": display, "LIBGL_ALWAYS_SOFTWARE": "1"},
    )
    lines = [json.loads(line) for line in (shared / "bench" / "run" / "a.jsonl").read_text().splitlines()]
    assert done.returncode == 1 and [line["kind"] for line in lines] == ["error", "exit"], done.stderr[-1000:]
    assert says in lines[0]["reason"]


XCRUN = '''#!{python}
"""xcrun devicectl over a folder: `launch` starts the staged app in a process of its own."""
import json, os, pathlib, shutil, subprocess, sys
here = pathlib.Path(__file__).parent
words = sys.argv[1:]
assert words[0] == "devicectl"
out = pathlib.Path(words[words.index("--json-output") + 1])
document = {{"info": {{"outcome": "success"}}, "result": {{}}}}
value = lambda name: words[words.index(name) + 1]
if words[1:3] == ["list", "devices"]:
    document = json.loads((here / "devices.json").read_text())
elif words[1:4] == ["device", "info", "apps"]:
    document["result"] = {{"apps": [{{"bundleIdentifier": "{app}"}}]}}
elif words[1:4] == ["device", "copy", "to"]:
    shutil.copytree(value("--source"), here / "container" / value("--destination"), dirs_exist_ok=True)
elif words[1:4] == ["device", "copy", "from"]:
    shutil.copy(here / "container" / value("--source"), value("--destination"))
elif words[1:4] == ["device", "process", "launch"]:
    app, *arguments = words[words.index("--") + 1:]
    assert app == "{app}" and arguments[0] == "--bench" and "--terminate-existing" in words
    command = {program!r} + ["ios", "{staged}", str(here / "container/Documents"), arguments[1]]
    log = (here / "app.log").open("a")
    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                     env=os.environ | {{"DISPLAY": "{display}", "LIBGL_ALWAYS_SOFTWARE": "1"}})
out.write_text(json.dumps(document))
'''


@pytest.mark.slow
def test_a_whole_benchmark_on_ios(staged, display, bundle_of, tmp_path, monkeypatch):  # noqa: F811
    folder = tmp_path / "bin"
    (folder / "container" / "Documents").mkdir(parents=True)
    text = XCRUN.format(python=sys.executable, app=APP, program=PROGRAM, staged=staged, display=display)
    (folder / "xcrun").write_text(text)
    (folder / "xcrun").chmod(0o755)
    (folder / "devices.json").write_text(json.dumps(ios_answer(listed())))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    plan = Plan("test", prompts=(16,), depths=(32,), count=8, rounds=2, cold=1, warm=0, text=0, sample_s=0.5, warmest=1)
    with (tmp_path / "r.jsonl").open("w") as file:
        measure(Ios(poll=0.2), open_bundle(bundle_of("tiny-gqa")), plan, Record(file), lambda *_: None)
    lines = read_record(tmp_path / "r.jsonl")
    found = summarize(lines)
    assert (found.status, found.failed) == ("done", []), (folder / "app.log").read_text()[-2000:]
    assert {"load cold", "prefill 16", "decode 32"} <= found.figures.keys()
    samples = [line for line in lines if line["kind"] == "sample"]
    assert len(samples) >= 4 and {line["battery"]["percent"] for line in samples} == {80.0}
    documents = folder / "container" / "Documents" / "bench"
    assert not list(documents.glob("models/*")) and len(list(documents.glob("run/*"))) == 1
