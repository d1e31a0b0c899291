"""A model's name to a folder or file on this machine: an existing path, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from phi3mobile.errors import InputError
from phi3mobile.files import require_utf8
from phi3mobile.models.companions import CHECKPOINT_FILES, WEIGHTS
from phi3mobile.models.gguf_names import models_among, part_of

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILE = re.compile(rf"(?P<id>{_HUB_ID.pattern})/(?P<file>(?:[\w.-]+/)*[\w.-]+\.gguf)")
_Found = TypeVar("_Found")


def resolve(source: str | Path) -> Path:
    """The path `source` if it exists, else the local copy of the hub repository `org/name`, downloaded if need be.

    A repository without safetensors gives its GGUF model, if it has one only; `org/name/FILE.gguf` names one of several, a
    split one by any of its parts. The hub's own settings hold: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and its cache. Raises
    InputError if there is neither.
    """
    path = Path(source).expanduser()
    if path.exists():
        require_utf8(path)
        return path
    name = str(source)
    if found := _HUB_FILE.fullmatch(name):
        return _file(found["id"], found["file"])
    if not _HUB_ID.fullmatch(name):
        raise InputError(f"{name} does not exist; give a file, a folder, or a hub id (organisation/name)")
    folder = _download(name, CHECKPOINT_FILES)
    if any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        return folder
    models = models_among(_listed(name, folder))
    if len(models) > 1:
        listed = ", ".join(models[:8]) + (", ..." if len(models) > 8 else "")
        raise InputError(f"{name} holds {len(models)} GGUF models: {listed}; give one of them: {name}/{models[0]}")
    return _file(name, models[0]) if models else folder


def _file(name: str, file: str) -> Path:
    """A GGUF file of a repository; of a split model that part, with the others beside it."""
    part = part_of(file)
    folder = _download(name, (file,) if part is None else tuple(part.names))
    if not (folder / file).is_file():
        there = ", ".join(models_among(_listed(name, folder))[:8]) or "none"
        raise InputError(f"{name} has no {file}; its GGUF models: {there}")
    return folder / file


def _download(name: str, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub

    return Path(_asked(name, lambda: huggingface_hub.snapshot_download(name, allow_patterns=list(patterns))))


def _listed(name: str, folder: Path) -> list[str]:
    """The repository's files; offline, those that its copy in `folder` has."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return _asked(name, lambda: huggingface_hub.list_repo_files(name))


def _asked(name: str, ask: Callable[[], _Found]) -> _Found:
    """What the hub's client answers; its errors as one line."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return ask()
    except errors.GatedRepoError:
        todo = "accept its licence on the hub, then log in (hf auth login) or set HF_TOKEN"
        raise InputError(f"{name} is gated: {todo}") from None
    except errors.RepositoryNotFoundError:
        todo = "check the name, or log in (hf auth login) if it is private"
        raise InputError(f"{name} is neither a path nor a hub repository you can read; {todo}") from None
    except errors.LocalEntryNotFoundError:
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set: unset it" if offline else "the hub can't be reached: check the network"
        raise InputError(f"{name} is not a path, and is not in the hub's cache; {reason} or give a folder") from None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name} could not be downloaded ({reason}); try again or give a folder") from None
