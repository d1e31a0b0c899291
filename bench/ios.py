"""An iPhone or iPad as a device of the protocol, through Xcode's `xcrun devicectl`. Unverified: no Mac has run this.

The app does the steps itself (apps/assistant/bench.py): it is launched with the argument `--bench REQUEST` (request.py) and
writes lines to its Documents, among them its own samples (kind `sample`: battery level, thermal state), because devicectl
reads neither. Energy: battery ticks, over Wi-Fi.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phi3mobile.bench.battery import Battery, Sample, Thermal
from phi3mobile.bench.protocol import Plan, Run, RunFailed, bundle_hash
from phi3mobile.bench.request import EXTRA, FOLDER, Request
from phi3mobile.bundle import Bundle
from phi3mobile.errors import InputError
from phi3mobile.progress import Progress

APP = "org.phi3mobile.assistant"
# ProcessInfo.ThermalState -> the status of battery.STATUS
THERMAL = {"nominal": 0, "fair": 1, "serious": 3, "critical": 4}
_SHARED = "Documents"


def parse_devices(document: Any) -> list[dict[str, str]]:
    """`devicectl list devices --json-output`: iOS devices with udid, name, model, os and whether they can be reached."""
    try:
        listed = document["result"]["devices"]
    except (KeyError, TypeError):
        raise InputError("devicectl gave no list of devices; it needs Xcode 15 or later") from None
    found = []
    for one in listed if isinstance(listed, list) else []:
        if not isinstance(one, dict):
            continue
        hardware, link, about = (_part(one, f"{name}Properties") for name in ("hardware", "connection", "device"))
        if hardware.get("platform", "iOS") not in ("iOS", "iPadOS"):
            continue
        found.append(
            {
                "udid": str(hardware.get("udid") or one.get("identifier") or ""),
                "name": str(about.get("name") or ""),
                "model": str(hardware.get("marketingName") or hardware.get("productType") or ""),
                "product": str(hardware.get("productType") or ""),
                "os": str(about.get("osVersionNumber") or ""),
                "build": str(about.get("osBuildUpdate") or ""),
                "paired": str(link.get("pairingState") or "paired"),
                "tunnel": str(link.get("tunnelState") or ""),
                "developer": str(about.get("developerModeStatus") or "enabled"),
            }
        )
    return found


def _part(one: dict[str, Any], name: str) -> dict[str, Any]:
    value = one.get(name)
    return value if isinstance(value, dict) else {}


def choose(devices: list[dict[str, str]], udid: str | None) -> dict[str, str]:
    """Raises InputError: none, several, or one that is not ready."""
    usable = (
        [one for one in devices if one["tunnel"] != "unavailable"]
        if udid is None
        else [one for one in devices if udid in (one["udid"], one["name"])]
    )
    listed = ", ".join(f"ios:{one['udid']} ({one['model']})" for one in devices) or "none"
    if not usable:
        raise InputError(
            f"no {'such ' if udid else ''}iPhone or iPad can be reached; devicectl lists {listed}: connect and trust it"
        )
    if len(usable) > 1:
        raise InputError(f"several devices: give --device with one of {listed}")
    (one,) = usable
    if one["paired"] != "paired":
        raise InputError(f"{one['udid']} is not paired: connect it by cable and tap Trust")
    if one["developer"] == "disabled":
        raise InputError(f"{one['udid']}: turn on Developer Mode in Settings, Privacy & Security")
    return one


class Ios:
    """Implements protocol.Device."""

    def __init__(
        self, udid: str | None = None, app: str | None = None, keep: bool = False, poll: float = 2.0, patience: float = 120.0
    ) -> None:
        if shutil.which("xcrun") is None:
            raise InputError("xcrun is not installed: benchmarks on iOS need a Mac with Xcode 15 or later")
        self._about = choose(parse_devices(self._call("list", "devices")), udid)
        self._app, self._keep, self._poll, self._patience = app or APP, keep, poll, patience
        self._samples: list[Sample] = []

    def describe(self) -> dict[str, Any]:
        one = self._about
        return {
            "kind": "ios",
            "name": one["model"] or one["name"],
            "os": f"iOS {one['os']}",
            "soc": one["product"],
            "build": one["build"],
            "runner": self._app,
        }

    def install(self, bundle: Bundle, progress: Progress) -> None:
        """Copies the bundle into the app's Documents. Raises InputError: the app is not installed."""
        apps = self._call("device", "info", "apps", device=True)
        ids = {str(one.get("bundleIdentifier")) for one in apps.get("result", {}).get("apps", []) if isinstance(one, dict)}
        if self._app not in ids:
            raise InputError(f"{self._app} is not on {self._about['udid']}: build and run it once from apps/ios")
        self._model = bundle_hash(bundle)[:16]
        progress("copy", 0, 1)
        self._call(
            "device",
            "copy",
            "to",
            *self._container(),
            "--source",
            str(bundle.folder),
            "--destination",
            f"{_SHARED}/{FOLDER}/models/{self._model}",
            device=True,
            timeout=3600,
        )

    def launch(self, run: Run, plan: Plan) -> Iterator[dict[str, Any]]:
        """Polls the app's file. Raises RunFailed: it did not start, or its file stopped growing."""
        request = Request(_fresh(), self._model, run.steps, plan.threads, run.cold, plan.sample_s)
        try:
            self._start(request)
        except InputError as error:
            raise RunFailed(f"the app did not start: {error}") from None
        seen, moved, told = 0, time.monotonic(), False
        while True:
            lines = self._lines(request)
            for line in lines[seen:]:
                moved, told = time.monotonic(), told or line["kind"] == "error"
                if line["kind"] == "exit":
                    if line.get("code") and not told:
                        raise RunFailed(f"the app's benchmark ended with {line['code']}")
                    return
                if line["kind"] == "sample":
                    self._samples.append(_sample(line))
                else:
                    yield line
            seen = max(seen, len(lines))
            if time.monotonic() - moved > self._patience + (plan.sustain_s if run.name == "sustained" else 0):
                raise RunFailed("the app wrote nothing more: iOS may have ended it (memory), or the phone went away")
            time.sleep(self._poll)

    def sample(self) -> Sample | None:
        """devicectl reads neither battery nor heat: the app is started to read them, for the thermal gate."""
        told = self._ask(Request(_fresh(), sample_s=1.0))
        return next((_sample(line) for line in told if line["kind"] == "sample"), None)

    def collected(self) -> list[Sample]:
        found, self._samples = self._samples, []
        return found

    def clean(self) -> None:
        """devicectl can't delete in a container: the app does it itself, in one more start."""
        if not self._keep:
            self._ask(Request(_fresh(), remove=True))  # unanswered: it stays until the app measures again or is removed

    def _ask(self, request: Request, times: int = 15) -> list[dict[str, Any]]:
        """Lines of a short request; what there is of them if the app does not start or end."""
        lines: list[dict[str, Any]] = []
        with contextlib.suppress(InputError):
            self._start(request)
            for _ in range(times):
                lines = self._lines(request)
                if any(line["kind"] == "exit" for line in lines):
                    break
                time.sleep(self._poll)
        return lines

    def _start(self, request: Request) -> None:
        self._call(
            "device", "process", "launch", "--terminate-existing", "--", self._app, f"--{EXTRA}", request.text(), device=True
        )

    def _container(self) -> list[str]:
        return ["--domain-type", "appDataContainer", "--domain-identifier", self._app]

    def _lines(self, request: Request) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / "bench.jsonl"
            try:
                self._call(
                    "device",
                    "copy",
                    "from",
                    *self._container(),
                    "--source",
                    str(request.answer(Path(_SHARED))),
                    "--destination",
                    str(local),
                    device=True,
                )
                rows = local.read_text("utf-8").split("\n")[:-1]
            except (InputError, OSError, UnicodeDecodeError):
                return []
        found = []
        for row in rows:
            with contextlib.suppress(ValueError):
                line = json.loads(row)
                if isinstance(line, dict) and isinstance(line.get("kind"), str):
                    found.append(line)
        return found

    def _call(self, *arguments: str, device: bool = False, timeout: float = 120) -> dict[str, Any]:
        """devicectl's JSON, which it writes to a file only. Raises InputError with what it says is wrong."""
        with tempfile.TemporaryDirectory() as scratch:
            answer = Path(scratch) / "answer.json"
            command = command_line(arguments, str(answer), self._about["udid"] if device else None)
            try:
                done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
            except subprocess.TimeoutExpired:
                raise InputError(f"devicectl {' '.join(arguments[:3])} gave no answer in {timeout:g} s") from None
            except OSError as error:
                raise InputError(f"xcrun can't be run ({error.strerror}): install Xcode 15 or later") from None
            try:
                document = json.loads(answer.read_text("utf-8"))
            except (OSError, ValueError):
                said = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise InputError(f"devicectl {' '.join(arguments[:3])}: {said[:200]}") from None
        if done.returncode or document.get("info", {}).get("outcome") not in (None, "success"):
            raise InputError(f"devicectl {' '.join(arguments[:3])}: {reason(document) or done.stderr.strip()[-200:]}")
        return document


