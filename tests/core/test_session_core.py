"""The core's session against Python's, on the same engine: the same tokens, pieces, notes and counts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from library import CoreError, CoreSession, core, core_session
from scenarios import VOCAB, ChainEngine, play, scenario, write_bundle

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.native import native_library
from phi3mobile.errors import InputError
from phi3mobile.session.guidance import Guide
from phi3mobile.session.session import Session

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native")


@dataclass
class Found:
    pieces: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)


def guide_of(given: dict[str, Any], tokenizer: Any) -> Guide | None:
    """What the request lets the answer be; its keys are taken out."""
    additional = given.pop("additional_properties", False)
    if (schema := given.pop("schema", None)) is not None:
        return Guide.json_schema(schema, tokenizer, additional_properties=additional)
    if (regex := given.pop("regex", None)) is not None:
        return Guide.regex(regex, tokenizer)
    return Guide.grammar(given.pop("grammar"), tokenizer) if "grammar" in given else None


class PythonPlayer:
    def __init__(self, folder: Path, engine: Any = None) -> None:
        self.notes: list[str] = []
        self.session = Session(open_bundle(folder), engine, on_event=self.notes.append)

    def answer(self, request: dict[str, Any], cancel_after: int | None) -> Found:
        given, found = dict(request), Found()
        self.notes.clear()
        call = self.session.complete if "prompt" in given else self.session.generate
        if guide := guide_of(given, self.session.parts.tokenizer):
            given["guide"] = guide
        for piece in call(given.pop("prompt", None) or given.pop("messages"), **given):
            found.pieces.append(piece)
            if len(found.pieces) == cancel_after:
                self.session.cancel()
        assert self.session.statistics is not None
        found.notes, found.statistics = list(self.notes), asdict(self.session.statistics)
        return found

    def reset(self) -> None:
        self.session.reset()


def both(about: dict[str, Any], folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    first, second = (ChainEngine(VOCAB, **about["engine"]) for _ in range(2))
    write_bundle(folder, first)
    expected = list(play(about, PythonPlayer(folder, first), first, InputError))
    with core_session(folder, second) as session:
        return expected, list(play(about, session, second, CoreError))


def compare(numbers: range, folder: Path, made: Callable[[int], dict[str, Any]] = scenario) -> dict[str, int]:
    """How often each reason ended an answer. Asserts that both sessions gave the same."""
    seen: dict[str, int] = {}
    for number in numbers:
        expected, given = both(made(number), folder / str(number))
        for step, (one, other) in enumerate(zip(expected, given, strict=True)):
            assert one == other, f"scenario {number}, answer {step}"
            reason = one["statistics"]["finish_reason"] if "statistics" in one else "refused"
            seen[reason] = seen.get(reason, 0) + 1
            for kind in one.get("notes", ()):
                seen[kind.split()[0]] = seen.get(kind.split()[0], 0) + 1
            seen["accepted"] = seen.get("accepted", 0) + one.get("statistics", {}).get("accepted", 0)
    return seen


def test_a_hundred_scenarios_give_the_same(tmp_path):
    seen = compare(range(100), tmp_path)
    # Every way to end and every note was seen, or the scenarios would prove little.
    for what in ("stop_string", "length", "context_full", "cancelled", "refused", "LongRoPE:", "the", "context", "accepted"):
        assert seen.get(what, 0) > 0, (what, seen)


@pytest.mark.slow
def test_two_thousand_scenarios_give_the_same(tmp_path):
    compare(range(100, 2100), tmp_path)


@pytest.fixture
def chain(tmp_path):
    engine = ChainEngine(VOCAB)
    return write_bundle(tmp_path / "chain", engine), engine


def test_the_versions_agree():
    assert core().p3m_api_version() == 1


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ("", "the request is not JSON: a value was expected at byte 0"),
        ("[]", "the request is no JSON object"),
        ("{}", "the request has messages and a prompt, or neither"),
        ('{"prompt": ""}', "the prompt is empty"),
        ('{"prompt": "a", "color": 1}', 'the request has the key "color"'),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens is 0; it must be an integer, 1 or more"),
        ('{"prompt": "a", "max_tokens": "x"}', 'max_tokens is "x"'),
        ('{"prompt": "a", "stop": "x"}', 'stop is "x"; it must be a list'),
        ('{"prompt": "a", "stop": [""]}', 'stop is [""]; it must be a list'),
        ('{"prompt": "a", "overflow": "fold"}', 'overflow is "fold"'),
        ('{"prompt": "a", "lookup": 1}', "lookup is 1; it must be true or false"),
        ('{"prompt": "a", "temperature": -1}', "sampling: temperature is -1.0; it must be 0 or more"),
        ('{"prompt": "a", "top_p": 0, "temperature": 1}', "sampling: top_p is 0.0"),
        ('{"prompt": "a", "top_k": 1.5}', "top_k is 1.5; it must be an integer"),
        ('{"prompt": "a", "top_k": 3}', "top_k has no effect at temperature 0"),
        ('{"prompt": "a", "seed": -1, "temperature": 1}', "sampling: seed is -1"),
        ('{"messages": []}', "there are no messages"),
        ('{"messages": [{"role": "user"}]}', "message 0 has no text as its content"),
        ('{"messages": [{"role": "judge", "content": "x"}]}', "message 0 has role"),
        ('{"messages": [{"role": "user", "content": " \\n"}]}', "the prompt is empty: the last user message"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "the last message is from"),
        ('{"messages": [{"role": "user", "content": [{"type": "image", "image": "x.jpg"}]}]}', "a picture was given"),
        ('{"prompt": "\\ud800"}', "the request is not JSON: half a character"),
        ('{"prompt": "' + "a b " * 60 + '"}', "the prompt has"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(chain, request_, says):
    with core_session(*chain) as session:
        with pytest.raises(CoreError) as refused:
            session.start(request_)
        line = str(refused.value)
        assert says in line and "\n" not in line
        assert session.answer({"prompt": "a", "max_tokens": 2}).statistics["generated_tokens"] <= 2  # still usable


def test_bytes_that_are_no_text_are_refused(chain):
    with core_session(*chain) as session:
        error = b" " * 200
        assert session.library.p3m_session_start(session.handle, b'{"prompt": "\xff"}', error, 200) == -1
        assert b"not UTF-8 at byte 12" in error


def test_null_handles_are_errors():
    library, error = core(), b" " * 200
    assert library.p3m_session_start(None, b"{}", error, 200) == -1 and b"the session is null" in error
    assert library.p3m_session_next(None, None, None) == -1
    assert library.p3m_session_open(None, None, error, 200) is None and b"the folder is null" in error
    assert library.p3m_bundle_verify(None, type(library.p3m_bundle_verify.argtypes[1]())(), None, error, 200) == -1
    assert library.p3m_bundle_manifest(None) is None
    library.p3m_session_cancel(None)
    library.p3m_session_reset(None)
    library.p3m_session_close(None)
    library.p3m_bundle_close(None)


def test_an_engine_that_fails_ends_the_answer_and_is_told(chain):
    folder, engine = chain
    with core_session(folder, engine) as session:
        known = session.answer({"prompt": "the end", "max_tokens": 20, "repetition": True})
        engine.reset()
        session.reset()
        forward, calls = engine.forward, []

        def failing(*given):
            calls.append(given)
            if len(calls) == 3:
                raise RuntimeError("the GPU went away")
            return forward(*given)

        engine.forward = failing
        with pytest.raises(CoreError, match=r"^the GPU went away$"):
            session.answer({"prompt": "the end", "max_tokens": 20, "repetition": True})
        assert json.loads(session.next()[1])["finish_reason"] == "error"
        again = session.answer({"prompt": "the end", "max_tokens": 20, "repetition": True})
        assert again.text == known.text  # what the failed forward may have left is not trusted


def test_an_engine_of_another_version_is_refused(chain):
    folder, engine = chain
    session = CoreSession(folder, engine)
    session._engine.version = 7
    error = b" " * 300
    assert session.library.p3m_session_open_with(bytes(folder), session._engine, error, 300) is None
    assert b"the engine says version 7, this library has 1" in error
    session.close()
    assert session.closed


def test_cancel_comes_from_any_thread(chain):
    folder, engine = chain
    engine.habit = 0
    with core_session(folder, engine) as session:
        first = session.answer({"prompt": "the end", "max_tokens": None, "repetition": True})
        assert first.statistics["finish_reason"] in ("context_full", "stop")
        for _ in range(20):
            session.start({"prompt": "the end", "max_tokens": None, "repetition": True})
            thread = threading.Thread(target=session.cancel)
            thread.start()
            while session.next()[0] != 0:
                pass
            thread.join()
        assert session.answer({"prompt": "the end", "max_tokens": None, "repetition": True}).text == first.text


def test_two_sessions_in_two_threads(tmp_path):
    engines = [ChainEngine(VOCAB, seed=i, habit=0) for i in range(2)]
    folders = [write_bundle(tmp_path / str(i), engine) for i, engine in enumerate(engines)]
    request = {"prompt": "the end and", "max_tokens": 40, "repetition": True, "temperature": 1.0, "seed": 3}
    with core_session(folders[0], engines[0]) as one, core_session(folders[1], engines[1]) as two:
        expected = [session.answer(request).text for session in (one, two)]
        found: list[list[str]] = [[], []]

        def work(index: int, session: CoreSession) -> None:
            for _ in range(10):
                found[index].append(session.answer(request).text)

        threads = [threading.Thread(target=work, args=pair) for pair in enumerate((one, two))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [[expected[0]] * 10, [expected[1]] * 10]
