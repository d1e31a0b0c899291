"""Where things lie on each platform: conversations, models that were copied to the device, document libraries."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from phi3mobile.assistant.device import device


@dataclass(frozen=True)
class Places:
    store: Path  # the conversations' file
    models: tuple[Path, ...]  # folders whose bundles the picker lists; the first is where imports go
    libraries: tuple[Path, ...]  # folders whose .db files are listed
    browse: Path | None  # where a person may look further; None: the system's own picker is the only way


def places() -> Places:
    if device() == "android":
        return _android()
    if device() == "ios":
        documents = Path.home() / "Documents"  # what the Files app shows (UIFileSharingEnabled)
        return Places(documents / ".assistant" / "chats.db", (documents / "models", documents), (documents,), None)
    return desktop()


def desktop() -> Places:
    from phi3mobile.files import cache_folder

    base = os.environ.get("XDG_DATA_HOME")
    data = (Path(base) if base else Path.home() / ".local" / "share") / "phi3mobile"
    return Places(data / "chats.db", (data / "models", cache_folder() / "demo"), (data / "libraries",), Path.home())


def _android() -> Places:
    """The app's own folder on shared storage needs no permission, and adb push reaches it."""
    from jnius import autoclass

    activity = autoclass("org.kivy.android.PythonActivity").mActivity
    inside = Path(activity.getFilesDir().getAbsolutePath())
    shared = activity.getExternalFilesDir(None)  # null while the storage is not mounted
    outside = Path(shared.getAbsolutePath()) if shared else inside
    return Places(inside / "chats.db", (outside / "models", inside / "models"), (outside / "libraries", outside), None)
