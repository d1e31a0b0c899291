"""Benchmarks on a phone: the real adb client and server against a phone of ours (adbd.py) that runs our runner here."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from adbd import Phone
from hypothesis import given
from hypothesis import strategies as st
from phones import needs_adb, plugged, readings, record_of, server  # noqa: F401  fixtures

from phi3mobile.bench import devices
from phi3mobile.bench.adb import Adb, ShellFailed, Unplugged, choose, parse_devices
from phi3mobile.bench.adb import Phone as Listed
from phi3mobile.bench.android import Android, NativeRunner
from phi3mobile.bench.android_app import AppRunner
from phi3mobile.bench.devices import NATIVE
from phi3mobile.bench.protocol import Plan, Run, bundle_hash, read_record
from phi3mobile.bench.report_data import summarize
from phi3mobile.bundle import open_bundle
from phi3mobile.cli import main
from phi3mobile.errors import InputError

FOLDER = "/data/local/tmp/phi3mobile"
QUICK = Plan(
    "test", prompts=(16, 100_000), depths=(32,), count=8, rounds=2, warm=1, sustain_s=1.0, text=12, threads=1, sample_s=0.1
)


# Which phone


PERMISSIONS = (
    "no permissions (missing udev rules? user is in the plugdev group); see [http://developer.android.com/tools/device.html]"
)
MDNS = "adb-0123 (2)._adb-tls-connect._tcp"
LINES = {  # as adb prints them, and what they say
    "R58N                   device usb:1-1 product:a model:Pixel_6 device:b transport_id:1": ("R58N", "device", "Pixel_6"),
    "R58N                   device product:a model:P": ("R58N", "device", "P"),
    f"{MDNS} device product:x model:P": (MDNS, "device", "P"),
    f"{MDNS} device product:x model:P device:b transport_id:12": (MDNS, "device", "P"),
    "adb-0123-Ab._adb-tls-connect._tcp. offline transport_id:2": ("adb-0123-Ab._adb-tls-connect._tcp.", "offline", ""),
    "127.0.0.1:5            offline transport_id:2": ("127.0.0.1:5", "offline", ""),
    f"xyz                    {PERMISSIONS} usb:1-1 transport_id:4": ("xyz", "no permissions", ""),
    "xyz                    no permissions (user in plugdev group?) usb:1-1": ("xyz", "no permissions", ""),
    "????????????           no permissions": ("????????????", "no permissions", ""),
    "(no serial number)     device usb:336592896X": ("(no serial number)", "device", ""),
    "my device offline      device product:my device model:Q device:no host transport_id:9": (
        "my device offline",
        "device",
        "Q",
    ),
    "two  blanks unauthorized usb:1-2 transport_id:3": ("two  blanks", "unauthorized", ""),
    "abc\tdevice": ("abc", "device", ""),
    "abc\tno permissions (verify udev rules); see [http://x/y]": ("abc", "no permissions", ""),
    "abc                    warming product:a": ("abc", "warming", ""),
}
STATES = (
    "device",
    "offline",
    "unauthorized",
    "authorizing",
    "connecting",
    "recovery",
    "sideload",
    "rescue",
    "bootloader",
    "host",
)
STATES += ("detached", "no permissions", PERMISSIONS)


@pytest.mark.parametrize("line", LINES)
def test_a_phone_is_read(line):
    assert parse_devices(f"* daemon started\nList of devices attached\n* more of it\n{line}\n\n") == [Listed(*LINES[line])]


def test_the_list_of_phones_is_read():
    found = parse_devices("List of devices attached\n" + "\n".join(LINES))
    assert found == [Listed(*line) for line in LINES.values()] and parse_devices("error: no server\n") == []


PART = st.text("abc019_.:-()#é", min_size=1, max_size=6)


@given(st.lists(PART, min_size=1, max_size=4), st.sampled_from(STATES), st.integers(1, 30), st.booleans(), st.booleans(), PART)
def test_any_serial_is_read(words, state, width, usb, known, name):
    """Words of a serial are anything but keys and states; the rest is as adb prints it."""
    serial = " ".join(words)
    line = (
        f"{serial:<{width}} {state}"
        + " usb:1-4.2" * usb
        + f" product:{name} x model:{name} device:{name}" * known
        + " transport_id:7"
    )
    assert parse_devices(f"List of devices attached\n{line}\n") == [
        Listed(serial, state.partition(" (")[0], name if known else "")
    ]


@given(st.text())
def test_any_list_is_read(text):
    assert all(phone.serial and phone.state for phone in parse_devices(f"List of devices attached\n{text}"))


@pytest.mark.parametrize(
    ("phones", "serial", "says"),
    [
        ([], None, "plug one in"),
        ([Listed("a", "device"), Listed("b", "device", "M")], None, r"several phones.*adb:a, adb:b \(M\)"),
        ([Listed("a", "device")], "c", "no phone c: adb lists adb:a"),
        ([Listed("a", "unauthorized")], None, "accept the dialog"),
        ([Listed("a", "offline"), Listed("b", "device")], "a", "offline"),
        ([Listed("a", "no permissions")], None, "udev"),
        ([Listed(MDNS, "device"), Listed("b", "device")], None, r"one of 'adb:adb-0123 \(2\)\._adb-tls-connect\._tcp', adb:b"),
        ([Listed("a", "dreaming")], None, "in state dreaming"),
        *(([Listed("a", state)], None, "the phone a (is|has|can)") for state in STATES[1:-1]),
    ],
)
def test_what_is_wrong_with_the_phone_is_said(phones, serial, says):
    with pytest.raises(InputError, match=says):
        choose(phones, serial)


def test_the_ready_phone_is_taken():
    assert choose([Listed("a", "offline"), Listed("b", "device")]) == "b"


@pytest.mark.parametrize(
    ("serial", "again"),
    [(MDNS, True), ("adb-0123-Ab._adb-tls-connect._tcp", True), ("adb-0123._adb._tcp.", True), ("10.0.0.2:5555", True),
     ("R58N", False), ("adb-0123 tcp", False)],
)  # fmt: skip
def test_a_phone_on_the_network_is_connected_again(tmp_path, serial, again):
    calls, program = tmp_path / "calls", tmp_path / "adb"
    program.write_text(
        f"""#!/bin/sh
