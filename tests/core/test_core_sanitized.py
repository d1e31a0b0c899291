"""The core without the runtime under AddressSanitizer, UBSan and ThreadSanitizer: damaged input, threads, cancel storms."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import pytest
from scenarios import VOCAB, ChainEngine, write_bundle
from seeing import write_seeing_bundle

from phi3mobile.engines.native import native_library

SOURCES = Path(__file__).parents[2] / "phi3mobile" / "core" / "src"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")]


@functools.cache
def built(sanitizer: str, folder: Path) -> Path:
    """core_check under a sanitizer: minutes, once for all modes."""
    files = [path for room in ("base", "text", "session", "guide") for path in sorted((SOURCES / room).glob("*.cpp"))]
    files = [path for path in files if path.name != "api.cpp"]
    files += [SOURCES / name for name in ("bundle.cpp", "state.cpp", "core_check.cpp")]
    program = folder / f"core_check_{sanitizer}"
    flags = ["-std=c++17", "-O1", "-g1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", f"-I{SOURCES}", "-pthread"]
    subprocess.run(["c++", *flags, *files, "-o", program], check=True)
    return program


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("built")


@pytest.mark.parametrize(
    ("mode", "sanitizer"),
    [("fuzz", "address,undefined"), ("pictures", "address,undefined"), ("guided", "address,undefined"), ("threads", "thread")],
)
def test_core_check(mode, sanitizer, folder, tmp_path):
    program = built(sanitizer, folder)
    if mode == "pictures":
        bundle = write_seeing_bundle(
            tmp_path / "bundle", ChainEngine(VOCAB, max_context=1200, max_chunk=500, original_context=700)
        )
    else:
        bundle = write_bundle(tmp_path / "bundle", ChainEngine(VOCAB, max_context=90, original_context=50, back=20))
    library = native_library().with_name("libllguidance.so") if native_library() else None
    if mode == "guided" and not (library and library.is_file()):
        pytest.skip("this build has no constrained output")
    done = subprocess.run([program, mode, bundle, "20", *([library] if library else [])], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
