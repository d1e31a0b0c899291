"""A phone on adb as a device of the protocol: push, run, collect, clean up.

Runs go on while the cable is out: runner and sampler are detached on the phone and write files, which are read as they grow.
Energy needs exactly that: unplugged, or adb over Wi-Fi. Two runners: the command-line p3m (phi3mobile/core) in
/data/local/tmp, here, and the installed app (android_app.py).
"""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from phi3mobile.bench.adb import Adb, ShellFailed, Unplugged
from phi3mobile.bench.battery import MARK, Sample, parse_capacity_mah, parse_sample
from phi3mobile.bench.protocol import Plan, Run, RunFailed, bundle_hash
from phi3mobile.bundle import Bundle
from phi3mobile.errors import InputError
from phi3mobile.manifest import MANIFEST
from phi3mobile.progress import Progress

FOLDER = "/data/local/tmp/phi3mobile"
RUNNER = "p3m"
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
    "manufacturer": "ro.product.manufacturer",
    "model": "ro.product.model",
    "release": "ro.build.version.release",
    "sdk": "ro.build.version.sdk",
    "soc": "ro.soc.model",
    "platform": "ro.board.platform",
    "build": "ro.build.fingerprint",
    "abi": "ro.product.cpu.abi",
}


class Runner(Protocol):
    """What runs on the phone. `folder`: where its files lie; `models`: bundles in it; `out`: the current run's lines."""

    name: str
    folder: str
    models: str
    out: str
    packs: bool  # it writes packed weights beside the bundle, as large as the program
    start_within: float  # seconds after which a run that has said nothing is given up; 0: as long as it lives

    def prepare(self, adb: Adb, bundle: Bundle) -> dict[str, Path]:
        """Files that must lie beside the bundle: path on the phone -> file here. Raises InputError: it can't run there."""
        ...

    def work(self, model: str, bundle: Bundle, run: Run, plan: Plan) -> str:
        """A shell line that lasts as long as the run, for the run's folder; what goes wrong it writes to `err` there."""
        ...

    stop: str  # a shell line

    def remains(self, keep: bool) -> list[str]: ...


class NativeRunner:
    """p3m bench. `built`: folder with it and its libraries, built for the phone.

    Built without the NDK (`make arm64-runner`), glibc's loader lies beside it and starts it.
    """

    name, packs, start_within = RUNNER, True, 0.0
    stop = "kill -9 -$(cat pid)"

    def __init__(self, built: Path, folder: str = FOLDER) -> None:
        self._built, self.folder = built, folder
        self.models, self.out = f"{folder}/models", f"{folder}/run/out"

    def prepare(self, adb: Adb, bundle: Bundle) -> dict[str, Path]:
        if not (self._built / RUNNER).is_file():
            abi = adb.read("getprop ro.product.cpu.abi").strip() or "arm64-v8a"
            raise InputError(
                f"no {RUNNER} for {abi} in {self._built}: build it as phi3mobile/core/README.md says, and give its folder with "
                "--runner; or --app where the app is installed"
            )
        files = (self._built / RUNNER, *sorted(self._built.glob("*.so*")))
        return {f"{self.folder}/runner/{path.name}": path for path in files}

    def work(self, model: str, bundle: Bundle, run: Run, plan: Plan) -> str:
        about = bundle.manifest["model"]
        options = [
            f"threads={plan.threads}",
            f"chunk={about['chunk']}",
            f"context={about['context']}",
            f"original={about['original_context'] or 0}",
            f"cold={run.cold:d}",
        ]
        packed, place = f"{self.folder}/packed-{bundle_hash(bundle)[:16]}", f"{self.folder}/runner"
        loader = next((path.name for path in self._built.glob("ld-linux-*.so*")), None)
        start = [f"{place}/{loader}", "--library-path", place] if loader else []
        program = [
            *start,
            f"{place}/{RUNNER}",
            "bench",
            f"{model}/{bundle.manifest['runtime']['program']}",
            f"packed={packed}",
            *options,
        ]
        forget = f"rm -f {shlex.quote(packed)}; " if run.cold else ""
        return (
            f"{forget}chmod 755 {shlex.quote(program[0])}; "
            f"{'' if loader else f'LD_LIBRARY_PATH={shlex.quote(place)} '}{shlex.join([*program, *run.steps])} > out 2> err"
        )

    def remains(self, keep: bool) -> list[str]:
        return [] if keep else [self.folder]


