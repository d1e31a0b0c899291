"""The Kotlin SDK on the JVM, over the native library: the answers are Python's, cancelling stops, nothing leaks."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import FOLDER, built

from phi3mobile.bundle import open_bundle
from phi3mobile.session.guidance import Guide
from phi3mobile.session.session import Session
from tests.core.library import has_guidance

MESSAGES = ("What is a tree?", "Und auf Deutsch: süße Äpfel 😀?", "Count to ten")


def texts(lines: Sequence[str]) -> list[str]:
    """What `text HEX ...` lines say."""
    return [bytes.fromhex(line.split(" ")[1]).decode() for line in lines if line.startswith("text ")]


def python_says(bundle: Path, messages: Sequence[str], system: str | None = None, **options: Any) -> list[str]:
    said: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    found = []
    session = Session(bundle)
    for message in messages:
        said.append({"role": "user", "content": message})
        found.append("".join(session.generate(said, **options)))
        said.append({"role": "assistant", "content": found[-1]})
    session.close()
    return found


@pytest.fixture(scope="session")
def bundle(bundle_of: Callable[..., Path]) -> Path:
    return bundle_of("tiny-gqa", "host")


def test_the_texts_are_pythons(check, bundle):
    expected = python_says(bundle, MESSAGES, "Be brief.", max_tokens=24, overflow="slide")
    assert texts(check("texts", bundle, *MESSAGES)) == expected


def test_sampled_texts_are_pythons(check, bundle):
    options = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 7, "repetition_penalty": 1.1}
    expected = python_says(bundle, MESSAGES[:1], max_tokens=24, overflow="slide", **options)
    assert texts(check("sampled", bundle, MESSAGES[0])) == expected


@pytest.mark.parametrize("name", ["emoji", "cancel", "two", "history", "state", "java", "closed", "errors"])
def test_on_a_bundle(check, bundle, name):
    check(name, bundle)


def test_an_engine_of_the_apps(check, bundle):
    opened = open_bundle(bundle)
    token = next(i for i in range(5, 300) if opened.tokenizer.decode([i]).isalpha() and i not in opened.eos_ids)
    (said,) = texts(check("engine", bundle, str(opened.info.vocab), str(token)))
    assert said == opened.tokenizer.decode([token] * 5)


@pytest.mark.parametrize("name", ["sessions.json", "guided.json"])
def test_the_shared_vectors(check, bundle, name):
    """Forty conversations that every binding must give: texts, notes, counts and each forward."""
    if name == "guided.json" and not has_guidance():
        pytest.skip("this build has no constrained output")
    (line,) = check("vectors", bundle, str(Path(__file__).parents[2] / "vectors" / name))
    assert int(line.split()[1]) >= (100 if name == "sessions.json" else 60)


@pytest.fixture
def roomy(bundle, tmp_path) -> Path:
    """The bundle with a context that a list of functions fits into, for engines of the test's own."""
    folder = tmp_path / "roomy"
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"] |= {"context": 8192, "max_context": 8192, "chunk": 8192, "original_context": None}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def scripted(bundle: Path, *texts: str) -> list[str]:
    """Arguments of a check whose engine says these answers."""
    opened = open_bundle(bundle)
    end = str(min(opened.eos_ids))
    said = [",".join([*map(str, opened.tokenizer.encode(text, special=False)), end]) for text in texts]
    return [str(opened.info.vocab), *said]


def test_functions_are_called(check, roomy):
    call = '{"name": "weather", "arguments": {"town": "Köln"}}'
    (said,) = texts(check("tools", roomy, *scripted(roomy, call, "Yes, take one.")))
    assert said == "Yes, take one."


def test_guided_answers_are_pythons(check, bundle):
    if not has_guidance():
        pytest.skip("this build has no constrained output")
    city = {"city": {"type": "string"}, "size": {"type": "integer"}}
    schema = {"type": "object", "properties": city, "required": list(city)}
    session = Session(bundle)
    asked = ((Guide.json_schema, schema, "A city?"), (Guide.regex, "(yes|no)", "Yes or no?"))
    expected = [
        "".join(session.generate([{"role": "user", "content": text}], guide=make(what, session.parts.tokenizer), max_tokens=40))
        for make, what, text in asked
    ]
    assert texts(check("guided", bundle)) == [*expected, "ab"]


def test_calls_that_fail_and_never_end(check, roomy):
    check("endless", roomy, *scripted(roomy, '{"name": "weather", "arguments": {}}'))


def test_what_the_app_lacks_is_named(check, bundle_of):
    (line,) = check("lacking", bundle_of("tiny-gqa", "android-cpu"))
    assert "tiny-gqa" in line or "android-cpu" in line


def test_java_and_executorchs_package(java, bundle_of, tmp_path):
    """An app in Java runs an android-cpu bundle on a stand-in of ExecuTorch's package, found by reflection."""
    built("java")
    bundle = bundle_of("tiny-gqa", "android-cpu")
    command = list(java[:-1])
    command[command.index("-cp") + 1] += f":{FOLDER / 'java.jar'}"
    vocab = str(open_bundle(bundle).info.vocab)
    done = subprocess.run([*command, "tests.JavaUser", bundle, vocab, tmp_path / "models"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "ok", done.stdout[-2000:] + done.stderr[-3000:]


def test_models_come_and_go(check, bundle):
    (line,) = check("cycles", bundle, "120")  # the first 40 warm the JVM up
    assert line.startswith("grown ")


@pytest.mark.slow
def test_five_hundred_models_leave_nothing(check, bundle):
    check("cycles", bundle, "500")


@pytest.mark.slow
def test_the_demo_model_says_what_python_says(check, demo_host_bundle):
    expected = python_says(demo_host_bundle, MESSAGES, "Be brief.", max_tokens=24, overflow="slide")
    assert texts(check("texts", demo_host_bundle, *MESSAGES)) == expected
