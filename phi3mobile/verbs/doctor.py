"""phi3mobile doctor: what is installed, which kernels run, which extras are missing, memory, disk and caches. No torch."""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError

PACKAGES = (
    "phi3mobile",
    "executorch",
    "torch",
    "torchao",
    "coremltools",
    "ai-edge-litert",
    "coreai-core",
    "transformers",
    "numpy",
    "tokenizers",
    "llguidance",
    "kivy",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clear-cache", action="store_true", help="delete all caches but what a running model has mapped")


def run(args: argparse.Namespace) -> None:
    from phi3mobile.screen import print_json

    cleared = clear_cache() if args.clear_cache else None
    report = examine()
    if cleared is not None:
        report["cleared"] = cleared
    _show(report)
    print_json(report)


def examine() -> dict[str, Any]:
    """The report; sizes in bytes. Raises nothing: what can't be had is null or has an `error`."""
    from phi3mobile import extras

    lacking = []
    for extra, packages in sorted(extras.needs().items()):
        if absent := extras.missing(packages):
            how = extras.command(extra, packages) if extra else "pip install --force-reinstall phi3mobile"
            lacking.append({"extra": extra, "missing": absent, "command": how})
    return {
        "packages": {name: extras.installed(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "native": _native(),
        "extras": lacking,
        "memory": _memory(),
        "disk": _disk(),
        "cache": _cache(),
    }


def _native() -> dict[str, Any]:
    from phi3mobile.engines.native import load_library, native_library
    from phi3mobile.quiet import quiet

    try:
        library = load_library()
    except InputError as error:
        return {"error": str(error)}
    with quiet():  # the first question about threads makes the runtime tell of the processor
        threads = library.p3m_threads()
    runtime = library.p3m_runtime_version().decode()
    return {"library": str(native_library()), "isa": library.p3m_isa().decode(), "executorch": runtime, "threads": threads}


def _memory() -> dict[str, int]:
    import psutil

    memory = psutil.virtual_memory()
    return {"total": memory.total, "available": memory.available}


def _disk() -> dict[str, Any]:
    from phi3mobile.files import cache_root

    root = cache_root()
    for folder in (root, *root.parents):
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            continue
        return {"folder": str(folder), "total": usage.total, "free": usage.free}
    return {"folder": str(root), "total": None, "free": None}


def _cache() -> dict[str, Any]:
    """The cache folder and its parts, the largest first."""
    from phi3mobile.engines.packed_cache import LIMIT
    from phi3mobile.files import cache_root

    root = cache_root()
    try:
        children = sorted(root.iterdir())
    except FileNotFoundError:
        children = []
    except OSError as error:
        return {"folder": str(root), "bytes": 0, "parts": [], "error": f"can't be read: {error.strerror}"}
    sizes = sorted(((child.name, _bytes(child)) for child in children), key=lambda part: -part[1])
    parts = [{"name": name, "bytes": bytes_} for name, bytes_ in sizes]
    return {"folder": str(root), "bytes": sum(bytes_ for _, bytes_ in sizes), "packed_limit": LIMIT, "parts": parts}


def _bytes(path: Path) -> int:
    """On disk, below `path`, links not followed."""
    total = 0
    for file in (path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())):
        try:
            status = file.lstat()
        except OSError:
            continue
        total += 0 if file.is_dir() and not file.is_symlink() else status.st_size
    return total


def clear_cache() -> dict[str, Any]:
    """Deletes what lies in the cache folder, but packed weights that a process has mapped. Raises InputError."""
    from phi3mobile.engines import packed_cache
    from phi3mobile.files import cache_root
    from phi3mobile.partial import is_partial, sweep

    root, kept = cache_root(), []
    before = _cache()
    if "error" in before:
        raise InputError(f"the cache folder {root} {before['error']}; set XDG_CACHE_HOME to a folder of yours")
    try:
        sweep(root)
        for child in sorted(root.iterdir()) if root.is_dir() else ():
            if is_partial(child):  # of a run that still writes there
                kept += [str(child)] if child.suffix != ".lock" else []
            elif child == packed_cache.folder() and child.is_dir() and not child.is_symlink():
                kept += _clear_packed(child)
            elif child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
    except OSError as error:
        raise InputError(f"{error.filename} can't be deleted ({error.strerror}); delete {root} by hand") from None
    return {"bytes": before["bytes"] - _cache()["bytes"], "kept": kept}


def _clear_packed(folder: Path) -> list[str]:
    """What is kept: files that a running process has mapped, with the marks beside them."""
    from phi3mobile.engines import packed_cache
    from phi3mobile.partial import is_partial, sweep

    sweep(folder)
    held = {file for file in folder.glob(f"*{packed_cache.SUFFIX}") if packed_cache.is_locked(file)}
    for file in folder.iterdir():
        if file not in held and file.with_suffix("") not in held and not is_partial(file):
            shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
    return sorted(map(str, held))


def _show(report: dict[str, Any]) -> None:
    from phi3mobile.screen import print_card, size

    packages = ", ".join(f"{name} {version}" for name, version in report["packages"].items() if version)
    absent = [name for name, version in report["packages"].items() if not version]
    native, memory, disk, cache = report["native"], report["memory"], report["disk"], report["cache"]
    kernels = native.get("error") or (
        f"{native['library']}\n{native['isa']}, ExecuTorch {native['executorch']}, {native['threads']} threads"
    )
    space = size(disk["free"]) + " free at " + disk["folder"] if disk["free"] is not None else "unknown"
    rows = {
        "installed": packages + (f"\nnot: {', '.join(absent)}" if absent else ""),
        "Python": f"{report['python']} at {sys.executable}, {report['system']}",
        "kernels": kernels,
        "memory": f"{size(memory['available'])} free of {size(memory['total'])}",
        "disk": space,
        "cache": f"{cache['folder']}: " + (cache.get("error") or f"{size(cache['bytes'])}"),
    }
    if cache["parts"]:
        rows["cache"] += "\n" + "\n".join(f"{size(part['bytes']):>9}  {part['name']}" for part in cache["parts"][:6])
        if len(cache["parts"]) > 6:
            rows["cache"] += f"\n           and {len(cache['parts']) - 6} smaller"
    if "cleared" in report:
        rows["cleared"] = size(report["cleared"]["bytes"])
        if report["cleared"]["kept"]:
            rows["cleared"] += "; in use and kept:\n" + "\n".join(report["cleared"]["kept"])
    print_card("phi3mobile doctor", rows)
    if report["extras"]:
        print_card(
            "Extras that are not complete, and what brings them", {e["extra"] or "(base)": _how(e) for e in report["extras"]}
        )


def _how(entry: dict[str, Any]) -> str:
    """The command; where little is missing, what."""
    few = len(entry["missing"]) <= 2
    return (f"lacks {', '.join(entry['missing'])}: " if few else "") + entry["command"]
