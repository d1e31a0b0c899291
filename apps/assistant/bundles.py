"""The bundle picker's list: what lies in the model folders, and whether it fits this device's memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from phi3mobile.assistant.meters import memory_free
from phi3mobile.bundle import is_bundle
from phi3mobile.bundle_v1 import upgraded
from phi3mobile.manifest import MANIFEST

FITS, TIGHT, TOO_LARGE, DAMAGED, UNKNOWN = "fits", "tight", "too large", "damaged", "unknown"
_TIGHT_SHARE = 0.8  # of the free memory


@dataclass(frozen=True)
class Choice:
    """A bundle as listed, before any of its files is read but the manifest."""

    path: Path
    name: str
    verdict: str  # one of the above
    sentence: str  # sizes and the verdict, for people
    size: int = 0  # bytes on disk
    needs: int = 0  # bytes of memory that must be free: KV cache, activations, and weights where the runtime copies them
    recipe: str = ""


def choices(folders: Iterable[Path], free: int | None = None) -> list[Choice]:
    """Bundles in `folders` (each may be a bundle itself), what fits first; `free`: bytes, default: this device's."""
    free = memory_free() if free is None else free
    found: dict[Path, None] = {}
    for folder in folders:
        try:
            inside = sorted(folder.iterdir()) if folder.is_dir() else []
        except OSError:
            inside = []
        for path in (folder, *inside):
            if is_bundle(path) and not path.name.startswith("."):
                found[path.resolve()] = None
    order = (FITS, UNKNOWN, TIGHT, TOO_LARGE, DAMAGED).index
    listed = _told_apart([describe(path, free) for path in found])
    return sorted(listed, key=lambda choice: (order(choice.verdict), choice.name.lower(), str(choice.path)))


def describe(path: Path, free: int | None) -> Choice:
    """One bundle's entry; never raises."""
    try:
        manifest = upgraded(json.loads((path / MANIFEST).read_text("utf-8")))
        memory, context = manifest["memory"], manifest["model"]["context"]
        size = sum(listed["bytes"] for listed in manifest["files"].values())
        loaded = 0 if manifest["weights_mapped"] else memory["weights"]
        needs = memory["kv_per_token"] * context + memory["activations"] + loaded
        name = str(manifest["name"])
        mapped = f" and {memory['weights'] / 1e9:.2f} GB of its file" if manifest["weights_mapped"] else ""
        about = f"{size / 1e9:.2f} GB on disk, {needs / 1e9:.2f} GB of memory{mapped} at {context} tokens"
        recipe = str(manifest["recipe"]["name"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Choice(path, path.name, DAMAGED, "its description can't be read: copy the bundle again")
    if free is None:
        return Choice(path, name, UNKNOWN, about, size, int(needs), recipe)
    if needs > free:
        return Choice(path, name, TOO_LARGE, f"{about}; {free / 1e9:.2f} GB are free", size, int(needs), recipe)
    verdict = TIGHT if needs > free * _TIGHT_SHARE else FITS
    return Choice(path, name, verdict, f"{about}; {free / 1e9:.1f} GB are free", size, int(needs), recipe)


def _told_apart(listed: list[Choice]) -> list[Choice]:
    """Those of one name by their recipes, those of one name and recipe by their folders, too."""
    for detail in (lambda choice: choice.recipe, lambda choice: choice.path.name):
        count = Counter(choice.name for choice in listed)
        listed = [
            replace(choice, name=f"{choice.name}, {detail(choice)}") if count[choice.name] > 1 and detail(choice) else choice
            for choice in listed
        ]
    return listed
