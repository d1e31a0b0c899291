"""What p3m is linked with: the core lies in it, ExecuTorch's libraries and the C and C++ runtime that they ask for do not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from phi3mobile.engines.native import native_library

pytestmark = [
    pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native"),
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("readelf") is None, reason="reads ELF files with readelf"),
]
RUNTIME = {
    f"libexecutorch{part}.so" for part in ("", "_threadpool", "_kernels_optimized", "_kernels_quantized", "_backend_xnnpack")
}


def p3m() -> Path:
    library = native_library()
    assert library is not None
    return library.with_name("p3m")


def runtime_folder() -> Path:
    """Where ExecuTorch's libraries are: beside p3m in a wheel, else the package's."""
    found = find_spec("executorch")
    assert found is not None and found.submodule_search_locations
    package = Path(next(iter(found.submodule_search_locations))) / "lib"
    return p3m().parent if (p3m().parent / "libexecutorch.so").exists() else package


def needed(file: Path) -> set[str]:
    said = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", said))


def test_it_asks_for_executorch_and_for_what_that_asks_for():
    asked = needed(p3m())
    assert asked >= RUNTIME and "libphi3mobile.so" not in asked
    system = set.union(*(needed(runtime_folder() / name) for name in RUNTIME)) - RUNTIME
    assert "libstdc++.so.6" in system  # why it is not linked in: one C++ runtime in a process
    assert asked - RUNTIME <= system


def test_it_runs_without_the_library(bundle_of, tmp_path):
    alone = shutil.copy(p3m(), tmp_path / "p3m")
    bundle = bundle_of("tiny-gqa", "host")
    command = [alone, "run", bundle, "The sea", "--raw", "--max-tokens", "6"]
    given = {"capture_output": True, "text": True, "env": os.environ | {"LD_LIBRARY_PATH": str(runtime_folder())}}
    beside = subprocess.run([p3m(), *command[1:]], **given)
    done = subprocess.run(command, **given)
    assert (done.returncode, done.stdout) == (0, beside.stdout) and len(done.stdout) > 1, done.stderr
