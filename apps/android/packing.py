"""What an app team gets: AAR in a Maven folder, the sample as APK and AAB. Steps of build.py."""

from __future__ import annotations

import shutil
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

from kdoc import javadoc
from tools import HERE, SDK, Tools, files, made, run, sdk, stubs

SAMPLE = HERE / "sample" / "src" / "main"
GROUP, NAME = "org.phi3mobile", "phi3mobile"
MIN_API, TARGET_API = "26", "35"
PAGE = 16 << 10  # bytes: libraries are mapped where they lie in the APK
ABIS = ("arm64-v8a", "x86_64")
_ALIGNED = 0xD935  # the ZIP extra field that Android's tools pad with


def version() -> str:
    import tomllib

    return tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]["version"]


def libraries(tools: Tools) -> list[Path]:
    """ABI/NAME.so that go into packages: what a release built into FOLDER/jni."""
    return [path for abi in ABIS for path in files(tools.folder / "jni" / abi, "*.so")]


def java_api(tools: Tools) -> Path:
    """Java 8's classes without code, for R8: from the JDK's own table of what each release had."""

    def make(out: Path) -> None:
        with zipfile.ZipFile(tools.jdk / "lib" / "ct.sym") as table, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as jar:
            for name in table.namelist():
                releases, _, path = name.partition("/")
                if "8" in releases and path.endswith(".sig") and "-" not in releases:
                    path = path.partition("/")[2] if path.split("/")[0].count(".") else path
                    jar.writestr(path.removesuffix(".sig") + ".class", table.read(name))

    return made(tools.folder / "java8.jar", [tools.jdk / "lib" / "ct.sym"], make)


def aar(tools: Tools) -> Path:
    """maven/org/phi3mobile/phi3mobile/VERSION: AAR, POM, sources, the KDoc as pages."""
    folder = tools.folder / "maven" / GROUP.replace(".", "/") / NAME / version()
    stem = folder / f"{NAME}-{version()}"
    sources = files(SDK / "kotlin", "*.kt")

    def make(out: Path) -> None:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as package:
            package.write(SDK / "AndroidManifest.xml", "AndroidManifest.xml")
            package.write(sdk(tools), "classes.jar")
            package.write(HERE / "sdk" / "consumer-rules.pro", "proguard.txt")
            package.writestr("R.txt", "")
            package.writestr(
                "META-INF/com/android/build/gradle/aar-metadata.properties",
                "aarFormatVersion=1.0\naarMetadataVersion=1.0\nminCompileSdk=29\nminCompileSdkExtension=0\n",
            )
            for library in libraries(tools):
                package.write(library, f"jni/{library.parent.name}/{library.name}")
        with zipfile.ZipFile(stem.with_name(f"{stem.name}-sources.jar"), "w", zipfile.ZIP_DEFLATED) as jar:
            for source in sources:
                jar.write(source, source.relative_to(SDK / "kotlin"))
        shutil.copyfile(javadoc(tools), stem.with_name(f"{stem.name}-javadoc.jar"))
        stem.with_name(f"{stem.name}.pom").write_text(_pom(tools))

    inputs = [
        *sources,
        sdk(tools),
        javadoc(tools),
        SDK / "AndroidManifest.xml",
        HERE / "sdk" / "consumer-rules.pro",
        *libraries(tools),
        Path(__file__),
    ]
    return made(stem.with_name(f"{stem.name}.aar"), inputs, make)


def _pom(tools: Tools) -> str:
    needs = (
        ("org.jetbrains.kotlin", "kotlin-stdlib", tools.kotlin_version),
        ("org.jetbrains.kotlinx", "kotlinx-coroutines-core", tools.coroutines_version),
    )
    listed = "".join(
        f"    <dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{number}</version>"
        "<scope>compile</scope></dependency>\n"
        for group, name, number in needs
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<project xmlns="http://maven.apache.org/POM/4.0.0">\n'
        f"  <modelVersion>4.0.0</modelVersion>\n  <groupId>{GROUP}</groupId>\n  <artifactId>{NAME}</artifactId>\n"
        f"  <version>{version()}</version>\n  <packaging>aar</packaging>\n  <name>{NAME}</name>\n"
        "  <description>Phi-3 bundles on Android: sessions, models, memory.</description>\n"
        "  <licenses><license><name>MIT</name></license></licenses>\n"
        f"  <dependencies>\n{listed}  </dependencies>\n</project>\n"
    )


def linked(tools: Tools, proto: bool) -> Path:
    """Manifest and resources of the sample; beside it R.java."""
    sources = [SAMPLE / "AndroidManifest.xml", *files(SAMPLE / "res", "*.xml"), Path(__file__)]

    def make(out: Path) -> None:
        compiled = tools.folder / "sample.flat.zip"
        run([tools.aapt2, "compile", "--dir", SAMPLE / "res", "-o", compiled])
        run(
            [
                tools.aapt2, "link", "-I", tools.framework, "--manifest", SAMPLE / "AndroidManifest.xml", "-o", out,
                "--java", tools.folder / "gen", "--min-sdk-version", MIN_API, "--target-sdk-version", TARGET_API,
                "--version-code", "1", "--version-name", version(), *(["--proto-format"] if proto else []), compiled,
            ]
        )  # fmt: skip

    return made(tools.folder / ("resources.proto.apk" if proto else "resources.apk"), sources, make)


