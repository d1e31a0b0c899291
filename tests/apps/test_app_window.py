"""The assistant's real window under Xvfb: touches go in, screenshots and what was seen come out (app_scenarios.py)."""

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fake_app import ANSWERS, ARABIC_TITLE

from phi3mobile.assistant.text.runs import visual

HERE = Path(__file__).parents[1]
PHONE, TABLET, DESKTOP = "390x844", "820x1180", "1180x800"
BUG_SENTENCE = "Something went wrong inside the app. Your conversation is saved."


@pytest.fixture(scope="session")
def display():
    """An X display of our own, as DISPLAY wants it."""
    if importlib.util.find_spec("kivy") is None:
        pytest.skip("Kivy is not installed: pip install 'phi3mobile[app]'")
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed: Debian's xvfb libgl1 libgl1-mesa-dri libegl1 libmtdev1")
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "1400x1300x24", "-nolisten", "tcp"],
        pass_fds=[write],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    with os.fdopen(read) as pipe:
        number = pipe.readline().strip()
    if not number:
        pytest.skip("Xvfb does not start here")
    yield f":{number}"
    server.terminate()
    server.wait()


@pytest.fixture
def play(display, tmp_path):
    """Run a scenario in its own process; what it saw, with "folder"."""

    def run(scenario: str, size: str, timeout: float = 120, **extra: str) -> dict:
        environment = os.environ | {"DISPLAY": display, "LIBGL_ALWAYS_SOFTWARE": "1"} | extra
        command = [sys.executable, str(HERE / "app_driver.py"), scenario, str(tmp_path), size]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, done.stderr[-3000:]
        assert_drawn(tmp_path)
        return json.loads((tmp_path / "seen.json").read_text()) | {"folder": tmp_path}

    return run


def assert_drawn(folder: Path) -> None:
    """Every screenshot shows something: many colors, and no color nearly everywhere."""
    from PIL import Image

    shots = sorted(folder.glob("*.png"))
    for shot in shots:
        colors = Counter(Image.open(shot).convert("RGB").resize((200, 200), Image.Resampling.NEAREST).getdata())
        assert len(colors) > 8 and colors.most_common(1)[0][1] < 39_600, shot.name


@pytest.mark.parametrize("size", [PHONE, pytest.param(DESKTOP, marks=pytest.mark.slow)])
def test_a_conversation_by_touch(play, size):
    pytest.importorskip("PIL", reason="pip install pillow")
    seen = play("chat", size)
    assert seen["cut"] == []
    assert seen["stop shown while answering"] == "stop"
    assert [content for role, content, _ in seen["messages"] if role == "assistant"] == list(ANSWERS)
    state, text = seen["stopped"]
    assert state == "stopped" and ANSWERS[0].startswith(text) and len(text) < len(ANSWERS[0])
    assert seen["edited text"] == "Show me some emoji"
    assert seen["copied"] in {*ANSWERS, *seen["after edit"]}
    assert seen["after edit"] == ["What is a KV cache?", "بالعربية من فضلك 🙂", "And in one line?"]
    assert seen["chats"] == ["A second conversation", "What is a KV cache?"]
    assert len(seen["chats after delete"]) == 1


@pytest.mark.parametrize("size", [PHONE, pytest.param(TABLET, marks=pytest.mark.slow)])
def test_models_documents_sources_and_settings_by_touch(play, size):
    pytest.importorskip("PIL", reason="pip install pillow")
    seen = play("sheets", size)
    assert seen["model"] == "scripted model"
    assert seen["asked"][-1]["content"].endswith("When is the rent due?") and "[1] The rent" in seen["asked"][-1]["content"]
    assert {"Lease 2026", "Documents/lease.pdf · page 4"} <= set(seen["passage"])
    drawn = [re.sub(r"\[/?font[^]]*\]", "", chip) for chip in seen["chips"]]
    assert len(drawn) == 4 and visual(f"[4] {ARABIC_TITLE}") in drawn[3].replace("&bl;", "[").replace("&br;", "]")
    assert seen["dark"] is True and seen["temperature"] == [0.0, 1.0] and seen["system prompt"] == "Answer briefly."
    assert {name: seen[name] for name in seen if name.endswith("cut")} == {
        "models cut": [],
        "sources cut": [],
        "settings cut": [],
        "large cut": [],
        "largest cut": [],
    }


