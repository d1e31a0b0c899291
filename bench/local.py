"""This machine as a device of the protocol: every run is a fresh Python process (bench/steps.py)."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from phi3mobile.bench.battery import Battery, Sample, Thermal, parse_current_a
from phi3mobile.bench.measure import usable_cores
from phi3mobile.bench.protocol import Plan, Run, RunFailed
from phi3mobile.bundle import Bundle
from phi3mobile.files import cache_folder, scratch_folder
from phi3mobile.progress import Progress

STEPS = "phi3mobile.bench.steps"


class Local:
    """Implements protocol.Device. Its packed weights are its own, so that a cold run packs them."""

    def __init__(self, power: Path = Path("/sys/class/power_supply"), thermal: Path = Path("/sys/class/thermal")) -> None:
        self._power, self._thermal, self._cache, self._stack = power, thermal, "", ExitStack()
        self._samples: list[Sample] = []

    def describe(self) -> dict[str, Any]:
        import psutil

        governor = _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
        return {
            "kind": "host",
            "name": platform.node(),
            "os": platform.platform(),
            "soc": _processor(),
            "cores": usable_cores(),
            "memory_bytes": psutil.virtual_memory().total,
            "governor": governor,
            "build": platform.version(),
            "runner": "python",
        }

    def install(self, bundle: Bundle, progress: Progress) -> None:
        self._bundle = bundle
        self._cache = str(self._stack.enter_context(scratch_folder(cache_folder(), "bench")))

    def launch(self, run: Run, plan: Plan) -> Iterator[dict[str, Any]]:
        if run.cold:
            shutil.rmtree(Path(self._cache, "phi3mobile", "packed"), ignore_errors=True)
            _forget(self._bundle)
        command = [sys.executable, "-m", STEPS, str(self._bundle.folder), f"threads={plan.threads}", *run.steps]
        due = time.monotonic()
        with (
            tempfile.TemporaryFile("w+", errors="replace") as log,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | {"XDG_CACHE_HOME": self._cache}
            ) as process,
        ):
            try:
                told = False
                for text in process.stdout or ():
                    line = json.loads(text)
                    told = told or line["kind"] == "error"
                    yield line
                    if time.monotonic() >= due:
                        due += plan.sample_s
                        self._note()
                code = process.wait()
            finally:
                process.kill()
            self._note()
            if code and not told:
                log.seek(0)
                last = (log.read().strip().splitlines() or ["no message"])[-1]
                raise RunFailed(f"the runner ended with {code}: {last[:200]}")

    def sample(self) -> Sample | None:
        """Laptops have a battery and thermal zones; a server has neither."""
        battery = next((one for one in sorted(self._power.glob("*")) if _read(one / "type") == "Battery"), None)
        zones = {
            _read(zone / "type") or zone.name: _celsius(_read(zone / "temp"))
            for zone in sorted(self._thermal.glob("thermal_zone*"))
        }
        zones = {name: value for name, value in zones.items() if value is not None}
        if battery is None and not zones:
            return None
        percent = _read(battery / "capacity") if battery else None
        charge = (
            Battery(float(percent) if percent else None, plugged=_read(battery / "status") != "Discharging")
            if battery
            else Battery()
        )
        current = parse_current_a(_read(battery / "current_now") or "") if battery else None
        volts = _read(battery / "voltage_now") if battery else None
        return Sample(time.time(), charge, Thermal(None, zones), current, float(volts) / 1e6 if volts else None)

    def collected(self) -> list[Sample]:
        found, self._samples = self._samples, []
        return found

    def clean(self) -> None:
        self._stack.close()

    def _note(self) -> None:
        if sample := self.sample():
            self._samples.append(sample)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _celsius(text: str | None) -> float | None:
    try:
        value = int(text or "") / 1000
    except ValueError:
        return None
    return value if -60 < value < 200 else None


def _processor() -> str:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _forget(bundle: Bundle) -> None:
    if hasattr(os, "posix_fadvise"):
        for name in bundle.manifest["files"]:
            with (bundle.folder / name).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
