"""Checkpoint -> bundle. `phi3mobile.export(...)` is build.export: the package can be called."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType


class _Package(ModuleType):
    """`phi3mobile.export` is a subpackage and, in the Python API, a function."""

    def __call__(self, *args, **kwargs) -> Path:
        from phi3mobile.export.build import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
