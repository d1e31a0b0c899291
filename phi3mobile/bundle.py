"""A bundle: model files, tokenizer and manifest.json in one folder; the only thing that apps, bench and evaluation read."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from phi3mobile.errors import InputError
from phi3mobile.files import cache_folder, require_utf8, sha256, whole_file
from phi3mobile.info import EngineInfo
from phi3mobile.manifest import FORMAT, MANIFEST, VISION_FILES, files_of, own_operators, read_manifest

if TYPE_CHECKING:
    from phi3mobile.session.sampling import Sampling
    from phi3mobile.text.chat import ChatFormat
    from phi3mobile.text.tokenizer import Tokenizer

_SETTLED_NS = 100_000_000  # file systems' clocks tick in up to 10 ms: a younger file may change and keep its date


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def program(self) -> Path:
        """The model file, or package folder, that the runtime loads."""
        return self.folder / self.manifest["runtime"]["program"]

    @property
    def programs(self) -> list[Path]:
        """What the engine loads, in order: the program itself, or the packages in its folder."""
        return [self.folder / name for name in self.manifest["programs"]]

    @property
    def own_operators(self) -> list[str]:
        """The program's operators that only binaries with our kernels (phi3mobile/core) have."""
        return own_operators(self.manifest)

    @property
    def program_bytes(self) -> int:
        name = self.manifest["runtime"]["program"]
        others = {self.manifest["runtime"].get("experts", {}).get("file"), *((self.vision or {}).get(p) for p in VISION_FILES)}
        return sum(
            listed["bytes"] for part in {name, *filter(None, others)} for listed in files_of(self.manifest, part).values()
        )

    @property
    def vision(self) -> dict[str, Any] | None:
        """What the manifest says of the tower for pictures; None: the model sees none."""
        return self.manifest.get("vision")

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset(self.manifest["tokens"]["eos"])

    @property
    def bos_id(self) -> int | None:
        return self.manifest["tokens"]["bos"]

    @property
    def sampling(self) -> Sampling:
        """How answers are sampled where nobody says."""
        from phi3mobile.session.defaults import default_sampling

        return default_sampling(self.manifest.get("generation", {}), self.manifest["model"]["parameters"])

    @property
    def info(self) -> EngineInfo:
        model = self.manifest["model"]
        back, hidden = model.get("back"), model["hidden"] if self.vision is not None else None
        return EngineInfo(model["vocab"], model["context"], model["chunk"], model["original_context"], back, hidden)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from phi3mobile.text.vocabularies import load_tokenizer

        return load_tokenizer(self.folder)

    @cached_property
    def chat(self) -> ChatFormat:
        from phi3mobile.text.chat import ChatFormat

        chat = self.manifest["chat"]
        if chat["template"] is None:
            raise InputError(f"{self.folder} has no chat template: it completes text only (phi3mobile run --raw)")
        return ChatFormat(chat["template"], chat["bos"], chat["eos"])


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Add sizes and hashes of the folder's files, and write manifest.json last: a folder without it is no bundle."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
    text = json.dumps(manifest | {"format": FORMAT, "files": listed}, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", "utf-8")


def open_bundle(path: str | Path) -> Bundle:
    """Open and verify a bundle folder.

    Raises InputError: no such folder, no or a damaged manifest, a newer format, a file missing or changed.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist or is not a folder; give a bundle made by `phi3mobile export`")
    require_utf8(folder)
    manifest = read_manifest(folder)
    bundle = Bundle(folder, manifest)
    _verify_files(bundle)
    return bundle


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _verify_files(bundle: Bundle) -> None:
    """Every listed file with its size and hash. A file hashed once is trusted until its size, date or inode changes."""
    known, fresh = _read_verified(), {}
    for name, listed in bundle.manifest["files"].items():
        path = bundle.folder / name
        try:
            status = path.stat()
        except (OSError, ValueError):  # ValueError: a name that no file system takes
            status = None
        if status is None or not S_ISREG(status.st_mode):
            raise InputError(f"{bundle.folder} lacks the file {name}; copy the whole bundle again")
        if status.st_size != listed["bytes"]:
            raise InputError(f"{path} has {status.st_size} bytes, the manifest says {listed['bytes']}; copy the bundle again")
        stamp = [listed["sha256"], status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        if known.get(str(path.absolute())) == stamp:
            continue
        started = time.time_ns()
        if sha256(path) != listed["sha256"]:
            raise InputError(f"{path} is damaged: its SHA-256 is not the manifest's; copy the bundle again")
        if started - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
            fresh[str(path.absolute())] = stamp
    if fresh:
        _write_verified(known | fresh)


def _read_verified() -> dict[str, list]:
    """Path -> stamp of the files that were hashed before; without a readable record, none."""
    try:
        known = json.loads((cache_folder() / "verified.json").read_text("utf-8"))
    except (InputError, OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_verified(known: dict[str, list]) -> None:
    with contextlib.suppress(InputError, OSError):  # no place for it: the next opening hashes again
        path = cache_folder() / "verified.json"
        with whole_file(path) as partial:
            partial.write_text(json.dumps({name: stamp for name, stamp in known.items() if os.path.lexists(name)}), "utf-8")
