"""What bundles of format 1 leave unsaid: which engine runs them, whether it maps their weights, what they are made of.

Format 1 told it by the runtime's kind and by options of recipes; this file is the only reader of those that is left.
"""

from __future__ import annotations

from typing import Any

NAMES = {"executorch": "ExecuTorch", "coreml": "Core ML, made by coremltools", "litert": "LiteRT"}


def upgraded(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest as format 2 says it; one of format 2 as it is. KeyError, TypeError, AttributeError: damaged."""
    if manifest.get("format") != 1:
        return manifest
    runtime = dict(manifest["runtime"])
    kind, packages = runtime.pop("kind"), runtime.get("packages")
    native = manifest["recipe"].get("attention") == "native"
    if kind == "coreml":
        engine = "coreml-ane" if packages is not None else "coreml"
    elif kind == "executorch":
        engine = "coreml-delegate" if runtime.get("backend") == "CoreMLBackend" else "native" if native else "executorch"
    else:
        engine = kind  # the registry tells which ones there are
    root = runtime["program"]
    programs = [root] if packages is None else [f"{root}/{package}" for package in packages]
    return manifest | {
        "engine": engine,
        "weights_mapped": engine in ("native", "litert"),
        "programs": programs,
        "runtime": {"name": NAMES.get(kind, kind)} | runtime,
    }
