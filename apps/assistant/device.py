"""The engine of a bundle on this device: on a phone our library where the app has it, else ExecuTorch's package."""

from __future__ import annotations

import os
import sys
from typing import Any

from phi3mobile.assistant.bundles import TOO_LARGE, describe
from phi3mobile.assistant.meters import memory_free
from phi3mobile.engines import registry
from phi3mobile.engines.phone import app_library_runs
from phi3mobile.errors import InputError


def device() -> str:
    """android, ios or desktop."""
    if sys.platform == "android" or "ANDROID_ARGUMENT" in os.environ:
        return "android"
    return "ios" if sys.platform == "ios" else "desktop"


def open_engine(bundle: Any, threads: int = 0) -> Any:
    """Raises InputError: not enough memory (before anything is loaded), or a bundle that this device can't run.

    `threads`: 0 leaves the number to the engine; an iPhone's takes no other.
    """
    where = device()
    if where == "desktop":
        return registry.open_engine(bundle, threads)  # checks the memory itself
    choice = describe(bundle.folder, memory_free())
    if choice.verdict == TOO_LARGE:
        raise InputError(f"not enough memory: {choice.sentence}; close other apps or choose a smaller model")
    if app_library_runs(bundle):
        return registry.open_engine(bundle, threads)
    if bundle.own_operators and where == "android":
        raise InputError(f"{choice.name} needs kernels that this app lacks; export it with --recipe android-cpu")
    if where == "android":
        from phi3mobile.engines.android import AndroidEngine

        return AndroidEngine(bundle.program, bundle.info, threads)
    from phi3mobile.engines.apple import AppleEngine

    return AppleEngine(bundle.program, bundle.info)
