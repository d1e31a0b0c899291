"""Engines run a model one forward at a time; everything above them (sampling, chat, reuse) is the Session's."""

from __future__ import annotations

from phi3mobile.engines.base import (
    LONG_REGIME,
    BaseEngine,
    Engine,
    check_bundle,
    check_forward,
    check_memory,
    check_operators,
    check_version,
    marked,
)
from phi3mobile.info import EngineInfo

__all__ = [
    "LONG_REGIME",
    "BaseEngine",
    "Engine",
    "EngineInfo",
    "check_bundle",
    "check_forward",
    "check_memory",
    "check_operators",
    "check_version",
    "marked",
]
