"""Start the app: the one entry for `phi3mobile app` and for the phones' main.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from phi3mobile.assistant import bench, problems
from phi3mobile.assistant.device import device
from phi3mobile.assistant.places import Places, places
from phi3mobile.assistant.state import State
from phi3mobile.assistant.store import MEMORY, Store
from phi3mobile.assistant.worker import Worker
from phi3mobile.bench.request import Request
from phi3mobile.errors import InputError


def launch(
    bundle: Path | None = None,
    library: Path | None = None,
    where: Places | None = None,
    worker: Worker | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """Run until the window is closed. `bundle` and `library` are opened instead of the last ones."""
    if device() != "desktop" and (asked := bench.requested()):
        _measure(*asked)
        return
    _configure(size)
    sys.setswitchinterval(0.001)  # the window's thread waits no longer than this for the model's Python
    from phi3mobile.assistant.ui.app import AssistantApp  # opens the window

    where = where or places()
    try:
        store, failed = Store(where.store), None
    except InputError as error:
        store, failed = Store(MEMORY), str(error)  # nothing is lost: the file stays until the person says otherwise
    kept = where.store.with_name(where.store.name + ".state")
    state = State(store, worker or Worker(kept=kept))
    if bundle is not None:
        state.change(bundle=str(bundle))
    if library is not None:
        state.change(library=str(library))
    state.restore()
    if failed:
        state.show(problems.store_failed(failed))
    elif not state.settings.bundle:
        state.show(problems.no_bundle())
    AssistantApp(state, where).run()


def _measure(request: Request, shared: Path) -> None:
    """The host started the app for one run of a benchmark."""
    _configure(None, frames=5)  # the model gets the cores
    from phi3mobile.assistant.ui.bench import BenchApp

    reading = None
    if device() == "ios":
        from phi3mobile.engines.objc import Runtime

        objc = Runtime()
        reading = lambda: bench.apple_reading(objc)  # noqa: E731
    BenchApp(request, shared, reading).run()


def _configure(size: tuple[int, int] | None, frames: int = 60) -> None:
    """Kivy reads these when it is imported."""
    os.environ.setdefault("KIVY_NO_ARGS", "1")
    os.environ.setdefault("KIVY_NO_FILELOG", "1")
    os.environ.setdefault("KIVY_LOG_MODE", "MIXED")
    os.environ.setdefault("KCFG_KIVY_LOG_LEVEL", "warning")
    if device() == "desktop":
        os.environ.setdefault("KIVY_CLIPBOARD", "sdl2")  # Linux would look for xclip and xsel, loudly
    from kivy.config import Config
    from kivy.logger import Logger

    # The X selection is a convenience; without xclip and xsel Kivy logs two tracebacks.
    Logger.addFilter(lambda record: "Cutbuffer" not in str(record.msg))
    Config.set("kivy", "exit_on_escape", "0")
    Config.set("input", "mouse", "mouse,disable_multitouch")  # no red dots on a right click
    Config.set("graphics", "maxfps", str(frames))
    if size:
        Config.set("graphics", "width", str(size[0]))
        Config.set("graphics", "height", str(size[1]))