if [ "$1" = devices ]; then printf 'List of devices attached\\n%s device product:x model:P\\n' '{serial}'; exit; fi
printf '%s\\n' "$1" "$2" >> '{calls}'
"""
    )
    program.chmod(0o755)
    adb, tries = Adb(program=str(program)), []

    def do() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise Unplugged("gone")
        return "back"

    assert adb.serial == serial and adb.waiting(do, 5) == "back"
    assert (calls.read_text().splitlines() if again else []) == (["disconnect", serial, "connect", serial] if again else [])
    assert calls.exists() == again


@needs_adb
def test_states_come_from_adb_itself(plugged):  # noqa: F811
    locked, silent = plugged("locked", state="unauthorized"), plugged("silent", wait=False, state="offline")
    with pytest.raises(InputError, match="accept the dialog"):
        Adb(locked.serial)
    with pytest.raises(InputError, match="is offline: replug it"):
        Adb(silent.serial)
    one = plugged("one")
    assert Adb().serial == one.serial
    two = plugged("two", model="Other")
    with pytest.raises(InputError, match=f"several phones.*{two.serial} .Other"):
        Adb()
    assert Adb(two.serial).shell("echo here").strip() == "here"


@needs_adb
def test_the_shell_gives_output_errors_and_disconnection(plugged):  # noqa: F811
    phone = plugged()
    adb = Adb()
    assert adb.shell("printf 'a\\303\\244'; echo no >&2").encode() == "aä".encode()
    with pytest.raises(ShellFailed, match=r"bad \(exit code 3\)"):
        adb.shell("echo bad >&2; exit 3")
    assert adb.read("exit 1") == ""
    phone.cut_on = "now"
    with pytest.raises(Unplugged, match="went away"):
        adb.shell("echo now")


# Push


@needs_adb
@pytest.mark.parametrize("cut", [0, 1, 150_000, 249_999])
def test_a_push_goes_on_where_the_cable_was_pulled(plugged, tmp_path, cut):  # noqa: F811
    phone, local = plugged(), tmp_path / "file"
    local.write_bytes(random.Random(0).randbytes(250_000))
    adb, remote = Adb(), "/data/local/tmp/file"
    if cut:
        phone.cut_after = cut
        threading.Thread(target=replug, args=(phone,), daemon=True).start()
    assert adb.push(local, remote, piece=64_000, patience=30)
    assert Path(phone.moved(remote)).read_bytes() == local.read_bytes()
    assert phone.received <= 250_000 + 64_000 + 64_000  # at most the piece under way (and what adb had sent of it) again
    before = phone.received
    assert not adb.push(local, remote) and phone.received == before
    assert sorted(path.name for path in Path(phone.moved("/data/local/tmp")).iterdir()) == ["file"]


def replug(phone: Phone) -> None:
    while phone.cut_after is not None:
        time.sleep(0.02)
    time.sleep(0.2)
    phone.plug()


@needs_adb
def test_a_push_that_was_given_up_is_finished_by_the_next(plugged, tmp_path):  # noqa: F811
    phone, local, remote = plugged(), tmp_path / "file", "/data/local/tmp/file"
    local.write_bytes(random.Random(1).randbytes(250_000))
    adb = Adb()
    phone.cut_after = 170_000
    with pytest.raises(Unplugged):
        adb.push(local, remote, piece=64_000, patience=0.5)
    partial = Path(phone.moved(f"{remote}.partial"))
    assert partial.stat().st_size == 128_000
    partial.write_bytes(partial.read_bytes() + b"half a piece")
    phone.plug()
    before = phone.received
    adb.push(local, remote, piece=64_000, patience=10)
    assert Path(phone.moved(remote)).read_bytes() == local.read_bytes() and phone.received - before == 250_000 - 128_000


@needs_adb
def test_damage_is_found_and_sent_again(plugged, tmp_path):  # noqa: F811
    phone, local, remote = plugged(), tmp_path / "file", "/data/local/tmp/file"
    local.write_bytes(b"x" * 1000)
    Path(phone.moved(f"{remote}.partial")).write_bytes(b"y" * 1000)
    Adb().push(local, remote)
    assert Path(phone.moved(remote)).read_bytes() == local.read_bytes()
    phone.script("sha256sum", "echo 0 x")
    with pytest.raises(InputError, match="damaged twice"):
        Adb().push(local, remote)


@needs_adb
def test_full_storage_is_the_users_to_fix(plugged, tmp_path):  # noqa: F811
    phone, local = plugged(), tmp_path / "file"
    local.write_bytes(b"x" * 300_000)
    phone.room = 100_000
    with pytest.raises(InputError, match=r"can't store.*No space left on device; make room"):
        Adb().push(local, "/data/local/tmp/file")


@needs_adb
@pytest.mark.parametrize("name", ["with blanks (2)", 'it\'s "quoted"', "back\\slash", "$HOME;ls&*"])
def test_names_on_the_phone_may_be_any(plugged, tmp_path, name):  # noqa: F811
    phone, local, remote = plugged(), tmp_path / "a file", f"/data/local/tmp/{name}/{name}"
    local.write_bytes(b"x" * 100_000)
    adb = Adb()
    assert adb.push(local, remote, piece=30_000) and not adb.push(local, remote)
    assert Path(phone.moved(remote)).read_bytes() == local.read_bytes()
    assert sorted(path.name for path in Path(phone.moved(remote)).parent.iterdir()) == [name]
    free = adb.free_bytes(str(Path(remote).parent))
    assert free is not None and free > 0


@needs_adb
def test_free_space_is_read_from_any_table(plugged):  # noqa: F811
    phone, adb = plugged(), Adb()
    for row in (
        "/dev/block/dm-5 113 1 42 3% /data",
        "/dev/fuse with blanks 113 1 42 3% /mnt/my disk",
        "/dev/long\n 113 1 42 3% /d",
    ):
        phone.script("df", f"printf 'Filesystem 1K-blocks Used Available Use%% Mounted on\\n%s\\n' '{row}'")
        assert adb.free_bytes("/data") == 42 * 1024
    phone.script("df", "echo df: no such file >&2; exit 1")
    assert adb.free_bytes("/data") is None


# Whole runs


@pytest.fixture(scope="module")
def runner():
    if not (NATIVE / "p3m").is_file():
        pytest.skip("the runner is not built: make native")
    return NATIVE


@pytest.fixture
def bundle(bundle_of, runner):
    return open_bundle(bundle_of("tiny-gqa", "host"))


@needs_adb
def test_a_whole_benchmark(plugged, bundle, runner, tmp_path):  # noqa: F811
    phone = plugged()
    readings(phone)
    device = Android(Adb(), NativeRunner(runner), poll=0.05)
    lines = record_of(device, bundle, QUICK, tmp_path / "record.jsonl")
    head = lines[0]
    assert head["device"]["name"] == "Test Pixel X" and head["device"]["capacity_mah"] == 4500
    assert head["bundle"]["hash"] == bundle_hash(bundle) and head["left_out"] == ["prefill 100000"]
    loads = {line["run"]: line["packed"] for line in lines if line["kind"] == "load"}
    assert loads == dict.fromkeys(("cold 1", "warm 1", "speed", "text", "sustained"), "none")  # weights are used as they lie
    found = summarize(lines)
    assert found.status == "done" and not found.failed
    assert {"decode 32", "prefill 16", "ttft 16", "load cold", "memory dirty", "sustained"} <= found.figures.keys()
    assert found.heat and found.heat[0][1] == 33.5
    # Half an ampere at four volts for as long as it ran: two watts.
    (energy,) = [line for line in lines if line["kind"] == "energy"]
    (current,) = [one for one in energy["methods"] if one["method"] == "current"]
    assert current["joules"] == pytest.approx(2 * current["seconds"])
    assert not Path(phone.moved(FOLDER)).exists()  # cleaned up


@needs_adb
def test_the_runners_say_the_same_text(plugged, bundle, runner, tmp_path):  # noqa: F811
    """Same tokens as the engine in Python, and the tokenizer's text of them in the record."""
    from phi3mobile.bench.local import Local

    plugged()
    plan = Plan(prompts=(), depths=(), cold=0, warm=0, text=12, threads=1)
    texts = [
        next(line["text"] for line in record_of(device, bundle, plan, tmp_path / name) if line["kind"] == "text")
        for name, device in (("a", Android(Adb(), NativeRunner(runner), poll=0.05)), ("b", Local()))
    ]
    assert texts[0] == texts[1]


