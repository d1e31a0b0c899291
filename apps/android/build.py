"""The Android SDK built and checked here, without Google's downloads: python apps/android/build.py FOLDER STEP...

FOLDER holds the tools (tools.sh, with aar, apk, aab and gate all of them) and gets all that is made. Steps:
    sdk    classes.jar of the library, compiled against stubs of Android's classes
    jni    the JNI library for this machine, on phi3mobile/native/: for tests on the JVM
    tests  the checks of tests/apps/android/kotlin
    java   an app in Java, for the same tests
    kdoc   the library's comments as pages, in a jar; what is public and has none is told
    aar    the library with its POM, sources and pages in a Maven folder
    apk    the sample, shrunk, aligned and signed with a key of nobody's
    aab    the same as Play takes it
    lint   ktlint over all Kotlin, by the rules of .editorconfig
    gate   the native library compiled and linked for bionic by Zig, to be looked at (gate.py)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gate import gate
from kdoc import javadoc
from packing import aab, aar, apk
from tools import BRIEF, HERE, SDK, Failed, Tools, files, joined, made, run, sdk, stubs

ROOT = HERE.parents[1]
CORE = ROOT / "phi3mobile" / "core"


def jni(tools: Tools) -> Path:
    """Beside it must lie libphi3mobile.so: a link to that of phi3mobile/native/, which tests load, too."""
    home, native, source = tools.jdk, ROOT / "phi3mobile" / "native", SDK / "cpp" / "phi3mobile_jni.cpp"

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


def java(tools: Tools) -> Path:
    """An app in Java, and a stand-in for ExecuTorch's package: a jar apart, since the SDK looks for that package."""
    sources = files(ROOT / "tests" / "apps" / "android" / "java", "*.java")

    def make(out: Path) -> None:
        classes = tools.folder / "java.classes"
        path = joined([sdk(tools), tools.stdlib, tools.coroutines])
        run(["javac", "--release", "8", "-Xlint:-options", "-cp", path, "-d", classes, *sources])
        run(["jar", "cf", out, "-C", classes, "."])

    return made(tools.folder / "java.jar", [*sources, sdk(tools)], make)


def lint(tools: Tools) -> Path:
    """What ktlint said: nothing."""
    rooms = HERE, ROOT / "tests" / "apps" / "android" / "kotlin"
    sources = [path for room in rooms for path in files(room, "*.kt", "*.kts") if "build" not in path.relative_to(room).parts]
    if not tools.ktlint.exists():
        raise Failed(f"no {tools.ktlint}: it comes from npm (tools.sh)")

    def make(out: Path) -> None:
        out.write_text(run(["java", *BRIEF, "-jar", tools.ktlint, "--relative", *sources], cwd=ROOT))

    return made(tools.folder / "ktlint.txt", [*sources, ROOT / ".editorconfig"], make)


STEPS: dict[str, Callable[[Tools], Path]] = {
    "sdk": sdk,
    "jni": jni,
    "tests": tests,
    "java": java,
    "kdoc": javadoc,
    "aar": aar,
    "apk": apk,
    "aab": aab,
    "lint": lint,
    "gate": gate,
}


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
