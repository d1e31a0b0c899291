"""What runs a .pte on the phone that this is, if it is one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from phi3mobile.engines.base import Engine
from phi3mobile.info import EngineInfo

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle


def phone_engine() -> Callable[[Path, EngineInfo], Engine] | None:
    """AndroidEngine, AppleEngine, or None on a computer."""
    if hasattr(sys, "getandroidapilevel"):
        from phi3mobile.engines.android import AndroidEngine

        return AndroidEngine
    if sys.platform == "ios":
        from phi3mobile.engines.apple import AppleEngine

        return AppleEngine
    return None


def app_library_runs(bundle: Bundle) -> bool:
    """Whether this is an Android app with our library, and that has the bundle's operators. InputError: it does not load."""
    if not hasattr(sys, "getandroidapilevel"):
        return False
    from phi3mobile.engines.native import load_library, native_library

    if native_library() is None:
        return False
    library = load_library()
    return all(library.p3m_has_operator(name.encode()) for name in bundle.manifest["runtime"]["operators"])