@needs_adb
def test_a_run_goes_on_while_the_cable_is_out(plugged, bundle, runner, tmp_path):  # noqa: F811
    phone = plugged()
    readings(phone)
    device = Android(Adb(), NativeRunner(runner), poll=0.05, patience=20)
    plan = Plan(prompts=(), depths=(32,), count=8, cold=0, warm=0, text=0, sustain_s=1.0, rounds=1, threads=1, sample_s=0.2)
    phone.cut_on = "tail -c +1 "  # the first look at the output
    threading.Thread(target=replug_after_a_look, args=(phone,), daemon=True).start()
    lines = record_of(device, bundle, plan, tmp_path / "record.jsonl")
    assert summarize(lines).status == "done"
    assert sum(line["kind"] == "sustain" for line in lines) > 1


@needs_adb
def test_a_phone_that_stays_away_leaves_a_failed_run(plugged, bundle, runner, tmp_path):  # noqa: F811
    phone = plugged()
    device = Android(Adb(), NativeRunner(runner), poll=0.05, patience=0.5)
    plan = Plan(prompts=(16,), depths=(), cold=1, warm=0, text=0, threads=1)
    phone.cut_on = "tail -c +1 "
    lines = record_of(device, bundle, plan, tmp_path / "record.jsonl")
    failed = [line for line in lines if line["kind"] == "failed"]
    assert [line["run"] for line in failed] == ["cold 1", "speed"] and "went away" in failed[0]["reason"]
    assert lines[-1]["kind"] == "end" and lines[-1]["status"] == "failed"


