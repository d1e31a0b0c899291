"""Kernels and runner as arm64 macOS objects, by Zig's compiler (make test-macos). Compiled only: no Mac links or runs them."""

import importlib.metadata
import importlib.util
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed: make test-macos"),
]

CORE = Path(__file__).parents[3] / "phi3mobile" / "core"
SOURCES = sorted(
    str(path.relative_to(CORE))
    for path in CORE.rglob("*.cpp")
    if path.name not in ("attention_check.cpp", "attention_fuzz.cpp", "core_check.cpp", "tiles_check.cpp")  # tests of their own
)
MAGIC, ARM64, OBJECT = 0xFEEDFACF, 0x0100000C, 1  # of a Mach-O header


def options() -> list[str]:
    """What CMakeLists.txt gives the compiler on an Apple machine."""
    (folder,) = importlib.util.find_spec("executorch").submodule_search_locations
    include = Path(folder) / "include"
    c10 = include / "executorch" / "runtime" / "core" / "portable_type" / "c10"
    defined = ("C10_USING_CUSTOM_GENERATED_MACROS", "ET_EVENT_TRACER_ENABLED", "ET_USE_THREADPOOL", "P3M_ISA=baseline")
    version = importlib.metadata.version("executorch")
    return [
        *("-target", "aarch64-macos", "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
        *(f"-D{name}" for name in defined),
        f'-DP3M_RUNTIME_VERSION="{version}"',
        *(f"-I{CORE / name}" for name in ("include", "kernels", "src")),
        *(part for path in (include, c10) for part in ("-isystem", str(path))),
    ]


@pytest.mark.parametrize("source", SOURCES)
def test_compiles_to_an_arm64_object(source, tmp_path):
    made = tmp_path / "object.o"
    command = [sys.executable, "-m", "ziglang", "c++", *options(), "-c", str(CORE / source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, shlex.join(command) + "\n" + done.stderr[-3000:]
    magic, cpu, _, kind = struct.unpack_from("<IIII", made.read_bytes())
    assert (magic, cpu, kind) == (MAGIC, ARM64, OBJECT)