class Android:
    """Implements protocol.Device. `keep`: leave bundle and runner on the phone, for the next time."""

    def __init__(
        self, adb: Adb, runner: Runner, keep: bool = False, folder: str = FOLDER, patience: float = 120.0, poll: float = 1.0
    ) -> None:
        self._adb, self._runner, self._keep = adb, runner, keep
        self._patience, self._poll, self._run_folder = patience, poll, f"{folder}/run"
        self._offset: dict[str, int] = {}
        self._rest: dict[str, str] = {}
        self._samples: list[Sample] = []

    def describe(self) -> dict[str, Any]:
        told = self._adb.read("; ".join(f"getprop {name}; echo {MARK}" for name in _PROPERTIES.values())).split(f"{MARK}\n")
        found = dict(zip(_PROPERTIES, (" ".join(one.split()) for one in [*told, *[""] * len(_PROPERTIES)]), strict=False))
        memory = self._adb.read("cat /proc/meminfo").partition("MemTotal:")[2].split()
        governor = self._adb.read("cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor 2>/dev/null || true").split()
        cores = self._adb.read("nproc").strip()
        return {
            "kind": "android",
            "name": f"{found['manufacturer']} {found['model']}".strip(),
            "os": f"Android {found['release']} (API {found['sdk']})",
            "soc": found["soc"] or found["platform"],
            "build": found["build"],
            "abi": found["abi"],
            "cores": int(cores) if cores.isdigit() else None,
            "memory_bytes": int(memory[0]) * 1024 if memory else None,
            "governor": ", ".join(sorted(set(governor))) or None,
            "capacity_mah": parse_capacity_mah(self._adb.read("dumpsys batterystats --checkin", timeout=120)),
            "runner": self._runner.name,
        }

    def install(self, bundle: Bundle, progress: Progress) -> None:
        """Push what is not there yet, after a look at the free space. Raises InputError: no room, no runner."""
        self._bundle, self._model = bundle, f"{self._runner.models}/{bundle_hash(bundle)[:16]}"
        try:
            files = self._runner.prepare(self._adb, bundle)
            files |= {f"{self._model}/{name}": bundle.folder / name for name in (*bundle.manifest["files"], MANIFEST)}
            folders = sorted({str(Path(remote).parent) for remote in files} | {self._run_folder})
            self._adb.shell(f"mkdir -p {' '.join(map(shlex.quote, folders))}")
            self._require_space(files)
            for number, (remote, local) in enumerate(files.items()):
                progress(f"push {local.name}", number, len(files))
                listed = (
                    bundle.manifest["files"].get(local.relative_to(bundle.folder).as_posix())
                    if local.is_relative_to(bundle.folder)
                    else None
                )
                self._adb.push(
                    local,
                    remote,
                    listed and listed["sha256"],
                    patience=self._patience,
                    progress=lambda done, total, name=local.name: progress(f"push {name}", done, total),
                )
        except Unplugged as gone:
            raise InputError(f"{gone} while the bundle was pushed; run again, the push goes on where it ended") from None
        except ShellFailed as failed:
            raise InputError(f"the phone {self._adb.serial} refuses: {failed}") from None

    def launch(self, run: Run, plan: Plan) -> Iterator[dict[str, Any]]:
        """Raises RunFailed: the runner crashed or was killed, the phone restarted or stayed away."""
        self._offset, self._rest = {"out": 0, "samples": 0}, {"out": "", "samples": ""}
        told, code, ended = False, "", None
        start = self._start_command(run, plan)
        try:
            self._stay(lambda: self._adb.shell(start))
            latest = time.monotonic() + self._runner.start_within
            while not code:
                time.sleep(self._poll)
                code = self._state()  # before the rest of the output is read: then nothing follows
                for line in self._grown("out", "\n"):
                    told = told or line["kind"] == "error"
                    if line["kind"] == "exit":  # the app's last line; its process may take a while to go
                        ended = str(line.get("code"))
                        self._stay(lambda: self._adb.read(self._runner.stop))
                    else:
                        yield line
                if self._runner.start_within and not self._offset["out"] and time.monotonic() > latest:
                    self._stop()
                    raise RunFailed(f"{self._runner.name} did not begin: unlock the phone, and keep its screen on")
            self._samples += [sample for sample in self._grown("samples", _END) if sample]
        except Unplugged as gone:
            self._patience = min(self._patience, 5)  # the other runs need not wait as long
            raise RunFailed(f"{gone} and was not back in time; what it printed until then is kept") from None
        except ShellFailed as failed:
            raise RunFailed(f"the phone refuses: {failed}") from None
        if self._runner.start_within and ended is None:
            code = "lost" if code == "0" else code
        code = ended or code
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
        gone = [self._run_folder, *self._runner.remains(self._keep)]
        with contextlib.suppress(Unplugged, ShellFailed):
            self._stop()
            self._adb.shell(f"rm -rf {' '.join(map(shlex.quote, gone))}")

    def _stop(self) -> None:
        self._adb.read(f"cd {shlex.quote(self._run_folder)} && {{ {self._runner.stop}; kill -9 -$(cat pid); }}")

    def _stay(self, do: Callable[[], str]) -> str:
        return self._adb.waiting(do, self._patience)

    def _require_space(self, files: dict[str, Path]) -> None:
        sizes = self._adb.read(f"stat -c '%s %n' {' '.join(map(shlex.quote, files))} || true")
        there = {name: size for size, _, name in (line.partition(" ") for line in sizes.splitlines())}
        needed = sum(size for remote, local in files.items() if there.get(remote) != str(size := local.stat().st_size))
        needed += _SPARE + (self._bundle.program_bytes if self._runner.packs else 0)
        free = self._adb.free_bytes(self._runner.folder)
        if free is not None and free < needed:
            raise InputError(
                f"the phone {self._adb.serial} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: "
                "make room on it, or take a smaller bundle"
            )

    def _start_command(self, run: Run, plan: Plan) -> str:
        """A shell line that returns at once: clears the run's folder, starts sampler and runner away from this shell."""
        work = self._runner.work(self._model, self._bundle, run, plan)
        job = (
            f"echo $$ > pid; (while :; do {{ {_READINGS} echo; echo {_END}; }} >> samples; sleep {plan.sample_s:g}; done) & "
            f"{work}; code=$?; kill $!; {{ {_READINGS} echo; echo {_END}; }} >> samples; echo $code > rc"
        )
        folder = shlex.quote(self._run_folder)
        return (
            f"mkdir -p {folder} && cd {folder} && rm -f out err rc pid samples && "
            f"(setsid nohup sh -c {shlex.quote(job)} < /dev/null > /dev/null 2>&1 &)"
        )

    def _state(self) -> str:
        """Exit code of the runner; "" while it runs; "lost" where it vanished without one."""
        alive = "kill -0 $(cat pid) 2>/dev/null && echo"
        # The code is looked for again after the process: it may end in between.
        command = f"cd {shlex.quote(self._run_folder)} && (cat rc 2>/dev/null || ({alive}) || cat rc 2>/dev/null || echo lost)"
        return self._stay(lambda: self._adb.shell(command)).strip()

    def _grown(self, name: str, end: str) -> list[Any]:
        """Whole lines (blocks) that a file got since it was last read."""
        path = shlex.quote(self._runner.out if name == "out" else f"{self._run_folder}/{name}")
        new = self._stay(lambda: self._adb.shell(f"tail -c +{self._offset[name] + 1} {path} 2>/dev/null || true"))
        self._offset[name] += len(new.encode(errors="surrogateescape"))
        *whole, self._rest[name] = (self._rest[name] + new).split(end)
        if name == "samples":
            return [parse_sample(block) for block in whole]
        return [line for text in whole if (line := _line(text))]

    def _why(self, code: str) -> str:
        last = (self._adb.read(f"tail -n 1 {shlex.quote(self._run_folder + '/err')}").strip() or "it said nothing")[:200]
        if code == "lost":
            return f"the runner vanished without a trace: did the phone restart, or its system end it for its memory? ({last})"
        if code in ("137", "9"):
            return f"the phone's system killed the runner, as it does when memory is short ({last})"
        return f"the runner ended with {code}: {last}"


def _line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None  # a line the phone's linker or kernel put between ours
    return line if isinstance(line, dict) and isinstance(line.get("kind"), str) else None
