"""The core over bundles' own programs: what Python's session gives on the native engine, state files, packed weights."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from library import CoreError, core_session
from scenarios import COUNTED

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.native import native_library
from phi3mobile.session.session import Session

LIBRARY = native_library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native library is not built: make native")
PROMPT = "A long text about the sea, the ships and the birds over them. " * 2
REQUESTS = (
    {"prompt": PROMPT, "max_tokens": 20},
    {"prompt": PROMPT + "And the", "max_tokens": 10, "lookup": True, "repetition": True},
    {"prompt": PROMPT, "max_tokens": 20, "temperature": 0.8, "top_p": 0.9, "seed": 11},
    {"messages": [{"role": "user", "content": "What is the sea? \U0001f41f"}], "max_tokens": 12},
    {"messages": [{"role": "user", "content": "on " * 60}], "max_tokens": None, "lookup": True, "repetition": True},
    {"messages": [{"role": "user", "content": "short"}], "max_tokens": 5, "overflow": "slide"},
)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("small-tiny", "moe-tiny")]


@pytest.mark.parametrize("name", ["tiny-gqa", "tiny-longrope", *SLOW])
def test_answers_are_those_of_pythons_session(bundle_of, name, tmp_path):
    """LongRoPE's switch and an evicting cache among them, in one session whose cache goes on from answer to answer."""
    bundle = bundle_of(name, "host")
    expected = []
    with Session(bundle) as session:
        for request in REQUESTS:
            given = dict(request)
            call = session.complete if "prompt" in given else session.generate
            pieces = list(call(given.pop("prompt", None) or given.pop("messages"), **given))
            counted = asdict(session.statistics)
            expected.append((pieces, {key: counted[key] for key in COUNTED}))
    with core_session(bundle, options={"cache": str(tmp_path)}) as session:
        for request, (pieces, counted) in zip(REQUESTS, expected, strict=True):
            answer = session.answer(request)
            assert (answer.pieces, {key: answer.statistics[key] for key in COUNTED}) == (pieces, counted), request


def test_states_go_both_ways(bundle_of, tmp_path):
    bundle, request = bundle_of("tiny-gqa", "host"), {"prompt": PROMPT, "max_tokens": 8, "repetition": True}
    with core_session(bundle) as session:
        text = session.answer(request).text
        assert session.save(tmp_path / "core") == (tmp_path / "core").stat().st_size
    with Session(bundle) as session:
        session.restore(tmp_path / "core")
        assert "".join(session.complete(PROMPT, max_tokens=8, repetition=True)) == text
        assert session.statistics.prefilled_tokens == 1
        session.save(tmp_path / "python")
    with core_session(bundle) as session:
        session.restore(tmp_path / "python")
        again = session.answer(request)
        assert again.text == text and again.statistics["prefilled_tokens"] == 1
        data = bytearray((tmp_path / "core").read_bytes())
        data[len(data) // 2] ^= 4
        (tmp_path / "core").write_bytes(data)
        with pytest.raises(CoreError, match=r"damaged|no state"):
            session.restore(tmp_path / "core")
        after = session.answer(request)
        assert after.text == text and after.statistics["reused_tokens"] == 0


def test_weights_are_used_as_they_lie_and_nothing_is_packed(bundle_of, tmp_path):
    with core_session(bundle_of("tiny-gqa", "host"), options={"cache": str(tmp_path / "cache"), "threads": 2}) as session:
        assert session.answer(REQUESTS[0]).text
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"thread": 1}, 'the option "thread" is unknown'),
        ({"threads": -1}, "the option threads is -1; it must be an integer, 0 or more"),
        ({"cache": 3}, "the option cache is 3; it must be a path"),
    ],
)
def test_wrong_options_are_refused(bundle_of, options, says):
    with pytest.raises(CoreError) as refused, core_session(bundle_of("tiny-gqa", "host"), options=options):
        pass
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_example_runs(bundle_of, tmp_path):
    """By a C compiler: the headers are C."""
    assert LIBRARY is not None
    root = Path(__file__).parents[2]
    flags = ["-Wall", "-Wextra", "-Werror", "-std=c99", f"-I{root}/phi3mobile/core/include", f"-L{LIBRARY.parent}"]
    runtime = ["-lphi3mobile", f"-Wl,-rpath,{LIBRARY.parent}", "-Wl,--allow-shlib-undefined"]
    subprocess.run(["cc", *flags, root / "phi3mobile/core/examples/answer.c", "-o", tmp_path / "answer", *runtime], check=True)
    bundle = bundle_of("tiny-gqa", "host")
    found = subprocess.run([tmp_path / "answer", bundle], capture_output=True, text=True, check=True).stdout
    with Session(bundle) as session:
        messages = [{"role": "user", "content": "Name three rivers."}]
        assert found.startswith("".join(session.generate(messages, max_tokens=60)) + "\n{")
    assert subprocess.run([tmp_path / "answer", "/nowhere"], capture_output=True).returncode == 1


