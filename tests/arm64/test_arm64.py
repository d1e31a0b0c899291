"""The kernels and a whole program on arm64: cross-built by Debian's compiler, run under qemu-user (make test-arm64)."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exported import psnr

from phi3mobile.engines.native import NativeEngine, native_library

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "build" / "arm64"


@functools.cache
def built() -> None:
    """Skips with the reason where the cross compiler, the emulator or the aarch64 libraries can't be had."""
    made = subprocess.run([HERE / "build.sh", FOLDER, sys.executable], capture_output=True, text=True)
    if made.returncode == 3:
        pytest.skip(f"no arm64 tools: {made.stdout.strip()}")
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]


def emulate(program: str, *arguments: str | Path) -> str:
    built()
    libraries = f"{FOLDER}/wheel/executorch/lib:{FOLDER}/native"
    # A core with dot products. With int8 matrix products ("-cpu max") XNNPACK's 4-bit prefill is wrong under qemu 7.2, whose
    # fault that is we could not tell without a device.
    qemu = [FOLDER / "root/usr/bin/qemu-aarch64-static", "-cpu", "cortex-a76", "-L", FOLDER / "root/usr/aarch64-linux-gnu"]
    command = [*qemu, "-E", f"LD_LIBRARY_PATH={libraries}", FOLDER / "native" / program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LD_LIBRARY_PATH": ""})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_loops_match_float64():
    """Every shape within 1e-5 of the float64 formula, as on x86-64: so within 2e-5 of each other."""
    assert "baseline: largest relative error" in emulate("attention_check")


def test_operators_match_float64():
    """Random calls of the operators, dense, sparse and evicting, each within 1e-5 of the float64 formula."""
    assert "none wrong" in emulate("attention_fuzz", "60", "3")


@pytest.mark.skipif(native_library() is None, reason="the native library is not built (make native)")
@pytest.mark.parametrize("recipe", ["host", "host-fp32-kv"])
def test_whole_program(recipe: str, bundle_of: Callable[..., Path], tmp_path: Path):
    """Prefill and decode of a quantized model: int8 activations may round differently, so PSNR and not equality."""
    from phi3mobile.bundle import open_bundle

    bundle = open_bundle(bundle_of("tiny-gqa", recipe))
    tokens = np.random.default_rng(0).integers(0, bundle.info.vocab, 40)
    emulate("run_pte", bundle.program, tmp_path / "logits", *map(str, tokens))
    got = np.fromfile(tmp_path / "logits", np.float32).reshape(len(tokens), -1)
    engine = NativeEngine(bundle.program, bundle.info, None)
    want = [engine.forward(tokens[:20], 0), *(engine.forward(tokens[i : i + 1], i) for i in range(20, 40))]
    engine.close()
    assert psnr(np.concatenate(want), got) >= 40
