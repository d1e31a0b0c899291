"""The SDK on this machine's JVM: built once a run by apps/android/build.py into build/android."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from phi3mobile.engines.native import native_library

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "build" / "android"
BUILD = ROOT / "apps" / "android" / "build.py"
Check = Callable[..., list[str]]


JVM, PACKING = ({"sdk", "jni", "tests", "java", "lint", "kdoc"}, {"aar", "apk", "aab", "gate"})  # steps of build.py


def built(*steps: str) -> None:
    """Skips where the tools are not there; fails where the build does."""
    assert set(steps) <= JVM | PACKING
    marks = ("ready",) if set(steps) & PACKING else ("ready", "ready-jvm")
    if not any((FOLDER / mark).exists() for mark in marks):
        pytest.skip("the Android tools are not in build/android: make android, or make android-jvm for those of the JVM")
    if shutil.which("javac") is None:
        pytest.skip("no javac here: install a JDK, such as Debian's openjdk-17-jdk-headless")
    with FileLock(FOLDER / "lock"):
        made = subprocess.run([sys.executable, BUILD, FOLDER, *steps], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-4000:]


@pytest.fixture(scope="session")
def java() -> list[str]:
    """The command that runs checks of kotlin/: a name, a bundle, a scratch folder, arguments."""
    if native_library() is None:
        pytest.skip("the native library is not built: make native")
    built("jni", "tests")
    kotlin = FOLDER / "npm" / "node_modules" / "kotlin-compiler" / "lib" / "kotlin-stdlib.jar"
    jars = [
        FOLDER / "tests.jar",
        FOLDER / "classes.jar",
        FOLDER / "android-stubs.jar",
        kotlin,
        FOLDER / "jars" / "coroutines.jar",
    ]
    path = ":".join(map(str, jars))
    brief = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]  # most checks are over in a second
    fixed = ["-Xms128m", "-Xmx128m", "-XX:+AlwaysPreTouch"]  # what grows then is not the heap
    return ["java", *fixed, *brief, "-Xcheck:jni", "-cp", path, f"-Djava.library.path={FOLDER / 'host'}", "tests.MainKt"]


@pytest.fixture(scope="session")
def check(java: list[str], tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Name of a check, a bundle, its arguments -> the lines that it printed before `ok`."""

    def run(name: str, bundle: Path, *arguments: str, scratch: Path | None = None) -> list[str]:
        scratch = scratch or tmp_path_factory.mktemp(name)
        done = subprocess.run([*java, name, bundle, scratch, *arguments], capture_output=True, text=True, timeout=600)
        lines = done.stdout.splitlines()
        assert done.returncode == 0 and lines[-1:] == ["ok"], f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert not any("WARNING in native" in line or "FATAL ERROR in native" in line for line in lines), done.stdout[-3000:]
        return lines[:-1]

    return run


@pytest.fixture(scope="session")
def demo_host_bundle(once: Callable[..., Path], demo_folder: Path) -> Path:
    """SmolLM2-135M-Instruct, recipe host (a minute)."""
    from exported import rounded_demo

    from phi3mobile.export.demo_model import checkpoint_path

    return once("demo-host", lambda folder: rounded_demo(checkpoint_path(demo_folder), folder, "host"))
