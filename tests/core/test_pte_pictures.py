"""Pictures over a bundle's own programs, without Python: what Python's session says, states, and p3m."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from library import CoreError, core_session
from photos import drawn, say
from scenarios import COUNTED
from test_pte_core import p3m

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.native import native_library
from phi3mobile.session.session import Session

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native")


A, B = drawn(1), drawn(2, 30, 50)


@pytest.fixture(scope="module")
def bundle(once, checkpoint_of) -> Path:
    """As test_vision_export.py's: two pictures of 757 tokens go past the switch at 1024."""
    from phi3mobile.export.build import export

    return once("seeing-host", lambda out: export(checkpoint_of("vision-tiny"), out, "host", 2048, method="rtn"))


def conversations(a: Any, b: Any) -> list[dict[str, Any]]:
    first, reply = say(a, "what is this?"), {"role": "assistant", "content": "A cat."}
    return [
        {"messages": [{"role": "user", "content": "the cat sat"}], "max_tokens": 6},
        {"messages": [first], "max_tokens": 8, "repetition": True},
        {"messages": [first, reply, {"role": "user", "content": "and its name?"}], "max_tokens": 6, "lookup": True},
        {"messages": [first, reply, say("what is beside <|image_2|>?", b)], "max_tokens": 6},  # past the switch
        {"messages": [first], "max_tokens": 6, "temperature": 0.8, "seed": 3},  # and back
        {
            "messages": [say(b, "what is this?"), reply, say(a, "and this?"), reply, say(b, "?")],
            "overflow": "slide",
            "max_tokens": 4,
        },
    ]


def test_answers_are_those_of_pythons_session(bundle, tmp_path):
    expected = []
    with Session(bundle) as session:
        for request in conversations(A, B):
            pieces = list(session.generate(request.pop("messages"), **request))
            counted = asdict(session.statistics)
            expected.append((pieces, {key: counted[key] for key in COUNTED}))
    with core_session(bundle, options={"cache": str(tmp_path)}) as session:
        requests = conversations(session.picture(A), session.picture(B))
        for request, (pieces, counted) in zip(requests, expected, strict=True):
            found = session.answer(request)
            assert (found.pieces, {key: found.statistics[key] for key in COUNTED}) == (pieces, counted), request
    tower = open_bundle(bundle).manifest["files"]["vision.pte"]["sha256"][:32]
    assert any(
        path.name.startswith(tower) and path.suffix == ".packed" for path in tmp_path.iterdir()
    )  # kept for the next start


def test_features_are_kept_for_other_sessions(bundle, tmp_path):
    """The core's, Python's and p3m's of the same runtime: who comes second does not look again."""
    told: list[str] = []
    with core_session(bundle) as session:
        session.keep_features(tmp_path / "core")
        text = session.answer({"messages": [say(session.picture(A), "what is this?")], "max_tokens": 6}).text
    with Session(bundle, features=tmp_path / "core", on_event=told.append) as python:
        assert "".join(python.generate([say(A, "what is this?")], max_tokens=6)) == text and not told
    with Session(bundle, features=tmp_path / "python") as python:
        "".join(python.generate([say(A, "what is this?")], max_tokens=1))
    (ours,), (theirs,) = ((tmp_path / name).iterdir() for name in ("core", "python"))
    assert ours.name == theirs.name and ours.read_bytes() == theirs.read_bytes()
    a = written(tmp_path / "a.ppm", A)
    for features, looks in ((tmp_path / "python", False), (tmp_path / "p3m", True), (tmp_path / "p3m", False)):
        found = p3m("run", bundle, "what is this?", "--image", a, "--max-tokens", 6, "--features", features)
        assert found.stdout == text + "\n" and ("looking at a picture" in found.stderr) == looks
    found = p3m("run", bundle, "?", "--image", a, "--features", a)
    assert found.returncode == 2 and f"{a} is a file; give a folder for features of pictures" in found.stderr