def replug_after_a_look(phone: Phone) -> None:
    while phone.cut_on is not None:
        time.sleep(0.02)
    time.sleep(0.5)
    phone.plug()


@needs_adb
@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("kill -9 $$", "killed the runner, as it does when memory is short"),
        ("echo linker: no lib >&2; exit 2", "ended with 2: .*no lib"),
        ("kill -9 0", "vanished without a trace"),
    ],
)
def test_a_runner_that_dies_is_explained(plugged, bundle, tmp_path, program, says):  # noqa: F811
    plugged()
    folder = tmp_path / "runner"
    folder.mkdir()
    (folder / "p3m").write_text(f"#!/bin/sh\n{program}\n")
    device = Android(Adb(), NativeRunner(folder), poll=0.05)
    plan = Plan(prompts=(), depths=(), cold=1, warm=0, text=0)
    lines = record_of(device, bundle, plan, tmp_path / "record.jsonl")
    (reason,) = {line["reason"] for line in lines if line["kind"] == "failed" and line["run"] == "cold 1"}
    assert re.search(says, reason), reason


@needs_adb
def test_a_hot_phone_is_waited_for(plugged, bundle, runner, tmp_path):  # noqa: F811
    phone = plugged()
    phone.script(
        "dumpsys",
        'echo x >> "$0.count"; [ "$1" = thermalservice ] || exit 0\n'
        '[ $(wc -l < "$0.count") -lt 6 ] && echo "Thermal Status: 2" || echo "Thermal Status: 0"',
    )
    plan = Plan(prompts=(), depths=(), cold=1, warm=0, text=0, threads=1, sample_s=0.05, load_only=True)
    lines = record_of(Android(Adb(), NativeRunner(runner), poll=0.05), bundle, plan, tmp_path / "record.jsonl")
    assert next(line for line in lines if line["kind"] == "cooldown")["seconds"] > 0 and lines[-1]["status"] == "done"
    phone.script("dumpsys", "echo Thermal Status: 4")
    plan = Plan(prompts=(), depths=(), cold=1, warm=0, threads=1, sample_s=0.05, cooldown_s=0.1, load_only=True)
    lines = record_of(Android(Adb(), NativeRunner(runner), poll=0.05), bundle, plan, tmp_path / "hot.jsonl")
    assert "still at thermal status 4" in next(line for line in lines if line["kind"] == "failed")["reason"]


