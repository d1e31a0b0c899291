"""A picture from iOS's own picker, which runs outside of the app and needs no permission. Never run: there was no iPhone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

_held: list[Any] = []  # UIKit does not own its delegates


def pick_picture(done: Callable[[bytes | str], None]) -> None:
    """Ask for a picture; `done` gets its file's bytes, or a sentence, and nothing if it was cancelled. On the main thread.

    UIImagePickerController writes a copy for the app, of HEIC as JPEG (its imageExportPreset is "compatible" by default).
    """
    from pyobjus import autoclass, objc_str, protocol

    class Delegate:
        @protocol("UIImagePickerControllerDelegate")
        def imagePickerController_didFinishPickingMediaWithInfo_(self, picker: Any, info: Any) -> None:
            self._close(picker)
            done(read_picture(info.objectForKey_(objc_str("UIImagePickerControllerImageURL"))))

        @protocol("UIImagePickerControllerDelegate")
        def imagePickerControllerDidCancel_(self, picker: Any) -> None:
            self._close(picker)

        def _close(self, picker: Any) -> None:
            picker.dismissViewControllerAnimated_completion_(True, None)
            _held.clear()

    picker = autoclass("UIImagePickerController").alloc().init()
    picker.sourceType = 0  # UIImagePickerControllerSourceTypePhotoLibrary
    delegate = Delegate()
    picker.delegate = delegate
    _held[:] = [picker, delegate]
    window = autoclass("UIApplication").sharedApplication().keyWindow
    window.rootViewController().presentViewController_animated_completion_(picker, True, None)


def read_picture(url: Any) -> bytes | str:
    """The bytes of the file that an NSURL leads to, or the sentence that says why not."""
    try:
        return Path(url.path().UTF8String()).read_bytes() if url is not None else "iOS gave no file for this picture"
    except OSError as error:
        return f"the picture can't be read: {error.strerror}"