def sample(tools: Tools) -> Path:
    sources = files(SAMPLE / "kotlin", "*.kt")
    resources = linked(tools, proto=False)

    def make(out: Path) -> None:
        ids = tools.folder / "ids"
        run(["javac", "--release", "8", "-Xlint:-options", "-d", ids, *files(tools.folder / "gen", "R.java")])
        jar = out.with_suffix(".jar.jar")
        tools.kotlinc(sources, [sdk(tools), stubs(tools), ids], jar, "-Xjdk-release=1.8", "-Werror")
        run(["jar", "uf", jar, "-C", ids, "."])
        jar.replace(out)

    return made(tools.folder / "sample.jar", [*sources, sdk(tools), resources], make)


def dex(tools: Tools) -> Path:
    """classes.dex of the sample with SDK, coroutines and Kotlin, shrunk by the rules that the AAR carries."""
    inputs = [sample(tools), sdk(tools), tools.coroutines, tools.stdlib]
    rules = [HERE / "sdk" / "consumer-rules.pro", HERE / "sample" / "rules.pro"]

    apis = [stubs(tools), java_api(tools), tools.kotlin / "lib" / "annotations-13.0.jar"]

    def make(out: Path) -> None:
        packed = out.with_suffix(".zip")
        run(
            [
                "java", "-Xmx1g", "-cp", tools.r8, "com.android.tools.r8.R8", "--release", "--min-api", MIN_API,
                "--output", packed, "--pg-map-output", tools.folder / "mapping.txt",
                *(part for library in apis for part in ("--lib", library)),
                *(part for rule in rules for part in ("--pg-conf", rule)), *inputs,
            ]
        )  # fmt: skip
        with zipfile.ZipFile(packed) as package:
            if package.namelist().count("classes.dex") != 1 or "classes2.dex" in package.namelist():
                raise ValueError(f"one classes.dex was expected, R8 made {package.namelist()}")
            out.write_bytes(package.read("classes.dex"))
        packed.unlink()

    return made(tools.folder / "classes.dex", [*inputs, *rules, Path(__file__)], make)


def aligned(out: Path, entries: Iterable[tuple[str, bytes]]) -> None:
    """A ZIP in which libraries and resources.arsc are stored: at pages and at words, so that Android maps them as they are."""
    with zipfile.ZipFile(out, "w") as package:
        for name, data in entries:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            library = name.endswith(".so")
            entry.compress_type = zipfile.ZIP_STORED if library or name == "resources.arsc" else zipfile.ZIP_DEFLATED
            if entry.compress_type == zipfile.ZIP_STORED:
                unit = PAGE if library else 4
                start = package.fp.tell() + 30 + len(name.encode()) + 6  # local header, name, the extra field's own header
                entry.extra = struct.pack("<HHH", _ALIGNED, 2 + -start % unit, unit) + bytes(-start % unit)
            package.writestr(entry, data)


def entries(package: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(package) as opened:
        return [(name, opened.read(name)) for name in opened.namelist()]


def apk(tools: Tools) -> Path:
    resources, code = linked(tools, proto=False), dex(tools)

    def make(out: Path) -> None:
        key, plain = debug_key(tools), out.with_suffix(".unsigned")
        native = [(f"lib/{path.parent.name}/{path.name}", path.read_bytes()) for path in libraries(tools)]
        aligned(plain, [*entries(resources), ("classes.dex", code.read_bytes()), *native])
        run(
            [
                "java", "-jar", tools.apksigner, "sign", "--ks", key, "--ks-pass", "pass:android", "--ks-key-alias", "debug",
                "--v1-signing-enabled", "false", "--v2-signing-enabled", "true", "--v3-signing-enabled", "true",
                "--min-sdk-version", MIN_API, "--out", out, plain,
            ]
        )  # fmt: skip
        plain.unlink()
        out.with_name(f"{out.name}.idsig").unlink(missing_ok=True)

    return made(tools.folder / "sample.apk", [resources, code, *libraries(tools), Path(__file__)], make)


def debug_key(tools: Tools) -> Path:
    """A key of nobody's, made here: a release has its own."""

    def make(out: Path) -> None:
        options = [
            "-alias",
            "debug",
            "-keyalg",
            "RSA",
            "-keysize",
            "2048",
            "-validity",
            "10000",
            "-dname",
            "CN=phi3mobile debug",
        ]
        run(["keytool", "-genkeypair", "-keystore", out, "-storetype", "PKCS12", "-storepass", "android", *options])

    return made(tools.folder / "debug.p12", [], make)


def aab(tools: Tools) -> Path:
    resources, code = linked(tools, proto=True), dex(tools)

    def make(out: Path) -> None:
        module = tools.folder / "base.zip"
        with zipfile.ZipFile(module, "w", zipfile.ZIP_DEFLATED) as package:
            for name, data in entries(resources):
                package.writestr(f"manifest/{name}" if name == "AndroidManifest.xml" else name, data)
            package.write(code, "dex/classes.dex")
            for library in libraries(tools):
                package.write(library, f"lib/{library.parent.name}/{library.name}")
        bundle = out.with_suffix(".made.aab")
        bundle.unlink(missing_ok=True)
        run(["java", "-jar", tools.bundletool, "build-bundle", f"--modules={module}", f"--output={bundle}"])
        bundle.replace(out)

    return made(tools.folder / "sample.aab", [resources, code, *libraries(tools), Path(__file__)], make)
