"""What the SDK and the sample import of Android has a stub in the checkout, so that a fresh clone compiles them."""

import re
from pathlib import Path

ANDROID = Path(__file__).parents[3] / "apps" / "android"


def test_every_imported_class_of_android_has_a_stub():
    sources = [path for room in ("sdk", "sample") for path in (ANDROID / room).rglob("*.kt")]
    imported = {name for path in sources for name in re.findall(r"^import (android\.[\w.]+)", path.read_text("utf-8"), re.M)}
    outer = {re.match(r"android\.(?:[a-z_]+\.)*[A-Z]\w*", name)[0] for name in imported}
    missing = [name for name in sorted(outer) if not (ANDROID / "stubs" / (name.replace(".", "/") + ".java")).is_file()]
    assert {"android.app.Activity", "android.content.Context"} <= outer and not missing


def test_no_stub_is_ignored_by_git():
    ignored = [line.strip() for line in (ANDROID / ".gitignore").read_text("utf-8").splitlines()]
    assert all(line.startswith(("/", ".")) for line in ignored if line), "a folder's bare name hides stubs/android/NAME, too"
