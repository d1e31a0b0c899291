"""Copy a model folder in through Android's own picker (Storage Access Framework), which needs no permission."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.files import new_folder

REQUEST = 4711
_CHUNK = 1 << 20


def pick_folder(target: Path, done: Callable[[Path | str], None]) -> None:
    """Ask for a folder and copy it into `target`; `done` gets the copy, or a sentence, in the window's thread."""
    from android import activity
    from jnius import autoclass
    from kivy.clock import Clock

    intent = autoclass("android.content.Intent")("android.intent.action.OPEN_DOCUMENT_TREE")
    here = autoclass("org.kivy.android.PythonActivity").mActivity

    def result(request: int, _code: int, data: Any) -> None:
        if request != REQUEST:
            return
        activity.unbind(on_activity_result=result)
        if data is None:
            return  # cancelled

        def work() -> None:
            try:
                outcome: Path | str = copy_tree(here.getContentResolver(), data.getData(), target)
            except (InputError, OSError) as error:
                outcome = str(error)
            Clock.schedule_once(lambda _: done(outcome), 0)

        threading.Thread(target=work, daemon=True).start()

    activity.bind(on_activity_result=result)
    here.startActivityForResult(intent, REQUEST)


def copy_tree(resolver: Any, tree: Any, target: Path, find_class: Callable[[str], Any] | None = None) -> Path:
    """The documents of the picked `tree` (a Uri) as a folder in `target`, whole or not at all."""
    if find_class is None:
        from jnius import autoclass as find_class
    contract = find_class("android.provider.DocumentsContract")
    root = contract.getTreeDocumentId(tree)
    name = root.rpartition("/")[2].rpartition(":")[2] or "model"
    documents = list(_children(resolver, contract, tree, root))
    if not any(title == "manifest.json" for _, title, _ in documents):
        raise InputError(
            f"the folder {name} has no manifest.json: it is not a model; choose a folder made by phi3mobile export"
        )
    target.mkdir(parents=True, exist_ok=True)
    size = sum(length for *_, length in documents)
    if shutil.disk_usage(target).free < size:
        raise InputError(f"{name} needs {size / 1e9:.1f} GB of storage; make room first")
    with new_folder(target / name) as folder:
        for identity, title, _ in documents:
            uri = contract.buildDocumentUriUsingTree(tree, identity)
            descriptor = resolver.openFileDescriptor(uri, "r")
            with os.fdopen(descriptor.detachFd(), "rb") as source, (folder / Path(title).name).open("wb") as copy:
                shutil.copyfileobj(source, copy, _CHUNK)
    return target / name


def _children(resolver: Any, contract: Any, tree: Any, parent: str) -> Iterator[tuple[str, str, int]]:
    """(document id, name, bytes) of the files in a picked folder."""
    columns = ["document_id", "_display_name", "_size", "mime_type"]
    cursor = resolver.query(contract.buildChildDocumentsUriUsingTree(tree, parent), columns, None, None, None)
    try:
        while cursor.moveToNext():
            if cursor.getString(3) != "vnd.android.document/directory":
                yield cursor.getString(0), cursor.getString(1), cursor.getLong(2)
    finally:
        cursor.close()