@needs_adb
def test_space_is_asked_for_before_anything_is_pushed(plugged, bundle, runner):  # noqa: F811
    phone = plugged()
    phone.script("df", "echo Filesystem 1K-blocks Used Available Use% Mounted; echo /dev/dm-42; echo 100 99 1000 99% /data")
    with pytest.raises(InputError, match=r"0\.0 GB free, 0\.\d GB are needed"):
        Android(Adb(), NativeRunner(runner)).install(bundle, lambda *_: None)
    assert phone.received == 0


@needs_adb
def test_the_command_line(plugged, bundle, runner, tmp_path, capsys):  # noqa: F811
    phone = plugged()
    readings(phone)
    record = tmp_path / "record.jsonl"
    command = ["bench", str(bundle.folder), "--device", f"adb:{phone.serial}", "--preset", "quick", "-o", str(record)]
    assert main([*command, "--runner", str(tmp_path)]) == 2
    assert f"no p3m in {tmp_path}: build it" in capsys.readouterr().err and not record.exists()
    assert main([*command, "--runner", str(runner), "--threads", "1", "--keep"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["status"] == "done" and said["decode 128"] > 0 and read_record(record)
    assert Path(phone.moved(f"{FOLDER}/runner/p3m")).exists()
    assert main([*command, "--runner", str(runner)]) == 2 and "exists" in capsys.readouterr().err


def test_the_activitys_command(bundle_of):
    runner = AppRunner("org.x.app", "/sdcard/it's")
    run = Run("speed", ("prefill:16:3", "text:8:1,2"))
    command = runner.work("/m/abc", open_bundle(bundle_of("tiny-gqa")), run, Plan(threads=2))
    assert "am start -W -S -n org.x.app/org.kivy.android.PythonActivity --es bench '{" in command
    assert '"steps":["prefill:16:3","text:8:1,2"],"threads":2' in command and runner.out.startswith("/sdcard/it's/bench/run/")
    assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--device", "usb"], "give host, adb"),
        (["--device", "host", "--peers"], "--peers compares on this machine"),
        (["--sustain", "3"], "--sustain goes with --device"),
        (["--keep"], "--keep goes with --device"),
        (["--device", "host", "--sustain", "-1"], "0 to 1440 minutes"),
        (["--device", "host", "--battery-wh", "0"], "10 to 25"),
        (["--device", "host", "--threads", "-2"], "--threads -2"),
        (["--device", "ios:x", "--threads", "2"], "leave it out"),
        (["--preset", "fast"], "invalid choice"),
        (["--device", "host", "--rounds", "0"], "--rounds 0"),
    ],
)
def test_wrong_flags(flags, says, capsys):
    assert main(["bench", "some.bundle", *flags]) == 2
    assert says in capsys.readouterr().err


