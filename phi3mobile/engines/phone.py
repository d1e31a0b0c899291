"""Which engine runs a .pte on the phone that this is, if it is one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from phi3mobile.engines.base import Engine
from phi3mobile.info import EngineInfo


def phone_engine() -> Callable[[Path, EngineInfo], Engine] | None:
    """AndroidEngine, AppleEngine, or None on a computer."""
    if hasattr(sys, "getandroidapilevel"):
        from phi3mobile.engines.android import AndroidEngine

        return AndroidEngine
    if sys.platform == "ios":
        from phi3mobile.engines.apple import AppleEngine

        return AppleEngine
    return None
