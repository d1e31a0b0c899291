"""Runs a Python program that nobody has read: a process of its own, with the kernel's limits around it.

Linux: no network, no other process, no file but the standard library's to read and an empty folder to write (Landlock and
seccomp; see sandbox_child.py). Elsewhere only time, memory and file sizes are limited, and running needs consent.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from phi3mobile.errors import InputError

CHILD = Path(__file__).with_name("sandbox_child.py")
NEEDED = {"files", "network", "processes"}
SECONDS, MEMORY = 10.0, 1 << 30


@dataclass(frozen=True)
class Outcome:
    """`passed`: it ran to its end. `reason`: "", an exception, or which limit it hit. `guards`: what was enforced."""

    passed: bool
    reason: str
    guards: frozenset[str]


def run_program(source: str, seconds: float = SECONDS, memory: int = MEMORY, unguarded: bool = False) -> Outcome:
    """Run `source` as __main__ with the standard library only. It passes if it ends without an exception or an exit.

    seconds: of wall time, and of CPU time; memory: bytes of address space. Raises InputError, before a line of it runs, if
    this system can't keep it from files, network and other processes, unless `unguarded`.
    """
    reading, writing = os.pipe()
    with TemporaryDirectory(prefix="phi3mobile-program-") as folder, os.fdopen(reading, "rb") as verdict:
        arguments = json.dumps(
            {
                "folder": folder,
                "seconds": seconds,
                "memory": memory,
                "report": writing,
                "needed": [] if unguarded else sorted(NEEDED),
            }
        )
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(CHILD), arguments],
            cwd=folder,
            env={"PATH": "", "TMPDIR": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[writing],
            start_new_session=True,
        )
        os.close(writing)
        late = False
        try:
            process.communicate(source.encode("utf-8", "replace"), timeout=seconds + 2)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        lines = verdict.read(1 << 16).decode("utf-8", "replace").splitlines()
    guards = frozenset(json.loads(lines[0])) if lines else frozenset()
    if not unguarded and not guards >= NEEDED:
        raise InputError(
            f"this system can't keep a program from {', '.join(sorted(NEEDED - guards))}: run on Linux 5.13 or later, or in a "
            "machine that may break, with --unguarded"
        )
    if late or process.returncode == -signal.SIGXCPU:
        return Outcome(False, f"ran longer than {seconds:g} s", guards)
    if len(lines) < 2:
        return Outcome(False, f"ended early, with code {process.returncode}", guards)
    return Outcome(lines[1] == "passed", "" if lines[1] == "passed" else lines[1], guards)
