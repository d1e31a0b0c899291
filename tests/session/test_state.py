"""A session's KV cache in a file: the next process goes on without prefilling, and takes nobody else's cache."""

import resource
import subprocess
import sys

import pytest
from fake_engine import FakeEngine, FakeParts

from phi3mobile.engines.native import native_library
from phi3mobile.errors import InputError
from phi3mobile.session.session import Session

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native")
PROMPT = "A long text about the sea, the ships and the birds over them. " * 3
GREEDY = {"max_tokens": 8, "repetition": True, "temperature": 0.0}


@pytest.fixture(scope="module")
def bundle(bundle_of):
    return bundle_of("tiny-gqa", "host")


@pytest.fixture
def saved(bundle, tmp_path):
    """A state of PROMPT and its answer, and that answer."""
    with Session(bundle) as session:
        text = "".join(session.complete(PROMPT, **GREEDY))
        return tmp_path / "state", session.save(tmp_path / "state"), text


def test_a_restored_session_answers_the_same_without_prefill(bundle, saved):
    path, size, text = saved
    assert size == path.stat().st_size > 0
    with Session(bundle) as session:
        assert session.restore(path) > len(PROMPT) // 10
        assert "".join(session.complete(PROMPT, **GREEDY)) == text
        assert session.statistics.prefilled_tokens == 1  # the last token runs again, for its logits
        longer = "".join(session.complete(PROMPT + text + " And then", **GREEDY))
    with Session(bundle) as fresh:
        assert "".join(fresh.complete(PROMPT + text + " And then", **GREEDY)) == longer


def test_it_outlives_the_process(bundle, saved):
    path, _, text = saved
    program = (
        "import sys; from phi3mobile.session.session import Session\n"
        "with Session(sys.argv[1]) as s:\n"
        "    s.restore(sys.argv[2]); print(''.join(s.complete(sys.argv[3], max_tokens=8, repetition=True, temperature=0.0)))\n"
        "    print(s.statistics.prefilled_tokens)"
    )
    out = subprocess.run([sys.executable, "-c", program, bundle, path, PROMPT], capture_output=True, text=True, check=True)
    assert out.stdout == f"{text}\n1\n"


def test_a_longrope_session_keeps_its_regime(bundle_of, tmp_path):
    bundle = bundle_of("tiny-longrope", "host")
    with Session(bundle) as session:
        limit = session.engine.info.original_context
        prompt = "on " * (limit + 4)
        text = "".join(session.complete(prompt, **GREEDY))
        session.save(tmp_path / "state")
    with Session(bundle) as session:
        session.restore(tmp_path / "state")
        assert "".join(session.complete(prompt, **GREEDY)) == text and session.statistics.prefilled_tokens == 1
        "".join(session.complete("on", **GREEDY))
        assert session.statistics.long_switch or session.statistics.reused_tokens == 0  # never rows of both kinds


def test_unused_pages_take_no_space(bundle, tmp_path):
    with Session(bundle) as session:
        "".join(session.complete("a", max_tokens=1))
        first = session.save(tmp_path / "first")
        "".join(session.complete(PROMPT, max_tokens=1))
        assert session.save(tmp_path / "second") > first


@pytest.mark.parametrize("where", [0, 9, 40, 0.5, -9, -1])
def test_a_damaged_file_is_refused_and_the_session_goes_on(bundle, saved, where):
    path, size, text = saved
    data = bytearray(path.read_bytes())
    at = int(size * where) if isinstance(where, float) else where
    data[at] ^= 1
    path.write_bytes(data)
    with Session(bundle) as session:
        with pytest.raises(InputError, match=r"state|damaged|another|shorter"):
            session.restore(path)
        assert "".join(session.complete(PROMPT, **GREEDY)) == text
        assert session.statistics.reused_tokens == 0


@pytest.mark.parametrize("keep", [0, 5, 100, 5000])
def test_a_file_cut_short_is_refused(bundle, saved, keep):
    path, _, text = saved
    path.write_bytes(path.read_bytes()[:keep])
    with Session(bundle) as session:
        with pytest.raises(InputError):
            session.restore(path)
        assert "".join(session.complete(PROMPT, **GREEDY)) == text


def test_the_state_of_another_bundle_is_refused(bundle_of, saved):
    other = bundle_of("tiny-longrope", "host")
    with Session(other) as session, pytest.raises(InputError, match="was saved with another bundle: prefill again"):
        session.restore(saved[0])


def test_no_such_file_and_no_such_folder(bundle, tmp_path):
    with Session(bundle) as session:
        with pytest.raises(InputError, match="can't be read"):
            session.restore(tmp_path / "absent")
        with pytest.raises(InputError, match="can't be written"):
            session.save(tmp_path / "no" / "folder")


def test_a_failed_write_leaves_the_old_file(bundle, saved):
    path, _, text = saved
    with Session(bundle) as session:
        "".join(session.complete("other", max_tokens=1))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # as a disk that gets full
        try:
            with pytest.raises(InputError, match="can't be written"):
                session.save(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with Session(bundle) as session:
        session.restore(path)
        assert "".join(session.complete(PROMPT, **GREEDY)) == text and session.statistics.prefilled_tokens == 1


def test_engines_that_keep_no_state_say_so(tmp_path):
    session = Session(FakeParts(), FakeEngine())
    with pytest.raises(InputError, match="FakeEngine can't keep its KV cache in a file"):
        session.save(tmp_path / "state")
