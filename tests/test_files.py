"""Files that are whole or absent, and what people see while they are made."""

import io
import json
import logging
import os
import pty
import re
import shutil
import stat
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from phi3mobile.errors import InputError
from phi3mobile.files import cache_folder, new_folder, refuse_existing, require_space, sha256, whole_file
from phi3mobile.quiet import quiet
from phi3mobile.screen import print_card, print_json, size


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "er" / "made"
    with new_folder(target) as partial:
        (partial / "file").write_text("x")
        assert not target.exists() and partial.parent == target.parent
    assert names(target) == ["file"] and names(target.parent) == ["made"]


def test_a_relative_name_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_folder(Path("made")):
        pass
    assert names(tmp_path) == ["made"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, InputError])
def test_a_failed_folder_vanishes(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "made") as partial:
        (partial / "file").write_text("x")
        raise error("no")
    assert not names(tmp_path)


def test_what_exists_or_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(InputError, match="exists; give another name or remove it"):
            refuse_existing(path)
        with pytest.raises(InputError, match="exists; give another name"), new_folder(path):
            pytest.fail("must not run")
    for path in (tmp_path / "file" / "made", tmp_path / ("n" * 300)):
        with pytest.raises(InputError, match=r"can't be made \(.*; write elsewhere"), new_folder(path):
            pytest.fail("must not run")
    assert names(tmp_path) == ["file", "link"]


def test_the_slower_of_two_with_one_name_is_told(tmp_path):
    with pytest.raises(InputError, match="exists; give another name"), new_folder(tmp_path / "made") as slow:
        with new_folder(tmp_path / "made") as fast:
            (fast / "file").write_text("fast")
        (slow / "file").write_text("slow")
    assert (tmp_path / "made" / "file").read_text() == "fast" and names(tmp_path) == ["made"]


def test_a_whole_file_replaces_what_was_there_or_nothing(tmp_path):
    target = tmp_path / "out.txt"
    for text in ("one", "two"):
        with whole_file(target) as partial:
            partial.write_text(text)
        assert target.read_text() == text and names(tmp_path) == ["out.txt"]
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), whole_file(target) as partial:
            partial.write_text("half")
            raise error("no")
    assert target.read_text() == "two" and names(tmp_path) == ["out.txt"]
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "none" / "out.txt"):
        pytest.fail("must not run")


def test_the_longest_names_are_written(tmp_path):
    for name in ("n" * 255, "é" * 127, "n" * 230 + ".txt"):
        with whole_file(tmp_path / name) as partial:
            partial.write_text("x")
        with new_folder(tmp_path / name[:-1]):
            pass
    assert len(names(tmp_path)) == 6


def test_a_link_stays_and_leads_to_the_new_file(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to("deep/file")
    for text in ("new", "newer"):  # the file is not there yet, and is
        with whole_file(tmp_path / "link") as partial:
            partial.write_text(text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "deep" / "file").read_text() == text
    assert names(tmp_path) == ["deep", "link"] and names(tmp_path / "deep") == ["file"]


def read_fifo(path, found):
    with path.open("rb") as pipe:
        found.append(pipe.read())


def test_a_pipe_is_written_into_and_stays_one(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=read_fifo, args=(pipe, found))
    reader.start()
    with whole_file(pipe) as partial:
        partial.write_bytes(b"x" * 200_000)
        assert partial.parent != tmp_path
    reader.join(20)
    assert found == [b"x" * 200_000] and stat.S_ISFIFO(pipe.stat().st_mode) and names(tmp_path) == ["pipe"]
    with pytest.raises(ValueError, match="no"), whole_file(pipe):
        raise ValueError("no")  # nothing is written where it did not end well: this would wait for a reader
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_into_and_stays_one(tmp_path):
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        device.write_bytes(b"")
    except OSError:
        pytest.skip("only root makes devices, where the file system has them")
    (tmp_path / "link").symlink_to(device)
    for path in (device, tmp_path / "link"):
        with whole_file(path) as partial:
            partial.write_text("x")
    assert stat.S_ISCHR(device.stat().st_mode) and names(tmp_path) == ["link", "null"]


@pytest.mark.parametrize("verb", ["report", "index", "eval"])
def test_verbs_write_into_what_is_no_file(verb, tmp_path, capsys):
    """A stand-in for /dev/null, which a verb that root ran would replace with a file."""
    from phi3mobile.bench.evaluate.results import append_result
    from phi3mobile.cli import main

    pipe, found = tmp_path / "pipe.md", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=read_fifo, args=(pipe, found), daemon=True)
    reader.start()
    if verb == "report":
        record = tmp_path / "record.jsonl"
        line = {"kind": "quality", "format": 1, "t": 1.0, "tool": "0", "task": "a", "metric": "acc", "score": 0.5, "n": 2}
        record.write_text(json.dumps(line | {"model": {"hash": "a", "name": "m"}, "metrics": {}}) + "\n")
        assert main(["report", str(record), "-o", str(pipe)]) == 0
    elif verb == "index":
        (tmp_path / "a.txt").write_text("some text")
        assert main(["index", str(tmp_path / "a.txt"), "-o", str(pipe), "--words-only"]) == 2
        assert "is no file, and a library is one" in capsys.readouterr().err
        pipe.open("wb").close()  # ends the reader
    else:
        append_result(pipe, {"kind": "quality"})
    reader.join(20)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and found and (verb == "index" or found[0])
    assert [name for name in names(tmp_path) if name.startswith(".")] == []


