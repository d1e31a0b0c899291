"""docs/android.md says what compiles: its snippets, in their order, and the calls in its text, against the SDK's classes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FOLDER, ROOT, built

TEXT = (ROOT / "docs" / "android.md").read_text("utf-8")
BLOCKS = re.findall(r"```kotlin\n(.*?)```", TEXT, re.DOTALL)
# `model.session(...)` and the like in the text; shortened ones, as `undo()`, have no owner.
CALLS = re.findall(r"`((?:store|model|session|Phi3Model|Memory|Generation|ModelOptions)\b[^`]*\))`", TEXT)
AROUND = Path(__file__).parent / "doc" / "Around.kt"
NAMES = "android.app.Activity", "android.content.Context", "org.phi3mobile.*", "org.phi3mobile.android.*"
IMPORTS = "".join(f"import {name}\n" for name in NAMES)
GIVEN = ", ".join(
    (
        "context: Context, scope: kotlinx.coroutines.CoroutineScope, folder: java.io.File, uri: android.net.Uri",
        "manifest: Manifest, schema: String, json: String, bitmap: android.graphics.Bitmap, orientation: Int",
        "message: String, generation: Generation, listener: Session.Listener",
    )
)


def source(blocks: list[str], calls: list[str]) -> str:
    """One Kotlin file: classes as they are, members in an Activity, the rest in a function, where it finds what came before."""
    classes = [block for block in blocks if block.startswith("class ")]
    members = [block for block in blocks if block.startswith("override ")]
    body = "".join(block for block in blocks if block not in classes + members) + "".join(f"{call}\n" for call in calls)
    screen = f"class Screen(val model: Phi3Model) : Activity() {{\n{''.join(members)}}}\n"
    return f"package doc\n\n{IMPORTS}\n{''.join(classes)}\n{screen}\nsuspend fun inOrder({GIVEN}) {{\n{body}}}\n"


def compiled(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    built("sdk")
    (tmp_path / "Snippets.kt").write_text(text, "utf-8")
    script = (
        "import sys; from pathlib import Path; from tools import Failed, Tools, sdk, stubs\n"
        "tools, (out, *sources) = Tools(Path(sys.argv[1])), map(Path, sys.argv[2:])\n"
        "try: tools.kotlinc(sources, [sdk(tools), stubs(tools)], out)\n"
        "except Failed as failed: sys.exit(str(failed))\n"
    )
    command = [sys.executable, "-c", script, FOLDER, tmp_path / "doc.jar", tmp_path / "Snippets.kt", AROUND]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "apps" / "android")


def test_the_snippets_compile(tmp_path):
    assert len(BLOCKS) >= 5 and len(CALLS) >= 5
    done = compiled(tmp_path, source(BLOCKS, CALLS))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_wrong_snippet_does_not(tmp_path):
    done = compiled(tmp_path, source([*BLOCKS, "session.sendAll()\n"], CALLS))
    assert done.returncode != 0 and "sendAll" in done.stderr


def test_every_event_and_state_of_the_text_is_there():
    kotlin = "\n".join(path.read_text("utf-8") for path in (ROOT / "apps/android/sdk/src/main/kotlin").rglob("*.kt"))
    listed = re.search(r"else -> Unit +// (.*)", TEXT)
    assert listed and all(f"class {name}(" in kotlin for name in listed[1].split(", "))
    states = re.search(r"`model.state`: ([A-Z, ]+)\.", TEXT)
    assert states and f"ModelState {{ {states[1]} }}" in kotlin
    assert f"{{ {', '.join(re.search(r'says ([A-Z]+), ([A-Z]+) or ([A-Z_]+)', TEXT).groups())} }}" in kotlin
