"""The kernels and a whole program on arm64: cross-built by Debian's compiler, run under qemu-user (make test-arm64)."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exported import psnr, talking_checkpoint

from phi3mobile.bundle import Bundle, open_bundle
from phi3mobile.engines.native import NativeEngine, native_library
from phi3mobile.export.build import export
from phi3mobile.session.session import Session

pytestmark = pytest.mark.slow
needs_kernels = pytest.mark.skipif(native_library() is None, reason="the native library is not built (make native)")

HERE = Path(__file__).parent
FOLDER = HERE.parents[2] / "build" / "arm64"


@functools.cache
def built() -> None:
    """Skips with the reason where the cross compiler, the emulator or the aarch64 libraries can't be had."""
    made = subprocess.run([HERE / "build.sh", FOLDER, sys.executable], capture_output=True, text=True)
    if made.returncode == 3:
        pytest.skip(f"no arm64 tools: {made.stdout.strip()}")
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]


def emulate(program: str, *arguments: str | Path, processor: str = "cortex-a76") -> str:
    built()
    libraries = f"{FOLDER}/wheel/executorch/lib:{FOLDER}/native"
    # A core with dot products. With int8 matrix products ("-cpu max") XNNPACK's 4-bit prefill is wrong under qemu 7.2, whose
    # fault that is we could not tell without a device.
    qemu = [FOLDER / "root/usr/bin/qemu-aarch64-static", "-cpu", processor, "-L", FOLDER / "root/usr/aarch64-linux-gnu"]
    command = [*qemu, "-E", f"LD_LIBRARY_PATH={libraries}", FOLDER / "native" / program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LD_LIBRARY_PATH": ""})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_loops_match_float64():
    """Every shape within 1e-5 of the float64 formula, as on x86-64: so within 2e-5 of each other."""
    assert "baseline: largest relative error" in emulate("attention_check")


@pytest.mark.parametrize("processor", ["cortex-a76", "cortex-a53"])  # with and without the dot product
def test_tiles_match_float64(processor):
    """Products of experts, 1 to 16 rows: each within 1e-5 of float64, and the same bits alone and among others."""
    assert "best: largest relative error" in emulate("tiles_check", processor=processor)


def test_operators_match_float64():
    """Random calls of the operators, dense, sparse and evicting, each within 1e-5 of the float64 formula."""
    assert "none wrong" in emulate("attention_fuzz", "60", "3")


def same_on_arm64(folder: Path, scratch: Path, count: int = 40) -> Bundle:
    """Prefill and decode of a quantized model: int8 activations may round differently, so PSNR and not equality."""
    bundle = open_bundle(folder)
    tokens = np.random.default_rng(0).integers(0, bundle.info.vocab, count)
    emulate("run_pte", bundle.program, scratch / "logits", *map(str, tokens))
    got = np.fromfile(scratch / "logits", np.float32).reshape(count, -1)
    engine, half = NativeEngine(bundle.program, bundle.info, None), count // 2
    steps = (engine.forward(tokens[at : at + 1], at) for at in range(half, count))
    want = np.concatenate([engine.forward(tokens[:half], 0), *steps])
    engine.close()
    said = want[0] > -1e30  # phi-3-small masks some ids
    assert np.array_equal(said, got[0] > -1e30) and psnr(want[:, said], got[:, said]) >= 40
    return bundle


@needs_kernels
@pytest.mark.parametrize("recipe", ["host", "host-fp32-kv"])
def test_whole_program(recipe: str, bundle_of: Callable[..., Path], tmp_path: Path):
    same_on_arm64(bundle_of("tiny-gqa", recipe), tmp_path)


@needs_kernels
@pytest.mark.parametrize("context", [256, 1024])
def test_phi_3_small(context: int, tmp_path: Path):
    """Past the local blocks (24 tokens); with 1024 positions the sparse layers' caches evict."""
    limits = {"max_position_embeddings": 1024, "original_max_position_embeddings": 1024}
    checkpoint = talking_checkpoint(tmp_path / "checkpoint", "small-tiny", num_hidden_layers=2, **limits)
    bundle = same_on_arm64(export(checkpoint, tmp_path / "bundle", "host", context, method="rtn"), tmp_path, 120)
    assert (bundle.info.back is not None) == (context == 1024)


@needs_kernels
def test_the_core_answers_without_python(bundle_of: Callable[..., Path], tmp_path: Path):
    """p3m alone: the tokenizer's ids of awkward texts, and an answer; int8 rounds differently, so its start is compared."""
    folder = bundle_of("tiny-gqa", "host")
    bundle = open_bundle(folder)
    for text in ("the sea", "é 🙂\n 12345  <|end|> x", "\ufdfa and \u0130"):
        assert emulate("p3m", "tokens", folder, text).split() == [str(i) for i in bundle.tokenizer.encode(text)]
    with Session(bundle) as session:
        expected = "".join(session.generate([{"role": "user", "content": "the sea"}], max_tokens=12))
    found = emulate("p3m", "run", folder, "the sea", "--max-tokens", "12", "--cache", str(tmp_path / "cache"))
    again = emulate("p3m", "run", folder, "the sea", "--max-tokens", "12", "--cache", str(tmp_path / "cache"))
    assert found == again and found.endswith("\n") and found[:4] == expected[:4]


@needs_kernels
def test_a_mixture_answers(bundle_of: Callable[..., Path], tmp_path: Path):
    """Experts packed and run by arm64's kernels: the answer's start is x86-64's, also with memory for half of them."""
    folder = bundle_of("moe-tiny", "host")
    with Session(folder) as session:
        expected = "".join(session.generate([{"role": "user", "content": "the sea"}], max_tokens=12))
    asked = ("run", folder, "the sea", "--max-tokens", "12", "--cache", str(tmp_path / "cache"))
    found = emulate("p3m", *asked)
    assert found[:4] == expected[:4]
    few = str(open_bundle(folder).manifest["runtime"]["experts"]["bytes"] // 2)
    assert emulate("p3m", *asked, "--experts-memory", few) == found
