"""Benchmarks on iOS: the commands for devicectl and what is read from its files, with a stand-in for xcrun on PATH.

Its answers have the fields that devicectl 397 writes. No Mac has run this.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from fake_xcrun import UDID, answer, listed
from hypothesis import given
from hypothesis import strategies as st

from phi3mobile.bench.ios import APP, Ios, choose, command_line, parse_devices, reason
from phi3mobile.bench.protocol import Plan, Record, measure, read_record
from phi3mobile.bench.report_data import summarize
from phi3mobile.bench.request import parse_request
from phi3mobile.bundle import open_bundle
from phi3mobile.cli import main
from phi3mobile.errors import InputError

FAKE = '''#!{python}
"""xcrun devicectl: answers from files beside this program; the app's container is the folder container/."""
import json, pathlib, shutil, sys
here = pathlib.Path(__file__).parent
words = sys.argv[1:]
with (here / "calls").open("a") as log:
    log.write(json.dumps(words) + "\\n")
assert words[0] == "devicectl"
out = pathlib.Path(words[words.index("--json-output") + 1])
document = {{"info": {{"outcome": "success"}}, "result": {{}}}}
value = lambda name: words[words.index(name) + 1]
if words[1:3] == ["list", "devices"]:
    document = json.loads((here / "devices.json").read_text())
elif words[1:4] == ["device", "info", "apps"]:
    document["result"] = {{"apps": [{{"bundleIdentifier": "{app}"}}]}}
elif words[1:4] == ["device", "copy", "to"]:
    target = here / "container" / value("--destination")
    target.parent.mkdir(parents=True, exist_ok=True)
    source = pathlib.Path(value("--source"))
    shutil.copytree(source, target, dirs_exist_ok=True) if source.is_dir() else target.write_bytes(source.read_bytes())
elif words[1:4] == ["device", "copy", "from"]:
    shutil.copy(here / "container" / value("--source"), value("--destination"))
elif words[1:4] == ["device", "process", "launch"]:
    if (here / "locked").exists():
        document = json.loads((here / "locked").read_text())
    else:
        request = json.loads(words[words.index("--bench") + 1])
        answer = here / "container/Documents/bench/run" / request["out"]
        answer.parent.mkdir(parents=True, exist_ok=True)
        answer.write_text((here / ("lines" if request["bundle"] else "reading")).read_text())