def test_a_state_ends_before_its_pictures(bundle, tmp_path):
    request = {"max_tokens": 4, "repetition": True}
    with core_session(bundle) as session:
        messages = [say("what is this? " * 20, session.picture(A))]
        text = session.answer({"messages": messages, **request}).text
        session.save(tmp_path / "state")
    with core_session(bundle) as session:
        known = session.restore(tmp_path / "state")
        again = session.answer({"messages": [say("what is this? " * 20, session.picture(A))], **request})
        assert again.text == text and again.statistics["reused_tokens"] == known > 20
    with Session(bundle) as session:
        assert session.restore(tmp_path / "state") == known
        assert "".join(session.generate([say("what is this? " * 20, A)], **request)) == text


def test_options(bundle, bundle_of):
    with core_session(bundle, options={"num_crops": 1}) as session:
        found = session.answer({"messages": [say(session.picture(A), "?")], "max_tokens": 1})
        assert 313 < found.statistics["prompt_tokens"] < 340
    for options, line in (({"num_crops": 2000}, "num_crops 2000: give 1 to 1024"), ({"num_crops": -1}, "num_crops is -1")):
        with pytest.raises(CoreError, match=line):
            core_session(bundle, options=options).__enter__()
    text = bundle_of("tiny-gqa", "host")
    with pytest.raises(CoreError, match="num_crops is 4: this model sees no pictures; leave it out"):
        core_session(text, options={"num_crops": 4}).__enter__()
    with core_session(text) as session, pytest.raises(CoreError, match="this model reads text only"):
        session.picture(A)


def written(path: Path, picture: np.ndarray) -> Path:
    path.write_bytes(f"P6 # by hand\n{picture.shape[1]} {picture.shape[0]}\n255\n".encode() + picture.tobytes())
    return path


def test_p3m_shows_pictures(bundle, tmp_path):
    a, b = written(tmp_path / "a.ppm", A), written(tmp_path / "b.ppm", B)
    with Session(bundle, num_crops=1) as session:
        one = "".join(session.generate([say(A, "what is this?")], max_tokens=6))
        two = "".join(session.generate([say(A, B, "which?")], max_tokens=6))
    given = "--num-crops", 1, "--max-tokens", 6, "--cache", tmp_path
    found = p3m("run", bundle, "what is this?", "--image", a, *given)
    assert (found.returncode, found.stdout) == (0, one + "\n") and "looking at a picture (2 views)" in found.stderr
    assert p3m("run", bundle, "which?", "--image", a, "--image", b, *given).stdout == two + "\n"
    lines = [
        f"/image {a}",
        "what is this?",
        "/reset",
        f"/image {tmp_path / 'none.ppm'}",
        f"/image {a}",
        f"/image {b}",
        "which?",
    ]
    found = p3m("chat", bundle, *given, given="\n".join(lines) + "\n")
    assert found.stdout == f"{one}\n{two}\n" and "none.ppm can't be read: give a picture's file" in found.stderr


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "is no PPM (P6) or PGM (P5)"),
        (b"\xff\xd8\xff\xe0 a JPEG", "is no PPM (P6) or PGM (P5): convert it"),
        (b"P6 2 2 65535\n" + bytes(24), "has 2 × 2 pixels of 0 to 65535; give at most 128 megapixels of 0 to 255"),
        (b"P6 0 2 255\n", "has 0 × 2 pixels"),
        (b"P6 99999999999999999999 2 255\n", "give at most 128 megapixels"),
        (b"P6 2 2 255\n" + bytes(11), "is cut short: copy it again"),
        (b"P6 # no end", "pixels of 0 to -1"),
        (b"P5 9000 1 255\n" + bytes(9000), "is too narrow: with num_crops 4"),
    ],
)
def test_p3m_refuses_what_is_no_picture(bundle, tmp_path, data, line):
    path = tmp_path / "picture"
    path.write_bytes(data)
    found = p3m("run", bundle, "what?", "--image", path)
    assert found.returncode == 2 and line in found.stderr and found.stderr.count("\n") == 1 and found.stdout == ""
