"""The installed app as the runner of an Android phone: started by an intent, it measures itself.

The Kivy assistant (apps/assistant/bench.py), or any app with our SDK that hands on the intent's extra (Bench.kt).

The folder of the app's shared storage must be the app's own: where it has never run, it is started once to make it.
"""

from __future__ import annotations

import secrets
import shlex
import time
from pathlib import Path

from phi3mobile.bench.adb import Adb
from phi3mobile.bench.protocol import Plan, Run
from phi3mobile.bench.request import EXTRA, FOLDER, Request
from phi3mobile.bundle import Bundle
from phi3mobile.errors import InputError

APP = "org.phi3mobile.assistant"
ACTIVITY = "org.kivy.android.PythonActivity"  # of python-for-android


class AppRunner:
    """Implements android.Runner. `app`: its package."""

    start_within = 120.0  # seconds to the first line: Python is unpacked at the first start

    def __init__(self, app: str, folder: str | None = None) -> None:
        self.activity, self.packs = ACTIVITY, False  # ExecuTorch's Java package keeps packed weights in memory
        self.name, self.folder = app, folder or f"/sdcard/Android/data/{app}/files"
        self.models, self.out = f"{self.folder}/{FOLDER}/models", ""

    def prepare(self, adb: Adb, bundle: Bundle) -> dict[str, Path]:
        """Raises InputError: no such app, it can't be started, or it lacks this bundle's kernels."""
        if not adb.read(f"pm path {shlex.quote(self.name)}").strip():
            raise InputError(f"{self.name} is not on the phone {adb.serial}: install it as apps/android/README.md says")
        said = adb.read(f"cmd package resolve-activity --brief {shlex.quote(self.name)} 2> /dev/null").split()
        if said and said[-1].startswith(f"{self.name}/"):
            self.activity = said[-1].removeprefix(f"{self.name}/")
        self.packs = self.activity != ACTIVITY  # our SDK's library keeps them in a file
        if bundle.own_operators and not self.packs:
            raise InputError(f"{bundle.folder} needs kernels that the app's ExecuTorch lacks: export with --recipe android-cpu")
        files = shlex.quote(self.folder)
        if not adb.read(f"ls -d {files}"):
            adb.read(f"{_WAKE}; am start -W -n {shlex.quote(f'{self.name}/{self.activity}')}")
            for _ in range(60):
                if adb.read(f"ls -d {files}"):
                    break
                time.sleep(0.5)
            else:
                raise InputError(f"{self.name} makes no folder {self.folder}: unlock the phone and start it once there")
            adb.read(self.stop)
        return {}

    def work(self, model: str, bundle: Bundle, run: Run, plan: Plan) -> str:
        """A shell line that lasts as long as the run; `out` is where its lines will be."""
        request = Request(f"{secrets.token_hex(8)}.jsonl", Path(model).name, run.steps, plan.threads, run.cold)
        self.out = f"{self.folder}/{FOLDER}/run/{request.out}"
        component = shlex.quote(f"{self.name}/{self.activity}")
        return (
            f"mkdir -p {shlex.quote(f'{self.folder}/{FOLDER}/run')}; {_WAKE}; "
            f"am start -W -S -n {component} --es {EXTRA} {shlex.quote(request.text())} > err 2>&1; sleep 1; "
            f"while pidof {shlex.quote(self.name)} > /dev/null; do sleep 1; done"
        )

    @property
    def stop(self) -> str:
        return f"am force-stop {shlex.quote(self.name)}"

    def remains(self, keep: bool) -> list[str]:
        """What cleaning up removes. The app's answers always: an answered request is not done again."""
        return [f"{self.folder}/{FOLDER}/run" if keep else f"{self.folder}/{FOLDER}"]


# A dark or locked screen keeps the activity from starting; a PIN must be entered by its owner.
_WAKE = "input keyevent KEYCODE_WAKEUP; wm dismiss-keyguard"