def test_dev_stdout_is_written_into(tmp_path):
    """A name of an open file is no place to put another file, even where it leads to one."""
    code = "from pathlib import Path\nfrom phi3mobile.files import whole_file\n"
    code += "with whole_file(Path('/dev/stdout')) as partial:\n    partial.write_text('told')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("told", "")
    with (tmp_path / "out").open("w") as out:
        assert subprocess.run([sys.executable, "-c", code], stdout=out, check=False).returncode == 0
    assert (tmp_path / "out").read_text() == "told" and names(tmp_path) == ["out"]
    assert stat.S_ISLNK(Path("/dev/stdout").lstat().st_mode)


def test_space_is_asked_for_where_the_file_will_be(tmp_path, monkeypatch):
    asked = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage._replace(free=2_000_000_000))
    require_space(tmp_path / "not" / "yet", 2_000_000_000)
    with pytest.raises(InputError, match=r"yet needs 3.4 GB, the disk has 2.0 GB free; make room or write elsewhere"):
        require_space(tmp_path / "not" / "yet", 3_400_000_000)
    assert asked == [tmp_path, tmp_path]


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_cache_folder_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" / "phi3mobile" and cache_folder().is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "phi3mobile"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"can't be made .*; set XDG_CACHE_HOME"):
        cache_folder()


def test_quiet_hides_native_output_logs_and_warnings(capfd):
    with quiet():
        os.write(2, b"native chatter\n")
        logging.getLogger("x").warning("log")
        warnings.warn("warned", stacklevel=1)
        print("as ExecuTorch's bindings write", file=sys.stderr)
    print("after", file=sys.stderr)
    os.write(2, b"native after\n")
    assert capfd.readouterr().err == "after\nnative after\n"


@pytest.mark.parametrize(("error", "shown"), [(RuntimeError, True), (InputError, False), (KeyboardInterrupt, False)])
def test_quiet_shows_after_all_what_came_before_a_bug(capfd, error, shown):
    with pytest.raises(error), quiet():
        os.write(2, b"native chatter\n")
        raise error("bad")
    assert ("native chatter" in capfd.readouterr().err) == shown


def in_terminal(code):
    """What a program shows on a terminal."""
    main, end = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=end, stdout=end, stderr=end)
    os.close(end)
    shown = b""
    while True:
        try:
            data = os.read(main, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(main)
    assert process.wait() == 0, shown
    return shown.decode()


BAR = """
from phi3mobile.quiet import quiet
from phi3mobile.screen import progress_bar
import os, sys
with progress_bar("Export {x} [red]") as report, quiet():
    os.write(2, b"chatter")
    report("layers", 3, 30)
print("done", file=sys.stderr)
"""


def test_the_progress_bar_shows_through_quiet_on_a_terminal():
    shown = in_terminal(BAR)
    assert "Export {x} [red]" in shown and "layers" in shown and "3/30" in shown
    assert "chatter" not in shown


def test_without_a_terminal_there_is_no_bar():
    done = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", "done\n", 0)


def test_without_a_terminal_there_is_a_line_a_minute():
    minutes = """
import threading, time
from phi3mobile import screen
from phi3mobile.quiet import quiet
assert screen.EVERY_S == 60
screen.EVERY_S = 0.05
with screen.progress_bar("Export x") as report, quiet():
    report("load", 0, 1)
    time.sleep(0.2)
    report("solve layers", 0, 32)
    time.sleep(0.6)
    report("solve layers", 3, 32)
    time.sleep(0.2)
"""
    done = subprocess.run([sys.executable, "-c", minutes], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert "Export x: load, 0:00:00" in lines and any(line.startswith("Export x: solve layers 0/32, 0:00:0") for line in lines)
    assert re.fullmatch(r"Export x: solve layers 3/32, 0:00:0\d, 0:00:0\d left", lines[-1])
    assert done.returncode == 0 and done.stdout == ""


def test_cards_show_values_as_they_are(capsys):
    print_card("model[1] [/x]", {"license": "[bold]MIT[/] [/nothing]", "path": "a[b]"})
    shown = capsys.readouterr().out
    assert "model[1] [/x]" in shown and "[bold]MIT[/] [/nothing]" in shown and "a[b]" in shown


def test_the_json_line_is_one_line_that_any_terminal_can_print(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    print_json({"path": "modèle\n🙂\udcff", "n": 1.5})
    line = stream.buffer.getvalue().decode()
    assert line.count("\n") == 1 and json.loads(line) == {"path": "modèle\n🙂\udcff", "n": 1.5}


def test_sizes_for_people():
    assert [size(n) for n in (0, 999, 46080, 117_800_000, 1_970_000_000)] == ["0 B", "999 B", "46.1 kB", "117.8 MB", "1.97 GB"]
