"""The library's pages: every public class with its comments, nothing internal, and a public function without KDoc is told."""

from __future__ import annotations

import html
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import FOLDER, ROOT, built

SOURCES = sorted((ROOT / "apps" / "android" / "sdk" / "src" / "main" / "kotlin").rglob("*.kt"))
KOTLIN = "\n".join(path.read_text("utf-8") for path in SOURCES)


@pytest.fixture(scope="module")
def kdoc():
    sys.path.insert(0, str(ROOT / "apps" / "android"))
    try:
        import kdoc as module
    finally:
        sys.path.pop(0)
    return module


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("/** Plain. */", "/** Plain. */"),
        ("/** [Model] and [Model.send], `a < b`. */", "/** {@link Model} and {@link Model#send}, <code>a &lt; b</code>. */"),
        ("/** [Model.Done], [Model.gone], [a, b] */", "/** {@link Model.Done}, <code>Model.gone</code>, [a, b] */"),
        ("/**\n     * <|image_1|> & a@b\n     *\n     * More.\n     */", "/** &lt;|image_1|&gt; &amp; a&#64;b\n<p>\nMore. */"),
        ("/** */", "/**  */"),
    ],
)  # fmt: skip
def test_a_comment_is_html(kdoc, comment, expected):
    assert kdoc.text(comment, {"Model": "public void send() {} class Done { public Done(int a) {} }"}) == expected


@pytest.fixture(scope="module")
def jar() -> zipfile.ZipFile:
    built("kdoc")
    return zipfile.ZipFile(FOLDER / "javadoc.jar")


def words(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split())


@pytest.mark.slow
def test_the_pages_are_the_public_classes(kdoc, jar):
    found = {Path(name).stem for name in jar.namelist() if name.startswith("org/phi3mobile/") and Path(name).stem[0].isupper()}
    top = {name for name in found if "." not in name}
    assert top == set(re.findall(r"^public (?:[a-z]+ )*(?:class|interface|object) (\w+)", KOTLIN, re.M))
    assert {"Phi3Model", "ModelStore", "Device", "Event.ToolCall", "Generation.Builder"} <= found
    internal = set(re.findall(r"internal (?:abstract )?(?:class|object) (\w+)", KOTLIN))
    assert internal >= {"Native", "Json"} and not internal & found and "Statistics.Companion" not in found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("Phi3Model", "A bundle, opened: weights and one KV cache, on a thread of its own."),
        ("Phi3Model", "What the model does now. UNLOADED comes back by itself with the next message."),  # no field of its own
        ("Session", "Sends a message; the answer's events come while they are collected, no faster."),
        ("ModelStore", "Fetches a bundle from any HTTPS server that gives its files:"),
        ("Manifest", "Bytes of memory that must be free: the KV cache of the whole context, activations"),
        ("Statistics", "Seconds from the call to the first token."),
        ("Message", "they go where the content says <|image_1|>, <|image_2|>"),
        ("android/Heat", "thread"),
    ],
)
def test_pages_have_the_texts(jar, page, says):
    assert says in words(jar.read(f"org/phi3mobile/{page}.html").decode())


@pytest.mark.slow
def test_pages_show_no_internals(jar):
    session = words(jar.read("org/phi3mobile/Session.html").decode())
    assert "send(@NotNull String message" in session and "Constructor Summary" not in session
    for name in (name for name in jar.namelist() if name.endswith(".html")):
        assert "$phi3mobile" not in jar.read(name).decode(), name
    assert "MOST_ROUNDS" not in session and "FILE" in words(jar.read("org/phi3mobile/Manifest.html").decode())


@pytest.mark.slow
def test_every_comment_on_a_public_declaration_is_there(jar):
    """All KDoc before `public` at the top or in a class of its own, by its first line."""
    all_pages = " ".join(words(jar.read(name).decode()) for name in jar.namelist() if name.startswith("org/phi3mobile/"))
    comments = re.findall(r"/\*\*((?:(?!\*/).)*)\*/\n *(?:@\w+\s+)*public ", KOTLIN, re.S)
    lines = [next(line for line in comment.splitlines() if line.strip(" *")).strip(" *") for comment in comments]
    # Up to a link to a function, which is shown with its parameters.
    plain = [
        re.sub(r"`([^`]+)`|\[([A-Za-z]\w*)\]", lambda found: found[1] or found[2], re.split(r"\[\w+\.", line)[0])
        for line in lines
    ]
    assert len(plain) > 100 and [line for line in plain if " ".join(line.split()) not in all_pages] == []


@pytest.mark.slow
def test_what_has_no_comment_is_told(kdoc, jar, tmp_path):
    from tools import Failed, Tools  # kdoc's fixture put it in reach

    source = tmp_path / "Spare.kt"
    source.write_text(
        "package spare\n\n/** Told. */\npublic class Spare {\n    /** Told. */\n    public fun told(): Int = 1\n\n"
        "    public fun untold(): Int = 2\n\n    internal fun inside(): Int = 3\n}\n\npublic class Bare\n"
    )
    try:
        with pytest.raises(Failed) as said:
            kdoc.pages(Tools(FOLDER), [source], tmp_path / "pages")
    finally:
        shutil.rmtree(tmp_path / "pages", ignore_errors=True)
    assert said.value.args[0].splitlines() == ["no KDoc:", "public final class Bare {", "public final int untold() {"]
