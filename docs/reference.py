"""The API reference of the public packages, as HTML: python docs/reference.py OUT. `make docs` calls it.

Any warning of pdoc's (a name that does not resolve, a module that can't be imported) is an error.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import pdoc

PACKAGES = (
    "errors",
    "session",
    "text",
    "engines",
    "models",
    "retrieval",
    "bundle",
)  # `export` comes with phi3mobile's own names


def write(out: Path, source: bool = True) -> list[str]:
    """Write the pages to `out`, with the source beside each name or without; returns the modules' names."""
    packages = ["phi3mobile", *(f"phi3mobile.{name}" for name in PACKAGES)]
    for package in map(importlib.import_module, packages):
        for name in getattr(package, "__all__", ()):  # pdoc looks into the module, and some are imported on first use
            setattr(package, name, getattr(package, name))
    chosen = [*packages, "!phi3mobile.export.verbs", "!phi3mobile.models.families"]
    pdoc.render.configure(show_source=source)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"pdoc\b")
        pdoc.pdoc(*chosen, output_directory=out)
    return pdoc.extract.walk_specs(chosen)


if __name__ == "__main__":
    print(f"{len(write(Path(sys.argv[1])))} modules in {sys.argv[1]}")
