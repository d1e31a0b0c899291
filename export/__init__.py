"""Checkpoint -> bundle. `phi3mobile.export(...)` is build.export: the package can be called."""

from __future__ import annotations

import sys
from functools import cached_property
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """`phi3mobile.export` is a subpackage and, in the Python API, a function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    @cached_property
    def __wrapped__(self) -> Any:
        """build.export: inspect.signature and help take signature and text from it."""
        from phi3mobile.export.build import export

        return export


sys.modules[__name__].__class__ = _Package
