"""A bundle: model files, tokenizer and manifest.json in one folder; the only thing that apps, bench and evaluation read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3mobile.engines import Engine, EngineInfo
from phi3mobile.errors import InputError
from phi3mobile.files import cache_folder, sha256

if TYPE_CHECKING:
    from phi3mobile.chat import ChatFormat
    from phi3mobile.tokenizer import Tokenizer

FORMAT = 1
MANIFEST = "manifest.json"
# Section -> its keys. Reading refuses a manifest that lacks one; more is fine (a later minor addition).
SCHEMA = {
    "format": None,
    "name": None,
    "family": None,
    "runtime": ("kind", "version", "operators", "program"),
    "recipe": ("name",),
    "files": None,
    "model": ("vocab", "context", "chunk", "original_context", "max_context", "parameters", "bits_per_weight"),
    "tokens": ("bos", "eos"),
    "chat": ("template", "bos", "eos", "segments"),
    "memory": ("weights", "kv_per_token", "activations", "peak"),
    "provenance": ("source", "source_hash", "tool"),
    "license": None,
}


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def program(self) -> Path:
        """The model file that the runtime loads."""
        return self.folder / self.manifest["runtime"]["program"]

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset(self.manifest["tokens"]["eos"])

    @property
    def bos_id(self) -> int | None:
        return self.manifest["tokens"]["bos"]

    @property
    def info(self) -> EngineInfo:
        model = self.manifest["model"]
        return EngineInfo(model["vocab"], model["context"], model["chunk"], model["original_context"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from phi3mobile.tokenizer import load_tokenizer

        return load_tokenizer(self.folder)

    @cached_property
    def chat(self) -> ChatFormat:
        from phi3mobile.chat import ChatFormat

        chat = self.manifest["chat"]
        if chat["template"] is None:
            raise InputError(f"{self.folder} has no chat template: it completes text only (phi3mobile run --raw)")
        return ChatFormat(chat["template"], chat["bos"], chat["eos"])

    def open_engine(self) -> Engine:
        """The engine for this bundle's runtime, on this machine."""
        from phi3mobile.engines.executorch import ExecutorchEngine

        return ExecutorchEngine(self)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Add sizes and hashes of the folder's files, and write manifest.json last: a folder without it is no bundle."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
    text = json.dumps(manifest | {"format": FORMAT, "files": listed}, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n")


def open_bundle(path: str | Path) -> Bundle:
    """Open and verify a bundle folder.

    Raises InputError: no such folder, no or a damaged manifest, a newer format, a file missing or changed.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist or is not a folder; give a bundle made by `phi3mobile export`")
    manifest = _read_manifest(folder)
    bundle = Bundle(folder, manifest)
    _verify_files(bundle)
    return bundle


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} has no {MANIFEST}: it is not a bundle; make one with `phi3mobile export`")
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error}); export the bundle again") from None
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(version, int):
        raise InputError(f"{path} has no format version; export the bundle again")
    if version > FORMAT:
        raise InputError(f"{folder} has bundle format {version}, this phi3mobile reads up to {FORMAT}; upgrade phi3mobile")
    for section, keys in SCHEMA.items():
        found = manifest.get(section) if section in manifest else {}
        lacking = [f"{section}.{key}" for key in keys or () if key not in (found or {})]
        if section not in manifest:
            lacking = [section]
        if lacking:
            raise InputError(f"{path} lacks {', '.join(lacking)}; export the bundle again")
    return manifest


def _verify_files(bundle: Bundle) -> None:
    """Every listed file with its size and hash. A file hashed once is trusted until its size, date or inode changes."""
    known_path = cache_folder() / "verified.json"
    try:
        known = json.loads(known_path.read_text())
    except (OSError, ValueError):
        known = {}
    fresh = {}
    for name, listed in bundle.manifest["files"].items():
        path = bundle.folder / name
        if not path.is_file():
            raise InputError(f"{bundle.folder} lacks the file {name}; copy the whole bundle again")
        status = path.stat()
        if status.st_size != listed["bytes"]:
            raise InputError(f"{path} has {status.st_size} bytes, the manifest says {listed['bytes']}; copy the bundle again")
        stamp = [listed["sha256"], status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        if known.get(str(path.absolute())) != stamp:
            if sha256(path) != listed["sha256"]:
                raise InputError(f"{path} is damaged: its SHA-256 is not the manifest's; copy the bundle again")
            fresh[str(path.absolute())] = stamp
    if fresh:
        kept = {name: stamp for name, stamp in known.items() if Path(name).exists()} | fresh
        partial = known_path.with_suffix(f".{id(fresh)}")
        partial.write_text(json.dumps(kept))
        partial.replace(known_path)
