"""ModelStore's downloads from a server that fails: what arrives is whole and right, or is not there."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faulty
import pytest
from faulty import Server, cut, serving, slow, status

PROGRAM, PLENTY = "model.pte", str(1 << 40)


@pytest.fixture(scope="session")
def bundle(bundle_of: Callable[..., Path]) -> Path:
    return bundle_of("tiny-gqa", "host")


@pytest.fixture
def server(bundle: Path) -> Iterator[Server]:
    with serving(bundle) as state:
        yield state


@pytest.fixture
def download(check, server, tmp_path):
    """Runs it; what it printed. The store is tmp_path's."""
    return lambda *headers, attempts=4, free=PLENTY, address="": check(
        "download", server.folder, address or server.address, "m", str(attempts), free, *headers, scratch=tmp_path
    )


def same(one: Path, other: Path) -> bool:
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) for folder in (one, other)]
    return names[0] == names[1] and all((one / name).read_bytes() == (other / name).read_bytes() for name in names[0])


def test_a_bundle_arrives_whole(download, server, tmp_path):
    lines = download("Authorization=Bearer x")
    assert lines == ["done m null {}", "unfinished [] here [m]"]
    assert same(tmp_path / "models" / "m", server.folder)
    assert all(given["Authorization"] == "Bearer x" and given["Accept-Encoding"] == "identity" for given in server.headers)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["m"]
    assert "here already" in download()[0]


def test_cut_connections_go_on_where_they_ended(download, server, tmp_path):
    size = (server.folder / PROGRAM).stat().st_size
    server.faults = {PROGRAM: [cut(size // 4), cut(size // 4), cut(size // 4)], "manifest.json": [cut(10)]}
    lines = download()
    assert lines[-2:] == ["done m null {}", "unfinished [] here [m]"] and sum("waiting" in line for line in lines) == 4
    asked = server.requests(PROGRAM)
    assert [code for *_, code in asked] == [200, 206, 206, 206] and asked[1][1] is not None
    assert server.sent[PROGRAM] <= size + (4 << 14)
    assert same(tmp_path / "models" / "m", server.folder)


def test_a_server_without_ranges(download, server, tmp_path):
    server.ranges, server.faults = False, {PROGRAM: [cut(50_000)]}
    assert "done m null {}" in download()
    assert [code for *_, code in server.requests(PROGRAM)] == [200, 200]
    assert same(tmp_path / "models" / "m", server.folder)


def test_a_file_that_changed_meanwhile_is_fetched_anew(download, server, tmp_path):
    """If-Range names the version of the first half; the server has another, and sends all of it."""
    server.faults = {PROGRAM: [cut(50_000), faulty.another_version]}
    assert "done m null {}" in download()
    assert [code for *_, code in server.requests(PROGRAM)] == [200, 200]
    assert same(tmp_path / "models" / "m", server.folder)


@pytest.mark.parametrize("fault", [status(416), faulty.wrong_range])
def test_a_range_that_is_refused_or_another(download, server, tmp_path, fault):
    server.faults = {PROGRAM: [cut(50_000), fault]}
    assert "done m null {}" in download()
    assert same(tmp_path / "models" / "m", server.folder)


def test_wrong_bytes_are_fetched_once_more(download, server, tmp_path):
    server.faults = {PROGRAM: [faulty.wrong_bytes]}
    assert "done m null {}" in download()
    assert same(tmp_path / "models" / "m", server.folder)


def test_bytes_that_stay_wrong_are_refused(download, server, tmp_path):
    server.always = {PROGRAM: faulty.wrong_bytes}
    lines = download()
    assert lines[-2].startswith("refused") and "not what the manifest says" in lines[-2]
    assert lines[-1] == "unfinished [m] here []" and len(server.requests(PROGRAM)) == 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(404), "404"),
        (status(403), "headers"),
        (faulty.longer, "not whole"),
        (status(301), "does not say where"),
        (status(302, Location="http://example.invalid/x"), "https only"),
        (status(302, Location="/model.pte"), "for ever"),
    ],
)
def test_what_can_not_be_fetched_ends_at_once(download, server, fault, said):
    server.always = {PROGRAM: fault}
    lines = download()
    assert lines[-2].startswith("refused") and said in lines[-2] and not any("waiting" in line for line in lines)


