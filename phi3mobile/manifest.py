"""manifest.json of a bundle: what it must say, and reading it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from phi3mobile.bundle_v1 import upgraded
from phi3mobile.errors import InputError

FORMAT = 2  # 1 is read too: bundle_v1.py
MANIFEST = "manifest.json"


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value < 2**63


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 2**63


def _path_inside(value: Any) -> bool:
    return _text(value) and value not in ("", ".") and not value.startswith("/") and ".." not in Path(value).parts


def _or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _dict_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _file(value: Any) -> bool:
    return isinstance(value, dict) and _whole(0)(value.get("bytes")) and _text(value.get("sha256"))


VISION_FILES = ("program", "separators")
_VISION_NUMBERS = ("hidden", "width", "rows", "bits", "num_crops")

# What reading relies on: section.key -> test. More keys are fine (a later addition that older readers may ignore).
SCHEMA: dict[str, Callable[[Any], bool]] = {
    "name": _text,
    "family": _text,
    "engine": lambda value: _text(value) and value != "",  # engines/registry.py resolves it
    "weights_mapped": lambda value: isinstance(value, bool),  # pages of a file: memory that can be dropped and read again
    "programs": lambda value: _list_of(_path_inside)(value) and value != [],  # what the engine loads, in order
    "runtime.name": _text,
    "runtime.version": lambda value: _text(value) and bool(re.fullmatch(r"\d{1,6}\.\d{1,6}(\..*)?", value)),
    "runtime.operators": _list_of(_text),
    "runtime.program": _path_inside,
    "recipe.name": _text,
    "files": lambda value: _dict_of(_file)(value) and all(map(_path_inside, value)),
    **{
        f"model.{key}": _whole(1)
        for key in (
            "vocab",
            "context",
            "chunk",
            "max_context",
            "parameters",
            "layers",
            "hidden",
            "heads",
            "kv_heads",
            "head_dim",
        )
    },
    "model.original_context": _or_null(_whole(1)),
    "model.bits_per_weight": _number,
    "tokens.bos": _or_null(_whole(0)),
    "tokens.eos": _list_of(_whole(0)),
    "chat.template": _or_null(_text),
    "chat.bos": _text,
    "chat.eos": _text,
    "chat.segments": _or_null(lambda value: isinstance(value, dict)),
    **{f"memory.{key}": _number for key in ("weights", "kv_per_token", "activations")},
    "memory.peak": _dict_of(_number),
    "provenance.source": _text,
    "provenance.source_hash": _text,
    "provenance.tool": _text,
    "license": _or_null(_text),
}


def _quality(value: Any) -> bool:
    """A quality card: what it was made with, and the measures of the quantized model against the float one."""
    measures = ("bits_per_weight", "tokens", "perplexity_float", "perplexity", "ratio", "kl", "top1")
    return (
        isinstance(value, dict)
        and _text(value.get("method"))
        and isinstance(value.get("rotated", False), bool)
        and all(_number(value.get(key)) for key in measures)
        and isinstance(value.get("calibration"), dict)
        and isinstance(value.get("layers_db"), list)
        and all(type(decibels) in (int, float) and abs(decibels) < 2**63 for decibels in value["layers_db"])
    )


# The same of what older bundles lack.
LATER: dict[str, Callable[[Any], bool]] = {
    "model.back": _or_null(_whole(0)),
    "quality": _or_null(_quality),
    "generation": lambda value: isinstance(value, dict),
    "runtime.packs": lambda value: isinstance(value, bool),  # whether the runtime packs weights when it loads them
    "runtime.experts.file": _path_inside,  # of a mixture: its experts (engines/expert_file.py)
    **{
        f"runtime.experts.{key}": _whole(1)
        for key in ("used", "layers", "experts", "hidden", "inner", "group13", "group2", "bytes")
    },
    "runtime.experts.memory": _or_null(_whole(1)),  # bytes for them where nothing else is asked for
    **{f"vision.{part}": _path_inside for part in VISION_FILES},  # of a model that sees pictures (engines/tower.py)
    **{f"vision.{key}": _whole(1) for key in _VISION_NUMBERS},
    **{f"vision.{key}_operations": _whole(1) for key in ("view", "row")},
    "vision.grid": lambda value: (
        _list_of(_whole(1))(value) and len(value) == 2
    ),  # of the pictures that the program itself encodes
}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of a bundle. InputError that names what it lacks or says wrongly."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} has no {MANIFEST}: it is not a bundle; make one with `phi3mobile export`")
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read ({error}); export the bundle again") from None
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if type(version) is not int or version < 1:
        raise InputError(f"{path} has no format version; export the bundle again")
    if version > FORMAT:
        raise InputError(f"{folder} has bundle format {version}, this phi3mobile reads up to {FORMAT}; upgrade phi3mobile")
    with contextlib.suppress(KeyError, TypeError, AttributeError):  # what it lacks is told below
        manifest = upgraded(manifest)
    values = {name: _at(manifest, name) for name in SCHEMA | LATER}
    if lacking := [name for name in SCHEMA if values[name] is _ABSENT]:
        raise InputError(f"{path} lacks {', '.join(lacking)}; export the bundle again")
    for name, fits in (SCHEMA | LATER).items():
        if values[name] is not _ABSENT and not fits(values[name]):
            raise InputError(f"{path}: {name} can't be {values[name]!r:.80}; export the bundle again")
    experts = manifest["runtime"].get("experts")
    if experts is not None and (not isinstance(experts, dict) or experts.get("file") not in manifest["files"]):
        raise InputError(f"{path}: runtime.experts names no file of the bundle; export the bundle again")
    if (vision := manifest.get("vision")) is not None:
        _check_vision(path, vision, manifest)
    for key, program in (("runtime.program", manifest["runtime"]["program"]), *(("programs", p) for p in manifest["programs"])):
        if not files_of(manifest, program):
            raise InputError(f"{path}: {key} is not among its files; export the bundle again")
    return manifest


def _check_vision(path: Path, vision: Any, manifest: dict[str, Any]) -> None:
    needed = (*VISION_FILES, *_VISION_NUMBERS)
    if lacking := [key for key in needed if not isinstance(vision, dict) or key not in vision]:
        raise InputError(f"{path}: vision lacks {', '.join(lacking)}; export the bundle again")
    program, separators = (vision[part] for part in VISION_FILES)
    there = {program: files_of(manifest, program), separators: separators in manifest["files"]}
    if missing := [name for name, found in there.items() if not found]:
        raise InputError(f"{path}: vision names {', '.join(missing)}, no file of the bundle; export the bundle again")
    if vision["hidden"] != manifest["model"]["hidden"]:
        raise InputError(
            f"{path}: vision.hidden is {vision['hidden']}, model.hidden {manifest['model']['hidden']}; export the bundle again"
        )


_ABSENT = object()


def _at(manifest: dict[str, Any], name: str) -> Any:
    """The value of section.key, or _ABSENT."""
    value: Any = manifest
    for key in name.split("."):
        value = value.get(key, _ABSENT) if isinstance(value, dict) else _ABSENT
    return value


def own_operators(manifest: dict[str, Any]) -> list[str]:
    """The operators of a manifest's program that only binaries with our kernels (phi3mobile/core) have."""
    return [name for name in manifest["runtime"]["operators"] if name.startswith("phi3mobile::")]


def files_of(manifest: Mapping[str, Any], program: str) -> dict[str, dict[str, Any]]:
    """What a manifest lists of a program: the file, or the files in the folder that it is."""
    files = manifest["files"].items()
    return {path: listed for path, listed in files if path == program or path.startswith(f"{program}/")}


def tower_bytes(manifest: Mapping[str, Any]) -> int:
    """Of the weights what no decoded token reads: a tower for pictures, twice if the decoder's program has it too; 0: none."""
    vision = manifest.get("vision")
    if vision is None:
        return 0
    found = [sum(listed["bytes"] for listed in files_of(manifest, vision[part]).values()) for part in VISION_FILES]
    return sum(found) + (found[0] if vision.get("grid") else 0)
