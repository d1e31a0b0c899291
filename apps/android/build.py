"""The Android SDK built and checked here, without Google's downloads: python apps/android/build.py FOLDER STEP...

FOLDER holds the tools (tools.sh) and gets all that is made. Steps:
    sdk    classes.jar of the library, compiled against stubs of Android's classes
    jni    the JNI library for this machine, on phi3mobile/native: for tests on the JVM
    tests  the checks of tests/apps/android/kotlin
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SDK = HERE / "sdk" / "src" / "main"
CORE = ROOT / "phi3mobile" / "core"
JVM_TARGET = "1.8"  # what Android 8 (API 26) has of Java's classes is Java 8's


class Failed(Exception):
    """A tool's last lines."""


def run(command: Sequence[str | Path], **options: object) -> str:
    """Standard output. Failed: what the tool said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise Failed(f"{Path(command[0]).name}: {(done.stdout + done.stderr)[-40000:]}")
    return done.stdout


def files(folder: Path, *patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.rglob(pattern))


def made(output: Path, sources: Iterable[Path], make: Callable[[Path], object]) -> Path:
    """`output`, made again where a source is newer; whole or not at all."""
    newest = max(path.stat().st_mtime for path in (*sources, Path(__file__)))
    if not output.exists() or output.stat().st_mtime < newest:
        output.parent.mkdir(parents=True, exist_ok=True)
        beside = output.with_name(f".{os.getpid()}-{output.name}")
        make(beside)
        beside.replace(output)
    return output


class Tools:
    """What tools.sh unpacked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kotlin = folder / "npm" / "node_modules" / "kotlin-compiler"
        self.stdlib = self.kotlin / "lib" / "kotlin-stdlib.jar"
        self.coroutines = folder / "jars" / "coroutines.jar"

    def kotlinc(self, sources: Iterable[Path], classpath: Iterable[Path], out: Path, *options: str) -> None:
        compiler = (self.kotlin / "lib" / name for name in ("kotlin-compiler.jar", "kotlin-stdlib.jar"))
        trove = files(self.kotlin / "lib", "kotlin-reflect.jar", "annotations-13.0.jar", "kotlin-script-runtime.jar")
        run(
            [
                "java", "-Xmx1g", "-cp", joined([*compiler, self.coroutines, *trove]), "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
                "-no-stdlib", "-no-reflect", "-jvm-target", JVM_TARGET, *options,
                "-cp", joined([self.stdlib, self.coroutines, *classpath]), "-d", out, *sources,
            ]
        )  # fmt: skip


def joined(paths: Iterable[Path]) -> str:
    return os.pathsep.join(map(str, paths))


def stubs(tools: Tools) -> Path:
    """Android's classes as far as they are used: names and signatures, no code."""
    sources = files(HERE / "stubs", "*.java")

    def make(out: Path) -> None:
        classes = tools.folder / "stubs.classes"
        run(["javac", "--release", "8", "-Xlint:-options", "-d", classes, *sources])
        run(["jar", "cf", out, "-C", classes, "."])

    return made(tools.folder / "android-stubs.jar", sources, make)


def sdk(tools: Tools) -> Path:
    sources = files(SDK / "kotlin", "*.kt")
    options = ["-Xjdk-release=1.8", "-Xexplicit-api=strict", "-Werror", "-module-name", "phi3mobile"]

    def make(out: Path) -> None:
        jar = out.with_suffix(".jar.jar")
        tools.kotlinc(sources, [stubs(tools)], jar, *options)
        jar.replace(out)

    return made(tools.folder / "classes.jar", [*sources, stubs(tools)], make)


def jni(tools: Tools) -> Path:
    """Beside it must lie libphi3mobile.so: a link to phi3mobile/native's, which tests load, too."""
    home = Path(os.environ.get("JAVA_HOME") or Path(run(["sh", "-c", "readlink -f $(command -v javac)"])).parents[1])
    native, source = ROOT / "phi3mobile" / "native", SDK / "cpp" / "phi3mobile_jni.cpp"

    def make(out: Path) -> None:
        run(
            [
                "c++", "-std=c++17", "-O2", "-g1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden",
                "-I", CORE / "include", "-I", home / "include", "-I", home / "include" / "linux", source, "-o", out,
                "-L", native, "-lphi3mobile", f"-Wl,-rpath,{native}", "-Wl,--no-undefined",
            ]
        )  # fmt: skip

    headers = files(CORE / "include", "*.h")
    return made(tools.folder / "host" / "libphi3mobile_jni.so", [source, *headers, native / "libphi3mobile.so"], make)


def tests(tools: Tools) -> Path:
    sources = files(ROOT / "tests" / "apps" / "android" / "kotlin", "*.kt")

    def make(out: Path) -> None:
        jar = out.with_suffix(".jar.jar")
        tools.kotlinc(sources, [sdk(tools), stubs(tools)], jar, "-Xfriend-paths=" + str(sdk(tools)))
        jar.replace(out)

    return made(tools.folder / "tests.jar", [*sources, sdk(tools)], make)


STEPS: dict[str, Callable[[Tools], Path]] = {"sdk": sdk, "jni": jni, "tests": tests}


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2 or not set(arguments[1:]) <= set(STEPS):
        print(f"build.py FOLDER STEP...; steps: {', '.join(STEPS)}", file=sys.stderr)
        return 2
    tools = Tools(Path(arguments[0]).resolve())
    try:
        for step in arguments[1:]:
            print(f"{step}: {STEPS[step](tools)}", flush=True)
    except Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