@pytest.mark.parametrize("fault", [status(503), status(429, Retry_After="0"), cut(0)])
def test_failures_that_pass_are_waited_for(download, server, tmp_path, fault):
    server.faults = {PROGRAM: [fault, fault], "manifest.json": [fault]}
    lines = download()
    assert "done m null {}" in lines and sum("waiting" in line for line in lines) == 3


def test_attempts_end(download, server):
    server.always = {PROGRAM: status(503)}
    lines = download(attempts=3)
    assert "3 times in a row" in lines[-2] and "goes on from here" in lines[-2] and len(server.requests(PROGRAM)) == 3


def test_redirects_are_followed(download, server, bundle, tmp_path):
    """To another host too, which sees no headers of ours."""
    with serving(bundle) as other:
        server.always = {PROGRAM: status(302, Location=f"{other.address}/{PROGRAM}")}
        assert "done m null {}" in download("Authorization=secret")
        assert "Authorization" not in other.headers[0]


def test_no_room(download, server):
    lines = download(free="1000")
    assert "no room" in lines[-2] and server.requests(PROGRAM) == []


def test_http_is_refused_but_here(download):
    assert "https only" in download(address="http://192.0.2.1/x")[0]
    assert "no address" in download(address="nonsense")[0]


def test_a_manifest_that_leaves_its_folder(download, server, tmp_path):
    manifest = (server.folder / "manifest.json").read_text().replace('"model.pte":', '"../model.pte":')
    server.always = {"manifest.json": lambda answer: setattr(answer, "data", manifest.encode())}
    assert "files" in download()[-2] and not (tmp_path / "models" / "model.pte").exists()


def test_a_new_manifest_keeps_what_is_still_right(download, server, tmp_path):
    """Half of an old bundle is there; the server's program is another since."""
    server.always = {PROGRAM: status(404)}
    download()
    server.always = {}
    before = {path for path, *_ in server.seen}
    server.seen.clear()
    assert "done m null {}" in download()
    again = {path for path, *_ in server.seen}
    assert again == {"manifest.json", PROGRAM} | ({path.name for path in server.folder.iterdir()} - before)
    assert same(tmp_path / "models" / "m", server.folder)


@pytest.fixture
def large(bundle, tmp_path):
    """The bundle with 12 MB of noise for a program."""
    folder = tmp_path / "large"
    shutil.copytree(bundle, folder)
    noise = random.Random(0).randbytes(12 << 20)
    (folder / PROGRAM).write_bytes(noise)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][PROGRAM] = {"bytes": len(noise), "sha256": hashlib.sha256(noise).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with serving(folder) as state:
        yield state


def test_cancelling_stops_and_keeps(check, large, tmp_path):
    large.always = {PROGRAM: slow(0.001)}
    (line,) = check("stopped", large.folder, large.address, scratch=tmp_path)
    assert "another transfer" in line
    assert same(tmp_path / "models" / "m", large.folder)
    assert any(code == 206 for *_, code in large.requests(PROGRAM))


def test_a_killed_process_goes_on(check, large, tmp_path, java):
    """Killed in the middle of the program, three times."""
    size = (large.folder / PROGRAM).stat().st_size
    large.always = {PROGRAM: slow(0.001)}
    for share in (0.3, 0.6, 0.9):
        process = subprocess.Popen([*java, "download", large.folder, tmp_path, large.address, "m", "4", PLENTY])
        end = time.monotonic() + 60
        while large.sent.get(PROGRAM, 0) < share * size:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    large.always = {}
    assert "done m null {}" in check("download", large.folder, large.address, "m", "4", PLENTY, scratch=tmp_path)
    assert same(tmp_path / "models" / "m", large.folder)
    # What is lost with each death is what was under way: the sockets' buffers.
    assert large.sent[PROGRAM] < 2 * size and [code for *_, code in large.requests(PROGRAM)] == [200, 206, 206, 206]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_disk_that_fills_up(check, server, tmp_path):
    """The store says there is room; the disk has half of it."""
    small = tmp_path / "small"
    small.mkdir()
    size = (server.folder / PROGRAM).stat().st_size
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size // 2}", "none", small], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        lines = check("download", server.folder, server.address, "m", "4", PLENTY, scratch=small)
        assert "can't be written" in lines[-2] and "goes on from here" in lines[-2]
    finally:
        subprocess.run(["umount", small], check=True)


def test_copies_and_their_damages(check, bundle):
    check("copy", bundle)
