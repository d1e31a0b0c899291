"""The native library as bionic would load it: compiled and linked by Zig, read by readelf, not run (apps/android/gate.py)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from conftest import FOLDER, ROOT, built
from test_packages import native_methods

pytestmark = pytest.mark.slow
ALLOWED = set(" ".join(line.partition(": ")[2] for line in (ROOT / "apps/android/gate/bionic.txt").read_text().splitlines()
                       if not line.startswith("#")).split())  # fmt: skip


@pytest.fixture(scope="session", params=["arm64-v8a", "x86_64"])
def library(request) -> Path:
    if not (FOLDER / "zig" / "ziglang").is_dir():
        pytest.skip("Zig is not in build/android: make android")
    built("gate")
    return FOLDER / "gate" / request.param / "libphi3mobile_gate.so"


def readelf(library: Path, *arguments: str) -> str:
    return subprocess.run(["readelf", "-W", *arguments, library], capture_output=True, text=True, check=True).stdout


def test_what_it_needs(library):
    """Android's own libraries, ExecuTorch, and the stand-in for what that lacks; no libc++_shared, no text relocations."""
    said = readelf(library, "-d")
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", said))
    assert {"libc.so", "libexecutorch_jni.so"} <= needed
    assert needed <= {"libc.so", "libdl.so", "libm.so", "libexecutorch_jni.so", "librest.so"}
    assert "TEXTREL" not in said and "RPATH" not in said and "RUNPATH" not in said


def test_names_and_versions(library):
    names = re.findall(r"UND (\S+?)@(\w+)", readelf(library, "--dyn-syms"))
    assert {version for _, version in names} == {"LIBC"} and len(names) > 30
    assert {name for name, _ in names} <= ALLOWED


def test_segments_of_16_kilobytes(library):
    loads = [line.split() for line in readelf(library, "-l").splitlines() if line.split()[:1] == ["LOAD"]]
    assert len(loads) >= 3 and {int(load[-1], 16) for load in loads} == {0x4000}
    assert not any("W" in load[6:-1] and "E" in load[6:-1] for load in loads)


def test_it_exports_jni_and_the_c_api(library):
    rows = [line.split() for line in readelf(library, "--dyn-syms").splitlines()]
    exported = {row[7].split("@")[0] for row in rows if len(row) > 7 and row[6] != "UND" and row[4] in ("GLOBAL", "WEAK")}
    assert exported >= {f"Java_org_phi3mobile_Native_{name}" for name in native_methods()} | {"JNI_OnLoad", "p3m_session_open"}
    assert [name for name in exported if not name.startswith(("Java_org_phi3mobile_", "JNI_OnLoad", "p3m_"))] == []


def test_it_is_small(library):
    assert library.stat().st_size <= 3 << 20
