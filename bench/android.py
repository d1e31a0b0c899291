"""A phone on adb as a device of the protocol: push, run, collect, clean up.

Runs go on while the cable is out: runner and sampler are detached on the phone and write files, which are read as they grow.
Energy needs exactly that: unplugged, or adb over Wi-Fi. Two ways to run:
    the command-line runner p3m_bench (export/kernels) in /data/local/tmp, the default
    the app's bench activity (`app`): am start with extras steps, bundle, options and out; it appends to `out` and writes
    its exit code to out.rc. Unverified: no app of ours has run on a phone.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from phi3mobile.bench.adb import Adb, ShellFailed, Unplugged
from phi3mobile.bench.battery import MARK, Sample, parse_capacity_mah, parse_sample
from phi3mobile.bench.protocol import Plan, Progress, Run, RunFailed, bundle_hash
from phi3mobile.bundle import MANIFEST, Bundle
from phi3mobile.errors import InputError

FOLDER = "/data/local/tmp/phi3mobile"
RUNNER = "p3m_bench"
ACTIVITY = ".BenchActivity"
_SPARE = 256 << 20  # bytes to leave free
_END = f"{MARK}end"
# One block of readings (battery.parse_sample). What a phone lacks or forbids prints nothing.
_READINGS = " ".join(
    f"echo; echo {MARK}{name}; {command} 2>/dev/null;"
    for name, command in {
        "time": "date +%s.%N",
        "battery": "dumpsys battery",
        "thermal": "dumpsys thermalservice",
        "current": "cat /sys/class/power_supply/battery/current_now",
        "voltage": "cat /sys/class/power_supply/battery/voltage_now",
        "rails": "cat /sys/bus/iio/devices/*/energy_value",
    }.items()
)
_PROPERTIES = {
    "manufacturer": "ro.product.manufacturer", "model": "ro.product.model", "release": "ro.build.version.release",
    "sdk": "ro.build.version.sdk", "soc": "ro.soc.model", "platform": "ro.board.platform", "build": "ro.build.fingerprint",
    "abi": "ro.product.cpu.abi",
}  # fmt: skip


class Android:
    """Implements protocol.Device.

    runner: folder with p3m_bench and its libraries, built for the phone. app: package whose bench activity runs instead.
    keep: leave bundle and runner on the phone, for the next time.
    """

    def __init__(
        self, adb: Adb, runner: Path | None = None, app: str | None = None, keep: bool = False, folder: str = FOLDER,
        patience: float = 120.0, poll: float = 1.0,
    ) -> None:  # fmt: skip
        self._adb, self._runner, self._app, self._keep = adb, runner, app, keep
        self._folder, self._patience, self._poll = folder, patience, poll
        if app:
            self._folder = f"/sdcard/Android/data/{app}/files"
        self._run_folder = f"{self._folder}/run"
        self._offset = {"out": 0, "samples": 0}
        self._rest = {"out": "", "samples": ""}
        self._samples: list[Sample] = []

    def describe(self) -> dict[str, Any]:
        told = self._adb.read("; ".join(f'echo "$(getprop {name})"' for name in _PROPERTIES.values())).splitlines()
        found = dict(zip(_PROPERTIES, [*told, *[""] * len(_PROPERTIES)], strict=False))
        memory = self._adb.read("cat /proc/meminfo").partition("MemTotal:")[2].split()
        governor = self._adb.read("cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor 2>/dev/null || true").split()
        cores = self._adb.read("nproc").strip()
        return {
            "kind": "android", "name": f"{found['manufacturer']} {found['model']}".strip(),
            "os": f"Android {found['release']} (API {found['sdk']})", "soc": found["soc"] or found["platform"],
            "build": found["build"], "abi": found["abi"], "cores": int(cores) if cores.isdigit() else None,
            "memory_bytes": int(memory[0]) * 1024 if memory else None, "governor": ", ".join(sorted(set(governor))) or None,
            "capacity_mah": parse_capacity_mah(self._adb.read("dumpsys batterystats --checkin", timeout=120)),
            "runner": self._app or RUNNER,
        }  # fmt: skip

    def install(self, bundle: Bundle, progress: Progress) -> None:
        """Push what is not there yet, after a look at the free space. Raises InputError: no room, no runner."""
        files = self._runner_files() if not self._app else {}
        self._bundle, self._remote = bundle, f"{self._folder}/models/{bundle_hash(bundle)[:16]}"
        files |= {f"{self._remote}/{name}": bundle.folder / name for name in (*bundle.manifest["files"], MANIFEST)}
        try:
            folders = sorted({str(Path(remote).parent) for remote in files} | {self._run_folder})
            self._adb.shell(f"mkdir -p {' '.join(map(shlex.quote, folders))}")
            self._require_space(files)
            for number, (remote, local) in enumerate(files.items()):
                progress(f"push {local.name}", number, len(files))
                listed = bundle.manifest["files"].get(local.relative_to(bundle.folder).as_posix()) \
                    if local.is_relative_to(bundle.folder) else None  # fmt: skip
                self._adb.push(local, remote, listed and listed["sha256"], patience=self._patience,
                               progress=lambda done, total, name=local.name: progress(f"push {name}", done, total))  # fmt: skip
            if not self._app:
                self._adb.shell(f"chmod 755 {self._folder}/runner/{RUNNER}")
        except Unplugged as gone:
            raise InputError(f"{gone} while the bundle was pushed; run again, the push goes on where it ended") from None
        except ShellFailed as failed:
            raise InputError(f"the phone {self._adb.serial} refuses: {failed}") from None

    def launch(self, run: Run, plan: Plan) -> Iterator[dict[str, Any]]:
        """Raises RunFailed: the runner crashed or was killed, the phone restarted or stayed away."""
        self._offset, self._rest = {"out": 0, "samples": 0}, {"out": "", "samples": ""}
        told, code = False, ""
        try:
            self._stay(lambda: self._adb.shell(self._start_command(run, plan)))
            while not code:
                time.sleep(self._poll)
                code = self._state()  # before the rest of the output is read: then nothing follows
                for line in self._grown("out", "\n"):
                    told = told or line["kind"] == "error"
                    yield line
            self._samples += [sample for sample in self._grown("samples", _END) if sample]
        except Unplugged as gone:
            self._patience = min(self._patience, 5)  # the other runs need not wait as long
            raise RunFailed(f"{gone} and was not back in time; what it printed until then is kept") from None
        except ShellFailed as failed:
            raise RunFailed(f"the phone refuses: {failed}") from None
        if code != "0" and not told:
            raise RunFailed(self._why(code))

    def sample(self) -> Sample | None:
        try:
            return parse_sample(self._stay(lambda: self._adb.shell(f"{_READINGS} true")))
        except Unplugged as gone:
            raise RunFailed(f"{gone}") from None
        except ShellFailed:
            return None

    def collected(self) -> list[Sample]:
        found, self._samples = self._samples, []
        return found

    def clean(self) -> None:
        """Stops what still runs; removes everything unless `keep`."""
        pid, gone = shlex.quote(f"{self._run_folder}/pid"), [self._run_folder]
        if not self._keep:
            gone += [self._remote] if self._app else [self._folder]
        with contextlib.suppress(Unplugged, ShellFailed):
            self._adb.read(f"kill -9 -$(cat {pid})" if not self._app else f"am force-stop {self._app}")
            self._adb.shell(f"rm -rf {' '.join(map(shlex.quote, gone))}")

    def _stay(self, do: Callable[[], str]) -> str:
        return self._adb.waiting(do, self._patience)

    def _runner_files(self) -> dict[str, Path]:
        if self._runner is None or not (self._runner / RUNNER).is_file():
            abi = self._adb.read("getprop ro.product.cpu.abi").strip() or "arm64-v8a"
            raise InputError(
                f"no {RUNNER} for {abi} in {self._runner or 'this checkout'}: build it as export/kernels/README.md says, "
                "and give its folder with --runner"
            )
        files = [self._runner / RUNNER, *sorted(self._runner.glob("*.so"))]
        return {f"{self._folder}/runner/{path.name}": path for path in files}

    def _require_space(self, files: dict[str, Path]) -> None:
        sizes = self._adb.read(f"stat -c '%s %n' {' '.join(map(shlex.quote, files))} || true")
        there = {name: size for size, _, name in (line.partition(" ") for line in sizes.splitlines())}
        lacking = [local for remote, local in files.items() if there.get(remote) != str(local.stat().st_size)]
        # Packed weights take as much again, once.
        needed = sum(local.stat().st_size for local in lacking) + self._bundle.program_bytes + _SPARE
        free = self._adb.free_bytes(self._folder)
        if free is not None and free < needed:
            raise InputError(f"the phone {self._adb.serial} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: "
                             "make room on it, or take a smaller bundle")  # fmt: skip

    def _options(self, run: Run, plan: Plan) -> list[str]:
        model = self._bundle.manifest["model"]
        return [f"threads={plan.threads}", f"chunk={model['chunk']}", f"context={model['context']}",
                f"original={model['original_context'] or 0}", f"cold={run.cold:d}"]  # fmt: skip

    def _start_command(self, run: Run, plan: Plan) -> str:
        """A shell line that returns at once: clears the run's folder, starts sampler and runner away from this shell."""
        if self._app:
            return activity_command(self._app, self._remote, run, self._options(run, plan), self._run_folder)
        packed = f"{self._folder}/packed-{bundle_hash(self._bundle)[:16]}"
        program = [f"{self._folder}/runner/{RUNNER}", f"{self._remote}/{self._bundle.manifest['runtime']['program']}",
                   f"packed={packed}", *self._options(run, plan), *run.steps]  # fmt: skip
        job = (
            f"echo $$ > pid; (while :; do {{ {_READINGS} echo; echo {_END}; }} >> samples; sleep {plan.sample_s:g}; done) & "
            f"LD_LIBRARY_PATH={shlex.quote(self._folder + '/runner')} {shlex.join(program)} > out 2> err; "
            f"code=$?; kill $!; {{ {_READINGS} echo; echo {_END}; }} >> samples; echo $code > rc"
        )
        forget = f"rm -f {shlex.quote(packed)}; " if run.cold else ""
        return (
            f"{forget}mkdir -p {shlex.quote(self._run_folder)} && cd {shlex.quote(self._run_folder)} && "
            f"rm -f out err rc pid samples && (setsid nohup sh -c {shlex.quote(job)} < /dev/null > /dev/null 2>&1 &)"
        )

    def _state(self) -> str:
        """Exit code of the runner; "" while it runs; "lost" where it vanished without one."""
        folder = shlex.quote(self._run_folder)
        alive = f"pidof {self._app}" if self._app else "kill -0 $(cat pid) 2>/dev/null"
        # The code is looked for again after the process: it may end in between.
        command = f"cd {folder} && (cat rc 2>/dev/null || ({alive} > /dev/null && echo) || cat rc 2>/dev/null || echo lost)"
        return self._stay(lambda: self._adb.shell(command)).strip()

    def _grown(self, name: str, end: str) -> list[Any]:
        """Whole lines (blocks) that a file got since it was last read."""
        path = shlex.quote(f"{self._run_folder}/{name}")
        new = self._stay(lambda: self._adb.shell(f"tail -c +{self._offset[name] + 1} {path} 2>/dev/null || true"))
        self._offset[name] += len(new.encode(errors="surrogateescape"))
        *whole, self._rest[name] = (self._rest[name] + new).split(end)
        if name == "samples":
            return [parse_sample(block) for block in whole]
        return [line for text in whole if (line := _line(text))]

    def _why(self, code: str) -> str:
        last = (self._adb.read(f"tail -n 1 {shlex.quote(self._run_folder + '/err')}").strip() or "it said nothing")[:200]
        if code == "lost":
            return "the runner vanished without a trace: did the phone restart?"
        if code in ("137", "9"):
            return f"the phone's system killed the runner, as it does when memory is short ({last})"
        return f"the runner ended with {code}: {last}"


def activity_command(app: str, bundle: str, run: Run, options: list[str], folder: str) -> str:
    """`am start` of the app's bench activity in a fresh process; its result lies in FOLDER/out."""
    extras = {"bundle": bundle, "options": " ".join(options), "steps": " ".join(run.steps), "out": f"{folder}/out"}
    pairs = " ".join(f"--es {name} {shlex.quote(value)}" for name, value in extras.items())
    clear = f"mkdir -p {shlex.quote(folder)} && cd {shlex.quote(folder)} && rm -f out rc samples"
    return f"{clear} && am start -W -S -n {shlex.quote(f'{app}/{ACTIVITY}')} {pairs}"


def _line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None  # a line the phone's linker or kernel put between ours
    return line if isinstance(line, dict) and isinstance(line.get("kind"), str) else None
