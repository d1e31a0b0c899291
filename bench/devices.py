"""`phi3mobile bench BUNDLE --device ...`: which device, the protocol on it, and where its record goes."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3mobile.errors import InputError

if TYPE_CHECKING:
    from phi3mobile.bench.protocol import Device
    from phi3mobile.progress import Progress

NATIVE = Path(__file__).resolve().parents[1] / "phi3mobile" / "native"
KINDS = "host, adb, adb:SERIAL, ios or ios:UDID"
PRESETS = ("standard", "quick", "phi3-report")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the protocol; they go with --device or --preset."""
    flags = parser.add_argument_group("on a device, with a record that `phi3mobile report` reads")
    flags.add_argument("--device", help=KINDS)
    flags.add_argument("--preset", choices=PRESETS, help="what is measured (default: standard); phi3-report: its claims")
    flags.add_argument("--sustain", type=float, metavar="MINUTES", help="decode so long at the end (preset phi3-report: 30)")
    flags.add_argument("-o", "--out", type=Path, help="record (default: results/<time>-<device>-<bundle>.jsonl)")
    flags.add_argument("--runner", type=Path, help="folder of p3m and its libraries built for the phone")
    flags.add_argument("--app", metavar="PACKAGE", help="run in this installed app instead (ours: org.phi3mobile.assistant)")
    flags.add_argument("--keep", action="store_true", help="leave bundle and runner on the phone")
    flags.add_argument("--battery-wh", type=float, help="energy of the full battery (default: what the phone says)")
    flags.add_argument("--threads", type=int, help="default: the runner's choice")


def wanted(args: argparse.Namespace) -> bool:
    """Whether the protocol is asked for. Raises InputError for its flags without it, and for flags of the other way."""
    if args.device or args.preset:
        if args.bundle is None:
            raise InputError("--device and --preset take a bundle")
        for flag in ("peers", "perplexity", "lookup", "gguf", "depths"):
            if getattr(args, flag):
                raise InputError(f"--{flag} compares on this machine: it does not go with --device or --preset")
        if args.sustain is not None and not 0 <= args.sustain <= 24 * 60:
            raise InputError(f"--sustain {args.sustain:g}: give 0 to 1440 minutes")
        if args.battery_wh is not None and not 0.1 <= args.battery_wh <= 200:
            raise InputError(f"--battery-wh {args.battery_wh:g}: a phone's is about 10 to 25; see its data sheet")
        if args.threads is not None and not 0 <= args.threads <= 256:
            raise InputError(f"--threads {args.threads}: give 0 (the runner's choice) to 256")
        if args.threads and (args.device or "").partition(":")[0] == "ios":
            raise InputError(f"--threads {args.threads}: ExecuTorch's Objective-C classes take none; leave it out")
        return True
    for flag in ("sustain", "out", "runner", "app", "keep", "battery_wh", "threads"):
        if getattr(args, flag) not in (None, False):
            raise InputError(f"--{flag.replace('_', '-')} goes with --device ({KINDS}) or --preset")
    return False


def open_device(name: str, runner: Path | None = None, app: str | None = None, keep: bool = False) -> Device:
    """Raises InputError: no such device, or it is not ready."""
    kind, _, serial = name.partition(":")
    if kind == "host" and not serial:
        from phi3mobile.bench.local import Local

        return Local()
    if kind == "adb":
        from phi3mobile.bench.adb import Adb
        from phi3mobile.bench.android import Android, NativeRunner
        from phi3mobile.bench.android_app import AppRunner

        if not app:
            _need_runner(runner)
        adb = Adb(serial or None)
        if app:
            return Android(adb, AppRunner(app), keep)
        abi = adb.read("getprop ro.product.cpu.abi").strip()
        return Android(adb, NativeRunner(runner or NATIVE / f"android-{abi}"), keep)
    if kind == "ios":
        from phi3mobile.bench.ios import Ios

        return Ios(serial or None, app, keep)
    raise InputError(f"--device {name}: give {KINDS}")


def _need_runner(given: Path | None) -> None:
    """InputError if there is no p3m for any phone: in the folder that was given, or built into this package."""
    folders = [given] if given else sorted(NATIVE.glob("android-*"))
    if not any((folder / "p3m").is_file() for folder in folders):
        raise InputError(
            f"a phone is measured by p3m or by the app, and there is no p3m in {given or 'this installation'}: "
            "build it as phi3mobile/core/README.md says and give its folder with --runner; or install the app "
            "(apps/android/README.md) and give --app org.phi3mobile.assistant, for bundles of android-cpu or android-small"
        )


def run_protocol(args: argparse.Namespace, progress: Progress) -> tuple[dict[str, Any], dict[str, str]]:
    """Measures and writes the record; the JSON line, and a card for the screen."""
    from phi3mobile.bench.adb import Unplugged
    from phi3mobile.bench.battery import NOMINAL_V
    from phi3mobile.bench.protocol import Record, measure, plan_of
    from phi3mobile.bench.report_data import summarize
    from phi3mobile.bench.report_tables import card_rows
    from phi3mobile.bundle import open_bundle

    sustain = None if args.sustain is None else args.sustain * 60
    plan = plan_of(args.preset or "standard", sustain_s=sustain, threads=args.threads, rounds=args.rounds)
    try:
        device = open_device(args.device or "host", args.runner, args.app, args.keep)
        bundle = open_bundle(args.bundle)
        about = device.describe()
    except Unplugged as gone:
        raise InputError(f"{gone}; plug it in and run again") from None
    wh = args.battery_wh or (about["capacity_mah"] / 1000 * NOMINAL_V if about.get("capacity_mah") else None)
    path = args.out or Path("results") / _name(about["name"], bundle.manifest["name"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise InputError(f"{path} exists; give another name or remove it") from None
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror}); write elsewhere") from None
    try:
        with file:
            record = Record(file)
            status = measure(device, bundle, plan, record, progress, wh, about)
    finally:
        if path.stat().st_size == 0:  # nothing was measured
            path.unlink()
    found = summarize(record.lines, str(path))
    result = {"record": str(path), "status": status, "device": about["name"], **found.brief()}
    return result, {"device": about["name"], "status": status} | card_rows(found)


def _name(device: str, bundle: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", f"{device} {bundle}").strip("-").lower()
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{stem}.jsonl"
