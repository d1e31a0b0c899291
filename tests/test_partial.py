"""What killed processes leave goes with the next run beside it; what living ones write stays. Real processes, real kill -9."""

from __future__ import annotations

import os
import platform
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from phi3mobile import partial
from phi3mobile.files import new_folder, scratch_folder, whole_file
from phi3mobile.partial import alone, beside, is_partial, sweep

WRITER = """
import sys
from pathlib import Path
from phi3mobile.files import new_folder, scratch_folder, whole_file
folder, n = Path(sys.argv[1]), 0
print("begun", flush=True)
while True:
    n += 1
    with new_folder(folder / f"made [{n}]* {sys.argv[2]}") as one, scratch_folder(folder, "scratch") as other:
        for i in range(3):
            (one / f"weights-{i}").write_bytes(bytes(100_000))
            (other / "x").write_text("x")
            with whole_file(folder / f"file-{sys.argv[2]}") as file:
                file.write_bytes(bytes(100_000))
            with whole_file(one / "about.json") as file:
                file.write_text("{}")
"""
HOLDER = """
import sys
from pathlib import Path
from phi3mobile.files import new_folder, whole_file
with new_folder(Path(sys.argv[1]) / "held") as one, whole_file(Path(sys.argv[1]) / "held.txt") as file:
    (one / "weights").write_text("mine"), file.write_text("mine")
    print("begun", flush=True)
    sys.stdin.read()
"""


@contextmanager
def child(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"begun\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_after_any_kill_the_next_run_finds_all_gone(tmp_path):
    rng, left, turn = random.Random(0), 0, 0
    while turn < 12 or (left < 4 and turn < 200):  # until the kills hit something
        turn += 1
        with child(WRITER, tmp_path, turn) as process:
            time.sleep(rng.random() * 0.06)
            process.send_signal(signal.SIGKILL)
            process.wait()
        left += bool(hidden(tmp_path))
        with whole_file(tmp_path / "other.txt") as file:
            file.write_text("x")
            assert {name.partition(".partial")[0] for name in hidden(tmp_path)} == {".other.txt"}
        assert hidden(tmp_path) == []
        for folder in tmp_path.glob("made*"):  # whole, and without what whole_file left in one
            assert sorted(path.name for path in folder.iterdir()) == ["about.json", "weights-0", "weights-1", "weights-2"]
    assert left >= 4


def test_what_lives_is_left_alone_and_ends_well(tmp_path):
    with child(HOLDER, tmp_path) as process, child(HOLDER, tmp_path / "nobody"):
        with new_folder(tmp_path / "mine"):
            sweep(tmp_path)
        sweep(tmp_path)
        assert len(hidden(tmp_path)) == 4  # two names, each with its lock
        process.stdin.close()
        assert process.wait(20) == 0
    assert hidden(tmp_path) == [] and (tmp_path / "held" / "weights").read_text() == "mine"
    assert (tmp_path / "held.txt").read_text() == "mine" and (tmp_path / "mine").is_dir()


def test_many_at_a_time_never_take_each_others(tmp_path):
    """Writers that sweep all the time: none fails, and those that are killed leave nothing after the next."""
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), f"{n}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for n in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == b"begun\n"
        while len(list(tmp_path.glob("made*"))) < 9:
            assert [process.poll() for process in processes] == [None] * 3
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
        said = [process.communicate()[1] for process in processes]
    assert said == [b""] * 3
    sweep(tmp_path)
    assert hidden(tmp_path) == [] and len(list(tmp_path.glob("made*"))) >= 3


def test_a_process_id_that_is_used_again_says_nothing(tmp_path):
    """Another version named leftovers by process id; ours are judged by the lock alone."""
    with child(HOLDER, tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for lock in tmp_path.glob(".*.lock"):
        assert str(process.pid) not in lock.name and str(process.pid) not in lock.read_text()
    sweep(tmp_path)
    assert hidden(tmp_path) == []


def age(*paths, seconds=25 * 3600):
    for path in paths:
        os.utime(path, (time.time() - seconds,) * 2, follow_symlinks=False)


@pytest.mark.parametrize("locks", [True, False])
def test_another_kernels_are_left_for_a_day(tmp_path, monkeypatch, locks):
    """Of another computer on a shared disk, or before a restart; and where the file system has no locks."""
    folder, lock = tmp_path / ".made.partial-0123456789ab", tmp_path / ".made.partial-0123456789ab.lock"
    folder.mkdir()
    (folder / "weights").write_text("x")
    lock.write_text("another kernel" if locks else partial._kernel())
    if not locks:
        monkeypatch.setattr(partial.fcntl, "flock", fails)
    with whole_file(tmp_path / "mine") as file:
        file.write_text("x")
    assert folder.is_dir() and lock.exists() and (tmp_path / "mine").exists()
    age(folder, lock)  # a file in it is new
    sweep(tmp_path)
    assert folder.is_dir()
    age(folder / "weights")
    sweep(tmp_path)
    assert hidden(tmp_path) == []


def fails(file, operation):
    raise OSError(37, "No locks available")


def test_what_has_no_lock_is_left_for_a_day(tmp_path):
    old = [tmp_path / f".made.partial-{os.getpid()}", tmp_path / ".made.partial-12"]
    for path in old:
        path.mkdir()
    sweep(tmp_path)
    assert all(path.is_dir() for path in old)
    age(old[0])
    sweep(tmp_path)
    assert hidden(tmp_path) == [".made.partial-12"]


def test_other_names_are_nobodys_to_remove(tmp_path):
    others = [".made", "made.partial-0123456789ab", ".made.partial-notes", ".made.partial-0123456789ab.txt", ".a.unfinished"]
    for name in others:
        (tmp_path / name).write_text("")
        age(tmp_path / name)
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
    assert not any(is_partial(tmp_path / name) for name in others)


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (tmp_path / "work").mkdir()
    link = tmp_path / "work" / ".made.partial-0123456789ab"
    link.symlink_to(precious)
    link.with_name(link.name + ".lock").write_text(partial._kernel())
    sweep(tmp_path / "work")
    assert hidden(tmp_path / "work") == [] and (precious / "file").exists()


def test_a_name_is_gone_after_its_block_whatever_was_made_of_it(tmp_path):
    for make in (lambda path: path.mkdir(), lambda path: path.write_text("x"), lambda path: None):
        with beside(tmp_path / "x") as path:
            make(path)
            assert len(hidden(tmp_path)) == 1 + path.exists()
        assert hidden(tmp_path) == []
    with pytest.raises(FileNotFoundError), beside(tmp_path / "none" / "x"):
        pytest.fail("must not run")
    with scratch_folder(tmp_path, "x") as one, scratch_folder(tmp_path, "x") as other:
        assert one != other and one.is_dir() and other.is_dir()


ALONE = """
import sys
from pathlib import Path
from phi3mobile.partial import alone
with alone(Path(sys.argv[1])) as first:
    assert first
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_one_at_a_time(tmp_path):
    target = tmp_path / ".out.unfinished"
    target.mkdir()
    with child(ALONE, target) as process:
        with alone(target) as first:
            assert not first
        process.send_signal(signal.SIGKILL)
        process.wait()
        with alone(target) as first, alone(target) as second:
            assert first and not second
    assert hidden(tmp_path) == [".out.unfinished"]


@pytest.mark.skipif(platform.system() != "Linux", reason="boot_id is Linux's")
def test_the_kernel_is_told_by_its_boot():
    assert partial._kernel() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
