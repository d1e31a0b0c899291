"""What every engine checks before it loads a bundle."""

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from phi3mobile.bundle import open_bundle
from phi3mobile.engines import check_memory, check_version
from phi3mobile.engines.native import native_library
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError

MEMORY = {"weights": 2_040_000_000, "kv_per_token": 400_000, "activations": 50_000_000, "peak": {}}


def free(monkeypatch, count):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=count))


def test_memory_is_checked_with_numbers(monkeypatch):
    free(monkeypatch, 1_700_000_000)
    check_memory(MEMORY, 4000, weights_on_heap=False)
    with pytest.raises(InputError, match=r"needs 3\.7 GB of memory \(1\.6 GB KV cache for 4000 positions\), 1\.7 GB are free"):
        check_memory(MEMORY, 4000, weights_on_heap=True)
    with pytest.raises(InputError, match="smaller --context"):
        check_memory(MEMORY, 8000, weights_on_heap=False)


@pytest.mark.parametrize("recipe", ["android-cpu", "host"])
def test_a_bundle_too_large_for_the_machine_is_refused(recipe, bundle_of, monkeypatch):
    if recipe == "host" and native_library() is None:
        pytest.skip("the native library is not built: make native")
    bundle = open_bundle(bundle_of("tiny-gqa", recipe))
    free(monkeypatch, 1000)
    with pytest.raises(InputError, match="export with a smaller --context"):
        open_engine(bundle)


@pytest.mark.parametrize("recipe", ["android-cpu", "host"])
def test_operators_that_the_runtime_lacks_are_named_before_it_loads(recipe, bundle_of):
    if recipe == "host" and native_library() is None:
        pytest.skip("the native library is not built: make native")
    bundle = open_bundle(bundle_of("tiny-gqa", recipe))
    runtime = bundle.manifest["runtime"]
    runtime["operators"] += ["phi3mobile::flying.out", "aten::fly.out"]
    with pytest.raises(InputError, match=r"lacks the operators aten::fly\.out, phi3mobile::flying\.out; export with"):
        open_engine(bundle)
    runtime["operators"] = [name for name in runtime["operators"] if "fly" not in name]
    open_engine(bundle).close()


@pytest.mark.parametrize("installed", ["1.5.0", "1.5.1", "1.6.0", "1.6.3+cpu"])
def test_this_and_the_next_minor_version_run_a_program(installed):
    check_version("1.5.1", installed)


@pytest.mark.parametrize("installed", ["1.4.2", "1.7.0", "2.5.1", "0.9.0"])
def test_other_versions_are_refused(installed):
    with pytest.raises(InputError, match=rf"made for ExecuTorch 1\.5\.1, installed is {installed}"):
        check_version("1.5.1", installed)


def test_the_bindings_run_a_bundle_without_the_exporter(bundle_of):
    """Importing it would take seconds at every start."""
    code = """
import sys
import numpy as np
from phi3mobile.bundle import open_bundle
from phi3mobile.engines.registry import open_engine
open_engine(open_bundle(sys.argv[1])).forward(np.arange(3), 0)
print(sorted({"executorch.exir", "torch._inductor", "torchao"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle_of("tiny-gqa", "android-cpu"))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
