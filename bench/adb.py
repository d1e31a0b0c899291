"""Android's own `adb` client: which phone, commands on it, and a push that goes on where it was cut off."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from phi3mobile.errors import InputError
from phi3mobile.files import sha256

_EXIT = "@@exit "
PIECE = 64 << 20  # bytes of one push: what is sent again after the cable was pulled
_STATES = {
    "unauthorized": "has not allowed this computer: unlock it and accept the dialog (USB debugging)",
    "offline": "is offline: replug it, or run `adb reconnect`",
    "no permissions": "can't be opened (no permissions): see `adb devices` for the udev rule",
    "authorizing": "is still authorizing: accept the dialog on it",
    "connecting": "is still connecting: wait a moment, or replug it",
    "recovery": "is in recovery: start it normally",
    "sideload": "is in sideload: start it normally",
    "rescue": "is in rescue: start it normally",
    "bootloader": "is in the bootloader: start it normally",
    "host": "is another computer's adb, no phone",
    "detached": "is detached: run `adb attach`",
}
# `adb devices -l`: serial, state, perhaps the port, then key:value pairs. A serial may have blanks (a second mDNS service of
# one name is called "NAME (2)"), and so may the state's text ("no permissions (...); see [...]") and a product's name.
_KEYS = r"(?:product|model|device|transport_id):"
_LINE = re.compile(
    rf"(?P<serial>(?:(?!\s{_KEYS}).)+)\s(?P<state>device|{'|'.join(_STATES)})"
    rf"(?:\s*\(.*?\)(?:; see \[\S*\])?)?(?P<pairs>(?:\s+(?!{_KEYS})\S+:\S+)*(?:\s+{_KEYS}.*)?)"
)
_PAIR = re.compile(rf"\s({_KEYS})(.*?)(?=\s+{_KEYS}|$)")


class Unplugged(Exception):
    """The phone went away while it was used."""


class ShellFailed(Exception):
    """A command on the phone ended with another code than 0."""


@dataclass(frozen=True)
class Phone:
    """A line of `adb devices -l`."""

    serial: str
    state: str
    model: str = ""


def parse_devices(text: str) -> list[Phone]:
    """`adb devices -l`. A line without a state that adb is known to print: its second word is taken for one."""
    phones = []
    for line in text.partition("List of devices attached")[2].splitlines():
        if found := _LINE.fullmatch(line.rstrip()):
            pairs = dict(_PAIR.findall(found["pairs"]))
            phones.append(Phone(found["serial"].strip(), found["state"], pairs.get("model:", "")))
        elif len(cells := line.split()) >= 2 and cells[0] != "*":  # * daemon started successfully
            phones.append(Phone(cells[0], cells[1]))
    return phones


def over_network(serial: str) -> bool:
    """host:port, or the name of an mDNS service: `adb connect` takes both."""
    return ":" in serial or re.search(r"\._adb(-tls-connect)?\._tcp\.?$", serial) is not None


def choose(phones: list[Phone], serial: str | None = None) -> str:
    """The serial of the phone to use. Raises InputError: none, several, not the one asked for, or one that is not ready."""
    listed = ", ".join(shlex.quote(f"adb:{phone.serial}") + (f" ({phone.model})" if phone.model else "") for phone in phones)
    if not phones:
        raise InputError("no phone: plug one in, enable USB debugging in its developer options, and see `adb devices`")
    if serial is None:
        ready = [phone for phone in phones if phone.state == "device"]
        if len(ready) > 1:
            raise InputError(f"several phones: give --device with one of {listed}")
        phone = (ready or phones)[0]
    else:
        found = [phone for phone in phones if phone.serial == serial]
        if not found:
            raise InputError(f"no phone {serial}: adb lists {listed}")
        phone = found[0]
    if phone.state != "device":
        raise InputError(f"the phone {phone.serial} {_STATES.get(phone.state, f'is in state {phone.state}')}")
    return phone.serial


class Adb:
    """Commands for one phone. `program`: path of adb, default the one on PATH."""

    def __init__(self, serial: str | None = None, program: str | None = None) -> None:
        self._program = program or shutil.which("adb")
        if self._program is None:
            raise InputError("adb is not installed: get Android's platform-tools (Debian: apt install adb)")
        self.serial = choose(self.phones(), serial)

    def phones(self) -> list[Phone]:
        return parse_devices(self._call("devices", "-l").stdout.decode(errors="replace"))

    def shell(self, command: str, timeout: float = 60) -> str:
        """What a command printed. Raises ShellFailed with its last error line, Unplugged.

        The exit code is asked for in the output: adb itself leaves with 0 when the phone vanishes during a command.
        """
        done = self._call("-s", self.serial, "shell", "-T", f"({command}\n); printf '\\n{_EXIT}%s' $?", timeout=timeout)
        out, mark, code = done.stdout.decode(errors="surrogateescape").rpartition(f"\n{_EXIT}")  # lengths in bytes stay
        said = (done.stderr or out.encode(errors="replace")).decode(errors="replace").strip()
        if not mark or not code.isdigit():
            self._raise_if_gone(said)
            raise Unplugged(f"the phone {self.serial} went away during a command")
        if code != "0":
            raise ShellFailed(f"{(said.splitlines() or ['no message'])[-1][:300]} (exit code {code})")
        return out

    def read(self, command: str, timeout: float = 60) -> str:
        """The same, "" where the command fails: for what some phones do not have."""
        try:
            return self.shell(command, timeout)
        except ShellFailed:
            return ""

    def send(self, local: Path, remote: str) -> None:
        """One `adb push`. Raises InputError where the phone refuses it (its storage is full), Unplugged."""
        self._copy("push", str(local), remote)

    def fetch(self, remote: str, local: Path) -> None:
        """One `adb pull`."""
        self._copy("pull", remote, str(local))

    def push(
        self,
        local: Path,
        remote: str,
        digest: str | None = None,
        piece: int = PIECE,
        patience: float = 120.0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> bool:
        """Copy a file in pieces, go on where an earlier or interrupted copy ended, and compare SHA-256. False: was there.

        patience: seconds to wait for an unplugged phone to come back. Raises InputError: no room, or damaged twice.
        """
        digest, total = digest or sha256(local), local.stat().st_size
        if self.waiting(lambda: self._sum(remote), patience) == digest:
            return False
        for _ in range(2):
            self._send_pieces(local, f"{remote}.partial", total, piece, patience, progress)
            partial = shlex.quote(f"{remote}.partial")
            if self.waiting(lambda: self._sum(f"{remote}.partial"), patience) == digest:
                self.waiting(lambda: self.shell(f"mv -f {partial} {shlex.quote(remote)}"), patience)  # noqa: B023  called here
                return True
            self.waiting(lambda: self.shell(f"rm -f {partial}"), patience)  # noqa: B023
        raise InputError(f"{local.name} arrived damaged twice: check the cable and the phone's storage")

    def waiting(self, do: Callable[[], str], patience: float) -> str:
        """do(), again after the phone came back. Raises Unplugged when it has not within `patience` seconds."""
        until = time.monotonic() + patience
        while True:
            try:
                return do()
            except Unplugged:
                if time.monotonic() >= until:
                    raise
                time.sleep(min(0.5, patience / 10))
                if over_network(self.serial):  # over the network adb looks for it only every ten seconds
                    self._call("disconnect", self.serial, timeout=20)
                    self._call("connect", self.serial, timeout=20)

    def free_bytes(self, folder: str) -> int | None:
        """Free space where `folder` lies, by df: its names may have blanks, and a long one wraps the line."""
        told = self.read(f"df -k {shlex.quote(folder)}").partition("\n")[2]
        numbers = re.search(r"\s\d+\s+\d+\s+(\d+)\s+(?:\d+%|-)\s", f" {told}")
        return int(numbers[1]) * 1024 if numbers else None

    def _sum(self, remote: str) -> str:
        """From its input: beside a name with a backslash sha256sum writes another."""
        return self.read(f"sha256sum < {shlex.quote(remote)}", timeout=600).partition(" ")[0]

    def _send_pieces(self, local: Path, partial: str, total: int, piece: int, patience: float, progress) -> None:
        name, part = shlex.quote(partial), shlex.quote(f"{partial}.piece")
        with local.open("rb") as file, tempfile.TemporaryDirectory() as scratch:
            slice_ = Path(scratch) / "piece"

            def step() -> str:
                # Whole pieces only: an append that was cut off is taken back.
                size = int(self.read(f"stat -c %s {name}").strip() or 0)
                if size > total:
                    self.shell(f"rm -f {name}")
                    size = 0
                start = size if size == total else size // piece * piece
                if start != size:
                    self.shell(f"truncate -s {start} {name}")
                progress(start, total)
                if start >= total and total:
                    return "done"
                file.seek(start)
                slice_.write_bytes(file.read(piece))
                self.send(slice_, f"{partial}.piece")
                self.shell(f"cat {part} >> {name} && rm -f {part}", timeout=600)
                return "done" if start + slice_.stat().st_size >= total else ""

            while not self.waiting(step, patience):
                pass
            progress(total, total)

    def _copy(self, verb: str, source: str, target: str) -> None:
        done = self._call("-s", self.serial, verb, source, target, timeout=3600)
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace").strip()
            full = [line for line in said.splitlines() if "no space" in line.lower() or "read-only" in line.lower()]
            if full:
                reason = full[0].rpartition(": ")[2]
                raise InputError(f"the phone {self.serial} can't store {target}: {reason}; make room on it")
            last = (said.splitlines() or ["no message"])[-1]
            self._raise_if_gone(said)
            raise ShellFailed(f"adb {verb}: {last[:300]}")

    def _raise_if_gone(self, said: str) -> None:
        """adb tells a vanished phone in many ways; asking for its state is surer than reading them."""
        signs = ("not found", "offline", "no devices", "closed", "unauthorized", "connect failed", "EOF", "protocol fault")
        state = self._call("-s", self.serial, "get-state", timeout=20)
        if state.returncode or state.stdout.strip() != b"device":
            raise Unplugged(f"the phone {self.serial} went away")
        if any(sign in said for sign in signs):
            raise Unplugged(f"the phone {self.serial} went away and came back")

    def _call(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                [self._program, *arguments], capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL, env=os.environ
            )
        except subprocess.TimeoutExpired:
            raise Unplugged(f"adb {' '.join(arguments[:4])[:80]} gave no answer in {timeout:g} s") from None
