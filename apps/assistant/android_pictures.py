"""A picture from Android's own photo picker, which needs no permission; older phones have its document picker."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError

REQUEST = 4712
MOST = 100_000_000  # bytes of a picture
_PHOTO_PICKER, _IMAGE_DECODER = 33, 28  # levels of the API that have them


def pick_picture(done: Callable[[bytes | str], None]) -> None:
    """Ask for a picture; `done` gets its bytes, or a sentence, in the window's thread, and nothing if it was cancelled."""
    from android import activity
    from jnius import autoclass
    from kivy.clock import Clock

    here = autoclass("org.kivy.android.PythonActivity").mActivity

    def result(request: int, _code: int, data: Any) -> None:
        if request != REQUEST:
            return
        activity.unbind(on_activity_result=result)
        if data is None or data.getData() is None:
            return  # cancelled

        def work() -> None:
            try:
                outcome: bytes | str = read_picture(here.getContentResolver(), data.getData(), autoclass)
            except Exception as error:  # Java's too: the provider is another app
                outcome = " ".join(str(error).split())[:300] or type(error).__name__
            Clock.schedule_once(lambda _: done(outcome), 0)

        threading.Thread(target=work, daemon=True).start()

    activity.bind(on_activity_result=result)
    here.startActivityForResult(picker(autoclass), REQUEST)


def picker(find_class: Callable[[str], Any]) -> Any:
    """The Intent that asks for one picture."""
    intent = find_class("android.content.Intent")
    if find_class("android.os.Build$VERSION").SDK_INT >= _PHOTO_PICKER:
        return intent("android.provider.action.PICK_IMAGES").setType("image/*")
    return intent("android.intent.action.GET_CONTENT").setType("image/*").addCategory("android.intent.category.OPENABLE")


def read_picture(resolver: Any, uri: Any, find_class: Callable[[str], Any]) -> bytes:
    """The bytes of a picture that the resolver opens; of HEIC, which Pillow does not read, as JPEG, upright. InputError."""
    if str(resolver.getType(uri)) in ("image/heic", "image/heif"):
        return _as_jpeg(resolver, uri, find_class)
    with os.fdopen(resolver.openFileDescriptor(uri, "r").detachFd(), "rb") as source:
        data = source.read(MOST + 1)
    if len(data) > MOST:
        raise InputError(f"the picture's file has more than {MOST / 1e6:.0f} MB; choose a smaller one")
    return data


def _as_jpeg(resolver: Any, uri: Any, find_class: Callable[[str], Any]) -> bytes:
    if find_class("android.os.Build$VERSION").SDK_INT < _IMAGE_DECODER:
        raise InputError("the picture is HEIC, which this version of Android does not read; save it as JPEG")
    decoder = find_class("android.graphics.ImageDecoder")
    bitmap = decoder.decodeBitmap(decoder.createSource(resolver, uri))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        stream = find_class("java.io.FileOutputStream")(str(path))
        try:
            bitmap.compress(find_class("android.graphics.Bitmap$CompressFormat").JPEG, 95, stream)
        finally:
            stream.close()
        return path.read_bytes()
