"""The library's KDoc as pages: kapt writes the classes as Java with their comments, the JDK's javadoc makes HTML of them.

Dokka, which is made for this, is in none of the registries that the build uses. The pages show what Java sees: a suspending
function has a Continuation, a property its getter. Public classes and functions without KDoc fail the build.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tools import BRIEF, HERE, SDK, Failed, Tools, files, joined, made, run, stubs

_CODE_OR_LINK = re.compile(r"`([^`]+)`|\[([A-Za-z][\w.]*)\]")
_COMMENT = re.compile(r"/\*\*(?! @hidden).*?\*/", re.DOTALL)
_CLASS = re.compile(r"^public (?:[a-z]+ )*(?:class|interface|object) (\w+)", re.MULTILINE)
_PROPERTY = re.compile(r"(/\*\*(?:(?!\*/).)*\*/)\n    (?:@\w+\s+)*public va[lr] (\w+)", re.DOTALL)
_INTERNAL_CONSTRUCTOR = re.compile(r"class (\w+) internal constructor")
_INTERNAL_COMPANION = re.compile(r"class (\w+)(?:(?!\bclass\b).)*?internal companion object", re.DOTALL)
_CONSTANT = re.compile(r" public const val (\w+)")
_FIELD = re.compile(r"^( +)public( static final \S+ ([A-Z_]+) = )", re.MULTILINE)
_INNER = r"^( +)(?:/\*\*(?:(?!\*/).)*\*/\n\1)?public static final class (NAMES) \{.*?^\1\}\n"
# What Kotlin's compiler adds, and what a class's own text describes: constructors, the properties in them, setters of builders.
_ADDED = re.compile(
    r"\.Builder \w+\(| (?:component\d+|copy|equals|hashCode|toString|getEntries|(?:get|is)[A-Z]\w*)\("
    r"|^ *(?:public|protected) [A-Z]\w*\(| (?:Companion|INSTANCE) = |/\*public static final\*/| static final class Companion "
)


def java(tools: Tools, sources: Iterable[Path], classpath: Iterable[Path], out: Path) -> None:
    """Writes the classes of Kotlin sources as Java without code, comments kept, into the folder `out`."""
    processor = tools.folder / "kdoc.processor"
    run(["javac", "-proc:none", "-d", processor, HERE / "kdoc" / "Nothing.java"])
    services = processor / "META-INF" / "services"
    services.mkdir(parents=True, exist_ok=True)
    (services / "javax.annotation.processing.Processor").write_text("Nothing\n")
    scratch = out.with_name(f"{out.name}.scratch")
    options = {"aptMode": "stubs", "stubs": out, "classes": scratch, "sources": scratch, "apclasspath": processor}
    tools.kotlinc(
        sources,
        classpath,
        scratch,
        f"-Xplugin={tools.kotlin / 'lib' / 'kotlin-annotation-processing.jar'}",
        "-P",
        ",".join(f"plugin:org.jetbrains.kotlin.kapt3:{name}={value}" for name, value in options.items()),
        "-module-name",
        "phi3mobile",
    )
    shutil.rmtree(scratch, ignore_errors=True)


def text(comment: str, classes: Mapping[str, str]) -> str:
    """A KDoc comment as javadoc reads it. `classes`: the public ones by name, as Java."""

    def name(found: re.Match[str]) -> str:
        if found[1]:
            return f"<code>{found[1]}</code>"
        owner, _, member = found[2].rpartition(".")
        if member in classes and not owner:
            return f"{{@link {member}}}"
        if owner in classes and f" {member}(" in classes[owner]:
            return f"{{@link {owner}{'.' if member[0].isupper() else '#'}{member}}}"
        return f"<code>{found[2]}</code>"

    plain = html.escape(comment[3:-2], quote=False).replace("@", "&#64;")
    lines = [line.strip().removeprefix("*").strip() for line in plain.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    body = "\n".join(line or "<p>" for line in lines[lines.index(next(filter(None, lines), "")) :]) if lines else ""
    return f"/** {_CODE_OR_LINK.sub(name, body)} */"


def page(name: str, stub: str, classes: Mapping[str, str], kotlin: str) -> str:
    """A class as Java, ready for javadoc: what is not public in the sources (`kotlin`) left out, what kapt forgot added."""
    inner = "DefaultImpls|Companion" if name in _INTERNAL_COMPANION.findall(kotlin) else "DefaultImpls"
    stub = re.sub(r"^ *@kotlin\.Metadata\(.*\)\n", "", stub, flags=re.MULTILINE)
    stub = re.sub(
        _INNER.replace("NAMES", inner),
        r"\1/** @hidden */ public static final class \2 {}\n",
        stub,
        flags=re.MULTILINE | re.DOTALL,
    )
    constants = _CONSTANT.findall(kotlin)
    stub = _FIELD.sub(lambda found: f"{found[1]}{'public' if found[3] in constants else 'private'}{found[2]}", stub)
    inside = rf"\$\w+\(|public {name}\(" if name in _INTERNAL_CONSTRUCTOR.findall(kotlin) else r"\$\w+\("
    # A property without a field of its own loses its comment.
    own = re.search(
        rf"^public (?:[a-z]+ )*(?:class|interface|object) {name}\b.*?(?=^public |\Z)", kotlin, re.MULTILINE | re.DOTALL
    )
    texts = {found[2].lower(): found[1] for found in _PROPERTY.finditer(own[0])} if own else {}

    def finished(member: str) -> str:
        if re.search(inside, member):
            return f"/** @hidden */ {_COMMENT.sub('', member)}"
        getter = re.search(r"^    public .*\bget(\w+)\(\)", member, re.MULTILINE)
        if getter and "/**" not in member:
            member = f"{texts.get(getter[1].lower(), '')}\n{member}"
        return _COMMENT.sub(lambda found: text(found[0], classes), member)

    return "\n\n".join(map(finished, re.split(r"\n *\n", stub)))


def pages(tools: Tools, sources: list[Path], out: Path) -> None:
    """Writes the HTML of the public classes into the folder `out`. Failed: a class or function has no comment."""
    written, prepared = out.with_name(f"{out.name}.stubs"), out.with_name(f"{out.name}.java")
    for folder in (out, written, prepared):
        shutil.rmtree(folder, ignore_errors=True)
    java(tools, sources, [stubs(tools)], written)
    kotlin = "\n".join(path.read_text("utf-8") for path in sources)
    public = set(_CLASS.findall(kotlin))
    classes = {path.stem: path.read_text("utf-8") for path in files(written, "*.java") if path.stem in public}
    for path in files(written, "*.java"):
        target = prepared / path.relative_to(written)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page(path.stem, path.read_text("utf-8"), classes, kotlin), "utf-8")
    done = subprocess.run(
        [
            "javadoc", *(f"-J{flag}" for flag in BRIEF), "-quiet", "-notimestamp", "-Xdoclint:all", "-Xmaxwarns", "10000",
            "-encoding", "UTF-8", "-charset", "UTF-8",
            "-windowtitle", "phi3mobile", "-sourcepath", prepared, "-d", out,
            "-cp", joined([tools.stdlib, tools.coroutines, stubs(tools), tools.kotlin / "lib" / "annotations-13.0.jar"]),
            *(path for path in files(prepared, "*.java") if path.stem in public),
        ],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise Failed("javadoc: " + "\n".join(re.findall(r"\S+ error: .*\n.*", done.stdout)))
    told = re.findall(r"(\w+)\.java:\d+: warning: no comment\n(.*)\n", done.stdout)
    without = {line.strip() for stem, line in told if stem in public and not _ADDED.search(line)}
    if without:
        raise Failed("no KDoc:\n" + "\n".join(sorted(without)))
    for folder in (written, prepared):
        shutil.rmtree(folder)


def javadoc(tools: Tools) -> Path:
    """The pages in a jar, as Maven's classifier `javadoc` has them."""
    sources = files(SDK / "kotlin", "*.kt")

    def make(out: Path) -> None:
        folder = tools.folder / "kdoc"
        pages(tools, sources, folder)
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as jar:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                jar.write(path, path.relative_to(folder))

    return made(tools.folder / "javadoc.jar", [*sources, stubs(tools), *files(HERE / "kdoc", "*.java"), Path(__file__)], make)
