"""phi3mobile: any Phi-3 checkpoint in, a verified 4-bit bundle for a phone out, and the session that runs it."""

from __future__ import annotations

from phi3mobile.errors import InputError

TYPE_CHECKING = False  # type checkers know the name; importing typing takes a tenth of `phi3mobile --help`
if TYPE_CHECKING:
    from phi3mobile.export.build import export
    from phi3mobile.models.loading import load_model
    from phi3mobile.session.conversation import Conversation
    from phi3mobile.session.guidance import Guide
    from phi3mobile.session.sampling import Sampling
    from phi3mobile.session.session import Session
    from phi3mobile.session.statistics import Statistics

__all__ = ["Conversation", "Guide", "InputError", "Sampling", "Session", "Statistics", "export", "load_model"]

_HOMES = {
    "Conversation": "phi3mobile.session.conversation",
    "Guide": "phi3mobile.session.guidance",
    "Statistics": "phi3mobile.session.statistics",
    "Sampling": "phi3mobile.session.sampling",
    "Session": "phi3mobile.session.session",
    "load_model": "phi3mobile.models.loading",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str):
    """Imported on first use: `import phi3mobile` costs no torch."""
    import importlib

    if name == "export":
        return importlib.import_module("phi3mobile.export")  # callable: see export/__init__.py
    if name not in _HOMES:
        raise AttributeError(f"module 'phi3mobile' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