out.write_text(json.dumps(document))
sys.exit(0 if document["info"]["outcome"] == "success" else 1)
'''


@pytest.fixture
def xcrun(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "xcrun").write_text(FAKE.format(python=sys.executable, app=APP))
    (folder / "xcrun").chmod(0o755)
    (folder / "devices.json").write_text(json.dumps(answer(listed())))
    (folder / "reading").write_text("".join(json.dumps(line) + "\n" for line in (LINES[1], LINES[3])))
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def test_the_list_of_devices_is_read():
    watch = listed("w") | {"hardwareProperties": {"platform": "watchOS", "udid": "w"}}
    (one,) = parse_devices(answer(listed(), watch))
    assert (one["udid"], one["model"], one["os"], one["product"]) == (UDID, "iPhone 15 Pro", "18.1", "iPhone16,1")


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_list_is_read(value):
    assert parse_devices(answer()) == [] and isinstance(parse_devices({"result": {"devices": value}}), list)
    with pytest.raises(InputError, match="Xcode 15"):
        parse_devices({"result": None})


@pytest.mark.parametrize(
    ("devices", "udid", "says"),
    [
        ([], None, "no iPhone or iPad can be reached"),
        ([listed(tunnelState="unavailable")], None, "no iPhone"),
        ([listed(), listed("other")], None, "several devices.*ios:other"),
        ([listed()], "zzz", "no such iPhone"),
        ([listed(pairingState="unpaired")], None, "tap Trust"),
        ([listed() | {"deviceProperties": {"developerModeStatus": "disabled"}}], None, "Developer Mode"),
    ],
)
def test_what_is_wrong_with_the_device_is_said(devices, udid, says):
    with pytest.raises(InputError, match=says):
        choose(parse_devices(answer(*devices)), udid)


def test_the_apps_arguments_come_last():
    words = command_line(("device", "process", "launch", "--terminate-existing", "--", "app", "--bench", "x"), "a.json", "U")
    assert words == [
        "xcrun",
        "devicectl",
        "device",
        "process",
        "launch",
        "--terminate-existing",
        "--device",
        "U",
        "--json-output",
        "a.json",
        "--",
        "app",
        "--bench",
        "x",
    ]


LINES = [
    {"kind": "load", "seconds": 1.5, "packed": "created", "footprint_bytes": 5, "t": 10.0},
    {"kind": "sample", "level": 0.8, "state": "unplugged", "thermal": "fair", "t": 11.0},
    {"kind": "decode", "depth": 32, "seconds": [0.1] * 8, "t": 12.0},
    {"kind": "exit", "code": 0, "t": 13.0},
]


def record_of(device, bundle, plan, path) -> list[dict]:
    with path.open("w") as file:
        measure(device, bundle, plan, Record(file), lambda *_: None)
    return read_record(path)


def test_a_whole_benchmark(xcrun, bundle_of, tmp_path):
    (xcrun / "lines").write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"kind": "half')
    bundle = open_bundle(bundle_of("tiny-gqa", "host"))
    plan = Plan(prompts=(), depths=(32,), count=8, cold=1, warm=0, text=0, rounds=1, warmest=1)
    lines = record_of(Ios(poll=0.01), bundle, plan, tmp_path / "record.jsonl")
    found = summarize(lines)
    assert found.status == "done" and found.figures["decode 32"].value == pytest.approx(10)
    assert lines[0]["device"] | {"name": "iPhone 15 Pro", "os": "iOS 18.1", "build": "22B83"} == lines[0]["device"]
    samples = [line for line in lines if line["kind"] == "sample"]
    assert (
        samples[0]["battery"]["percent"] == 80
        and samples[0]["battery"]["plugged"] is False
        and samples[0]["thermal"]["status"] == 1
    )
    launches = [call for line in (xcrun / "calls").read_text().splitlines() if "launch" in (call := json.loads(line))]
    requests = [parse_request(call[-1]) for call in launches]
    assert [one.steps for one in requests if one.bundle] == [(), ("decode:32:8:1",)] and UDID in launches[0]
    assert [one.cold for one in requests if one.bundle] == [True, False] and requests[-1].remove  # it cleans up after itself
    assert len({one.out for one in requests}) == len(requests)
    assert (xcrun / "container/Documents/bench/models").is_dir()


def test_a_hot_iphone_is_waited_for(xcrun, bundle_of, tmp_path):
    hot = LINES[1] | {"thermal": "serious"}
    (xcrun / "reading").write_text("".join(json.dumps(line) + "\n" for line in (hot, LINES[3])))
    plan = Plan(prompts=(), depths=(), cold=1, warm=0, load_only=True, sample_s=0.01, cooldown_s=0.03, warmest=1)
    lines = record_of(Ios(poll=0.01), open_bundle(bundle_of("tiny-gqa", "host")), plan, tmp_path / "record.jsonl")
    assert "still at thermal status 3" in next(line for line in lines if line["kind"] == "failed")["reason"]


def test_what_ends_a_run_is_kept(xcrun, bundle_of, tmp_path):
    bundle = open_bundle(bundle_of("tiny-gqa", "host"))
    plan = Plan(prompts=(), depths=(), cold=1, warm=0, load_only=True, warmest=1)
    (xcrun / "lines").write_text(json.dumps(LINES[0]) + "\n")  # and then nothing: jetsam
    lines = record_of(Ios(poll=0.01, patience=0.3), bundle, plan, tmp_path / "a.jsonl")
    assert "iOS may have ended it" in next(line for line in lines if line["kind"] == "failed")["reason"]
    error = {
        "userInfo": {
            "NSLocalizedDescription": {"string": "Failed"},
            "NSUnderlyingError": {"error": {"userInfo": {"NSLocalizedDescription": {"string": "The device is locked."}}}},
        }
    }
    (xcrun / "locked").write_text(json.dumps({"info": {"outcome": "failed"}, "error": error}))
    lines = record_of(Ios(poll=0.01), bundle, plan, tmp_path / "b.jsonl")
    assert "The device is locked." in next(line for line in lines if line["kind"] == "failed")["reason"]
    assert reason({"error": None}) == "" and reason({}) == ""


def test_an_app_that_is_missing_is_named(xcrun, bundle_of, capsys):
    bundle = bundle_of("tiny-gqa", "host")
    assert main(["bench", str(bundle), "--device", "ios", "--app", "org.other", "-o", "never.jsonl"]) == 2
    assert "org.other is not on" in capsys.readouterr().err and not Path("never.jsonl").exists()


def test_without_xcode(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["bench", "some.bundle", "--device", "ios"]) == 2
    assert "need a Mac with Xcode 15" in capsys.readouterr().err


def test_an_xcrun_that_says_nothing_is_named(xcrun):
    """It wrote no answer: what it said is shown, if it said something."""
    (xcrun / "xcrun").write_text("#!/bin/sh\necho 'xcrun: error: no developer tools' >&2\nexit 72\n")
    with pytest.raises(InputError, match="no developer tools"):
        Ios()
    (xcrun / "xcrun").write_text("#!/bin/sh\nexit 72\n")
    with pytest.raises(InputError, match="no message"):
        Ios()
    (xcrun / "xcrun").write_text("no program")
    with pytest.raises(InputError, match="xcrun"):
        Ios()
