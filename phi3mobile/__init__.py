"""phi3mobile: any Phi-3 checkpoint in, a verified 4-bit bundle for a phone out, and the session that runs it."""

from __future__ import annotations

from phi3mobile.errors import InputError

TYPE_CHECKING = False  # type checkers know the name; importing typing takes a tenth of `phi3mobile --help`
if TYPE_CHECKING:
    from phi3mobile import export
    from phi3mobile.models.loading import load_model
    from phi3mobile.session.sampling import Sampling
    from phi3mobile.session.session import Session

__all__ = ["InputError", "Sampling", "Session", "export", "load_model"]

_HOMES = {
    "Sampling": "phi3mobile.session.sampling",
    "Session": "phi3mobile.session.session",
    "load_model": "phi3mobile.models.loading",
}


def __getattr__(name: str):
    """Imported on first use: `import phi3mobile` costs no torch."""
    import importlib

    if name == "export":
        return importlib.import_module("phi3mobile.export")  # callable: see export/__init__.py
    if name not in _HOMES:
        raise AttributeError(f"module 'phi3mobile' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
