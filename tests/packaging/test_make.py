"""`make native`, the part of `make demo` that compiles: one line on the screen, the compiler's in a log."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, cmake: str) -> subprocess.CompletedProcess:
    """`make native` in a checkout whose cmake is a script."""
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("pyproject.toml", "phi3mobile/core/CMakeLists.txt", ".venv/.installed", ".venv/bin/cmake"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    for name in ("export", "bench", "training", "apps/assistant", "phi3mobile/native"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / ".venv" / "bin" / "cmake").write_text(f"#!/bin/sh\n{cmake}\n")
    (folder / ".venv" / "bin" / "cmake").chmod(0o755)
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    return subprocess.run(["make", "native"], cwd=folder, capture_output=True, text=True, env=outside)


def test_the_compiler_writes_to_a_log(tmp_path):
    chatter = 'echo "cc1plus: warning"; echo "note: in expansion of macro" >&2'
    done = make(tmp_path, chatter)
    assert (done.returncode, done.stdout, done.stderr) == (0, "building the kernels (build/native.log)\n", "")
    assert (tmp_path / "build" / "native.log").read_text().count("cc1plus: warning") == 3  # configure, build, install
    assert make(tmp_path, "exit 1").returncode != 0


def test_what_went_wrong_is_shown(tmp_path):
    done = make(tmp_path, 'echo "error: no such header" >&2; exit 3')
    assert done.returncode != 0 and "error: no such header" in done.stdout
    assert "the kernels were not built: all of it is in build/native.log" in done.stdout
