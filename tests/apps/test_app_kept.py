"""The open chat's KV cache outlives the app: the next start goes on without prefilling."""

from __future__ import annotations

from pathlib import Path

import pytest

from phi3mobile.assistant.events import Failed, Finished, Loaded
from phi3mobile.assistant.worker import Worker
from phi3mobile.engines.native import native_library
from phi3mobile.session.sampling import GREEDY

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native")
ASKED = [{"role": "user", "content": "Tell me of the sea, the ships and the birds over them."}]


def wait(worker: Worker, kind: type):
    while not isinstance(event := worker.events.get(timeout=60), kind):
        assert not isinstance(event, Failed), event
    return event


def numbers(kept: Path | None, bundle: Path, keep_now: bool = False) -> dict:
    """Statistics of one answer by an app that started, answered and ended."""
    worker = Worker(kept=kept)
    worker.load(bundle)
    wait(worker, Loaded)
    worker.answer(ASKED, GREEDY, 4)
    found = wait(worker, Finished)
    if keep_now:
        worker.keep()  # and then the system ends the app: no close
        worker.answer(ASKED, GREEDY, 1)  # the order after it has been done: so has the one before
        wait(worker, Finished)
    else:
        worker.close()
    return found.numbers


@pytest.mark.parametrize("keep_now", [False, True], ids=["closed", "paused"])
def test_the_next_start_is_warm(bundle_of, tmp_path, keep_now):
    bundle, kept = bundle_of("tiny-gqa", "host"), tmp_path / "chats.db.state"
    first = numbers(kept, bundle, keep_now)
    second = numbers(kept, bundle)
    assert (first["reused_tokens"], second["prefilled_tokens"]) == (0, 1)
    assert second["reused_tokens"] == second["prompt_tokens"] - 1


def test_a_file_of_another_model_is_left_alone_until_the_end(bundle_of, tmp_path):
    kept = tmp_path / "state"
    kept.write_bytes(b"something else")
    assert numbers(kept, bundle_of("tiny-gqa", "host"))["reused_tokens"] == 0
    assert kept.read_bytes()[:8] == b"P3MSTAT1"


def test_an_engine_that_keeps_nothing_is_no_error(bundle_of, tmp_path):
    bundle = bundle_of("tiny-gqa")  # android-cpu: ExecuTorch's own runtime
    assert numbers(tmp_path / "state", bundle)["reused_tokens"] == 0
    assert not (tmp_path / "state").exists()