def test_what_a_phone_needs_is_said_before_one_is_looked_for(monkeypatch, capsys):
    monkeypatch.setattr(devices, "NATIVE", Path("nowhere"))
    monkeypatch.setattr("shutil.which", lambda *_: pytest.fail("it looked for adb"))
    assert main(["bench", "some.bundle", "--device", "adb", "--preset", "quick"]) == 2
    said = capsys.readouterr().err
    assert "--runner" in said and "phi3mobile/core/README.md" in said and "--app org.phi3mobile.assistant" in said


@pytest.mark.slow
@needs_adb
def test_the_runner_for_arm64_under_qemu(plugged, bundle, tmp_path):  # noqa: F811
    """A whole benchmark with the cross-built runner; needs what `make test-arm64` fetches."""
    arm = Path(__file__).parents[2] / "build" / "arm64"
    if not (arm / "ready").exists():
        pytest.skip("no cross compiler and qemu in build/arm64: make test-arm64")
    tools = os.environ | {"LD_LIBRARY_PATH": f"{arm}/root/usr/lib/x86_64-linux-gnu"}
    scripts, folder = Path(__file__).parents[1] / "core" / "arm64", tmp_path / "runner"
    for command in ([scripts / "build.sh", arm, sys.executable], [sys.executable, scripts / "runner.py", arm, folder]):
        built = subprocess.run(command, env=tools, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr[-2000:]
    # The phone's processor, in the place of the loader that starts everything.
    loader = folder / "ld-linux-aarch64.so.1"
    loader.rename(tmp_path / "loader")
    qemu = f"{arm}/root/usr/bin/qemu-aarch64-static"
    loader.write_text(f'#!/bin/sh\nunset LD_LIBRARY_PATH\nexec {qemu} {tmp_path}/loader "$@"\n')
    plugged()
    plan = replace(QUICK, sustain_s=0.2)
    lines = record_of(Android(Adb(), NativeRunner(folder), poll=0.2), bundle, plan, tmp_path / "record.jsonl")
    found = summarize(lines)
    assert found.status == "done" and {"decode 32", "prefill 16", "load cold"} <= found.figures.keys(), found.failed
    (text,) = [line["tokens"] for line in lines if line["kind"] == "text"]
    assert len(text) == QUICK.text