@pytest.mark.parametrize("size", [PHONE, pytest.param(DESKTOP, marks=pytest.mark.slow)])
def test_pictures_by_touch(play, size):
    pytest.importorskip("PIL", reason="pip install pillow")
    seen = play("pictures", size)
    assert min(seen["button"]) >= 44 and {"a wall.png", "tall.png", "wide.png", "broken.jpg", "Up"} <= set(seen["listed"])
    assert "notes.txt" not in seen["listed"]
    assert seen["dropped"] == 3 and seen["after removing"] == 2
    assert seen["pasted"] == [3, ""]  # a picture, not its path as text
    assert len(seen["crosses"]) == 3 and all(min(width, height) >= 44 for *_, width, height in seen["crosses"])
    (_, bottom, _, high), top = seen["strip"], seen["field top"]
    assert bottom >= top and all(bottom <= y and y + height <= bottom + high for _, y, _, height in seen["crosses"])
    lefts = sorted(x for x, *_ in seen["crosses"])
    assert all(b - a >= 44 for a, b in itertools.pairwise(lefts))  # no finger hits two
    assert seen["broken"][0] == "This picture can't be opened." and "broken.jpg" in seen["broken"][1]
    assert seen["notice"] == "Looking at the picture…" and seen["strip after"] == [0, ""]
    assert len(seen["bubble"]) == 3 and all(seen["textures"])
    boxes = seen["bubble"]
    assert all(x >= 0 and x + width <= int(size.partition("x")[0]) for x, _, width, _ in boxes)
    for (x, y, w, h), (u, v, s, t) in itertools.combinations(boxes, 2):
        assert x + w <= u or u + s <= x or y + h <= v or v + t <= y
    assert seen["editing"] == [3, "What is on these pictures?"] and seen["cancelled"] == [0, ""]
    assert seen["blind has a button"] is False
    assert seen["blind"] == ["This model reads text only: it sees no pictures.", "And this?"]
    assert (seen["cut"], seen["broken"][2], seen["bubble cut"], seen["large cut"]) == ([], [], [], [])


def test_problems_are_a_sentence_and_a_button(play):
    pytest.importorskip("PIL", reason="pip install pillow")
    seen = play("problems", PHONE)
    shown = {name: value for name, value in seen.items() if isinstance(value, list) and len(value) == 4}
    assert set(shown) == {"no-model", "damaged", "memory", "bug", "too-long", "library"}
    for sentence, detail, button, cut in shown.values():
        assert sentence.endswith(".") and button and cut == [] and "Traceback" not in detail
    assert [name for name, value in shown.items() if value[0] == BUG_SENTENCE] == ["bug"]
    assert seen["no-model solved by"] == "Sheet"
    assert seen["not sent without a model"][0] == "Hello?"  # what was written is still there
    assert seen["after too long"] == [None, 0] and seen["answered all the same"] == "Fine."


def test_turning_the_screen(play):
    pytest.importorskip("PIL", reason="pip install pillow")
    seen = play("rotate", "1000x760")
    assert seen["layouts"] == [False, True, False]
    assert seen["text 390"] == ["half written", True] and seen["text 1024"][0] == "half written"
    assert seen["answer"] == ANSWERS[0]


def test_typing_in_several_scripts(play):
    pytest.importorskip("PIL", reason="pip install pillow")
    seen = play("typing", PHONE)
    for script in ("hebrew", "arabic"):  # the text starts at the right edge, and the cursor runs to the left
        start, end = seen[script]
        assert start > 300 and end < start - 50
    start, end = seen["lines"]
    assert start < 40 and end > start
    one, *_, four, many = seen["heights"]
    assert one < four < many < 8 * one / 2


def test_keys(play):
    pytest.importorskip("PIL", reason="pip install pillow")
    seen = play("keys", DESKTOP)
    assert seen["sent by enter"] == ["Hello"] and seen["shift+enter"] == "two\nlines"
    assert seen["escape stops"] == "stopped" and seen["up edits"] == "Hello"
    assert seen["ctrl+n"] == [] and seen["ctrl+,"] == "SettingsSheet" and seen["escape closes"] is None


@pytest.mark.slow
def test_frames_while_a_real_model_answers(play, demo_bundle):
    pytest.importorskip("PIL", reason="pip install pillow")
    seen = play("demo", PHONE, timeout=1800, PHI3MOBILE_TEST_BUNDLE=str(demo_bundle))
    assert seen["answer"].strip() and seen["state"] == "done" and seen["frames"]["frames"] > 3, seen
    # No time and no rate is asserted: the graphics system here is software that shares the cores with a model that may be fast.
    assert seen["frames"]["work_p50_ms"] <= seen["frames"]["p50_ms"], seen["frames"]


@pytest.mark.slow
def test_a_thousand_messages_do_not_grow_memory(play):
    pytest.importorskip("PIL", reason="pip install pillow")
    seen = play("soak", PHONE, timeout=1800)
    assert seen["messages"] == 1000
    after_200, at_the_end = seen["memory"][0], seen["memory"][-1]
    assert at_the_end - after_200 < 15e6, seen["memory"]