def command_line(arguments: tuple[str, ...], answer: str, udid: str | None) -> list[str]:
    """xcrun devicectl with its own flags before `--`: what follows is the app and its arguments, which look like flags."""
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    flags = (["--device", udid] if udid else []) + ["--json-output", answer]
    return ["xcrun", "devicectl", *words[:at], *flags, *words[at:]]


def _fresh() -> str:
    return f"{secrets.token_hex(8)}.jsonl"


def reason(document: dict[str, Any]) -> str:
    """The innermost NSLocalizedDescription of an error."""
    error, text = document.get("error"), ""
    while isinstance(error, dict):
        info = _part(error, "userInfo")
        text = str(_part(info, "NSLocalizedDescription").get("string") or text)
        error = _part(info, "NSUnderlyingError").get("error")
    return text


def _sample(line: dict[str, Any]) -> Sample:
    """level 0..1 (UIDevice.batteryLevel; -1: unknown), state unplugged, charging or full, thermal (ThermalState)."""
    level = line.get("level")
    percent = 100 * level if isinstance(level, int | float) and 0 <= level <= 1 else None
    plugged = None if "state" not in line else line["state"] != "unplugged"
    status = THERMAL.get(str(line.get("thermal")))
    return Sample(float(line.get("t", 0)), Battery(percent, plugged=plugged), Thermal(status))
