"""The app as a benchmark: one request of the host (bench/request.py), the protocol's steps, JSON lines in a file.

The host starts the app for each run, so each is a fresh process; it reads the file while it grows, and removes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from phi3mobile.assistant.device import device, open_engine
from phi3mobile.bench.request import EXTRA, FOLDER, Request, parse_request
from phi3mobile.bench.steps import perform
from phi3mobile.errors import InputError

THERMAL = ("nominal", "fair", "serious", "critical")  # NSProcessInfoThermalState
BATTERY = ("unknown", "unplugged", "charging", "full")  # UIDeviceBatteryState


def requested(arguments: list[str] | None = None) -> tuple[Request, Path] | None:
    """What this start of the app was asked to measure, and its shared folder; None: a person started it.

    A phone gives the activity its old intent again when a person returns to the app: a request whose answer is there, or whose
    folder the host has removed, is done. Raises InputError for a request that makes no sense.
    """
    text = _android_extra() if device() == "android" else _argument(sys.argv if arguments is None else arguments)
    if text is None:
        return None
    shared = shared_folder()
    run = shared / FOLDER / "run"
    if device() == "ios":
        run.mkdir(parents=True, exist_ok=True)  # arguments do not come back; devicectl makes no empty folder
    if not run.is_dir():
        return None
    request = parse_request(text)
    return None if request.answer(shared).exists() else (request, shared)


def shared_folder() -> Path:
    """Where the host can put files and read them, without any permission."""
    if device() == "android":
        return Path(_activity().getExternalFilesDir(None).getAbsolutePath())
    return Path.home() / "Documents"


def _activity() -> Any:
    from jnius import autoclass

    return autoclass("org.kivy.android.PythonActivity").mActivity


def _android_extra() -> str | None:
    return _activity().getIntent().getStringExtra(EXTRA)


def _argument(arguments: list[str]) -> str | None:
    flag = f"--{EXTRA}"
    return arguments[arguments.index(flag) + 1] if flag in arguments[:-1] else None


class Answer:
    """The file of lines. Several threads may write."""

    def __init__(self, path: Path) -> None:
        self._file, self._lock = path.open("x", encoding="utf-8"), threading.Lock()

    def say(self, line: dict[str, Any]) -> None:
        text = json.dumps(line | {"t": round(time.time(), 3)}, separators=(",", ":"))
        with self._lock:
            if not self._file.closed:
                self._file.write(f"{text}\n")
                self._file.flush()

    def end(self, code: int) -> None:
        """The last line; what is said later is dropped."""
        self.say({"kind": "exit", "code": code})
        with self._lock:
            self._file.close()


def work(request: Request, shared: Path, answer: Answer) -> int:
    """Do the request; exit code 1 where it failed, which a line of kind `error` explains. Never raises."""
    code = 1
    try:
        answer.say({"kind": "app", "python": platform.python_version(), "pid": os.getpid()})
        code = _measure(request, shared, answer) if request.bundle else 0
        if request.remove:
            _remove(shared / FOLDER, request.answer(shared))
    except Exception as error:  # the host can't see this process: whatever it is must be said
        name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        answer.say({"kind": "error", "step": "app", "reason": f"{name}{' '.join(f'{error}'.split())}"[:300]})
    answer.end(code)
    return code


def _measure(request: Request, shared: Path, answer: Answer) -> int:
    from phi3mobile.bundle import open_bundle

    bundle = open_bundle(request.model(shared))  # hashing is no part of loading
    if request.cold and hasattr(os, "posix_fadvise"):
        for name in bundle.manifest["files"]:
            with (bundle.folder / name).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return perform(lambda: open_engine(bundle, request.threads), request.steps, answer.say)


def _remove(folder: Path, but: Path) -> None:
    for path in (*folder.glob("models/*"), *folder.glob("run/*")):
        if path.is_dir():
            shutil.rmtree(path)
        elif path != but:
            path.unlink()


def apple_reading(objc: Any) -> dict[str, Any]:
    """A line of kind `sample`: level 0..1 (-1: unknown), state, thermal. On the main thread: UIDevice is UIKit's."""
    with objc.pool():
        phone = objc.send("UIDevice", "currentDevice")
        objc.send(phone, "setBatteryMonitoringEnabled:", 1)
        # As text, because a method that returns a float needs a call of another kind.
        level = objc.send(objc.send(phone, "valueForKey:", _pointer(objc.text("batteryLevel"))), "stringValue")
        line: dict[str, Any] = {"kind": "sample"}
        with contextlib.suppress(ValueError):
            line["level"] = float(objc.read_text(level))
        state = objc.send(phone, "batteryState")
        if 0 < state < len(BATTERY):
            line["state"] = BATTERY[state]
        thermal = objc.send(objc.send("NSProcessInfo", "processInfo"), "thermalState")
        return line | ({"thermal": THERMAL[thermal]} if 0 <= thermal < len(THERMAL) else {})


def _pointer(address: int) -> Any:
    import ctypes

    return ctypes.c_void_p(address)