def p3m(*arguments: object, given: str = "") -> subprocess.CompletedProcess[str]:
    assert LIBRARY is not None
    return subprocess.run([LIBRARY.parent / "p3m", *map(str, arguments)], input=given, capture_output=True, text=True)


def test_p3m_runs_a_bundle_without_python(bundle_of, tmp_path):
    bundle = bundle_of("tiny-gqa", "host")
    with Session(bundle) as session:
        expected = "".join(session.generate([{"role": "user", "content": "the sea"}], max_tokens=9))
        raw = "".join(session.complete("the sea", max_tokens=9, temperature=0.5, seed=4))
    found = p3m("run", bundle, "the sea", "--max-tokens", 9, "--cache", tmp_path, "--stats")
    assert (found.returncode, found.stdout) == (0, expected + "\n") and '"generated_tokens":9' in found.stderr
    found = p3m("run", bundle, "the sea", "--max-tokens", 9, "--raw", "--temperature", 0.5, "--seed", 4)
    assert (found.returncode, found.stdout) == (0, raw + "\n")
    assert p3m("verify", bundle).stdout == "every file is as it was made\n"


def test_p3m_tokens_are_pythons(bundle_of):
    bundle = bundle_of("tiny-gqa", "host")
    tokenizer, texts = open_bundle(bundle).tokenizer, ["the sea", "", "é 🙂\n<|end|>", "\ufdfa" * 9]
    found = p3m("tokens", bundle, given="".join(json.dumps(text) + "\n" for text in texts))
    assert found.stdout.split("\n")[:-1] == [" ".join(map(str, tokenizer.encode(text))) for text in texts]
    assert p3m("tokens", bundle, "the sea").stdout.split() == list(map(str, tokenizer.encode("the sea")))
    assert p3m("tokens", bundle, given="the sea\n").returncode == 2


def test_p3m_chats(bundle_of, tmp_path):
    bundle, state = bundle_of("tiny-gqa", "host"), tmp_path / "state"
    lines = ["the sea", "/undo", "the sea", f"/save {state}", "/what", "/reset", "the sea", f"/load {state}", "/exit", "never"]
    found = p3m("chat", bundle, "--max-tokens", 6, given="\n".join(lines) + "\n")
    assert found.returncode == 0 and state.exists()
    assert len(set(found.stdout.rstrip("\n").split("\n"))) == 1 and found.stdout.count("\n") == 3
    assert "commands: /reset" in found.stderr and "tokens are known" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "usage: p3m run BUNDLE PROMPT"),
        (("fly",), "usage: p3m run BUNDLE PROMPT"),
        (("run", "/nowhere", "x"), "p3m: /nowhere does not exist or is not a folder"),
        (("run", "/nowhere"), "p3m: wrong number of arguments"),
        (("run", "/nowhere", "x", "--color", "red"), "p3m: the option --color is unknown"),
        (("run", "/nowhere", "x", "--seed", "red"), "p3m: --seed is red; it must be an integer"),
        (("run", "/nowhere", "x", "--seed"), "p3m: --seed needs a value"),
    ],
)
def test_p3m_says_what_was_wrong(arguments, says):
    found = p3m(*arguments)
    assert found.returncode == 2 and found.stderr.startswith(says) and found.stdout == ""


def test_a_damaged_bundle_is_found_by_verify(bundle_of, tmp_path):
    bundle = tmp_path / "bundle"
    subprocess.run(["cp", "-r", bundle_of("tiny-gqa", "host"), bundle], check=True)
    (name,) = (path.name for path in bundle.iterdir() if path.suffix == ".pte")
    data = bytearray((bundle / name).read_bytes())
    data[1000] ^= 1
    Path(bundle / name).write_bytes(data)
    found = p3m("verify", bundle)
    assert found.returncode == 2 and "is damaged: its SHA-256 is not the manifest's" in found.stderr
