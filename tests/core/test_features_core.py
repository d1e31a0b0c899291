"""Features of pictures in a folder: the core's files are Python's, each reads the other's, and damaged ones are made anew."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from library import CoreError, core_session
from scenarios import VOCAB, write_bundle
from seeing import HIDDEN, NUM_CROPS, PICTURES, DrawnTower, SeeingChain, write_seeing_bundle

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.native import native_library
from phi3mobile.engines.tower import BundleTower
from phi3mobile.errors import InputError
from phi3mobile.session.session import Session

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native")
RUNTIME, SHOWN = "drawn 1", ("A", "C", "A again", "D")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_seeing_bundle(tmp_path_factory.mktemp("seeing") / "bundle", SeeingChain(VOCAB, 3000, 3000))


def question(images: list[Any]) -> dict[str, Any]:
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": "the"}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 3}


def by_core(bundle: Path, features: Path, pictures: list[np.ndarray], num_crops: int = 0) -> tuple[str, int]:
    """What the core's session says of the pictures, and how many views the tower was given for it."""
    tower = DrawnTower()
    with core_session(bundle, SeeingChain(VOCAB, 3000, 3000), tower=tower, num_crops=num_crops) as session:
        session.keep_features(features, RUNTIME)
        return session.answer(question([session.picture(one) for one in pictures])).text, tower.seen


def by_python(bundle: Path, features: Path, pictures: list[np.ndarray], num_crops: int | None = None) -> tuple[str, int]:
    tower, opened = DrawnTower(), open_bundle(bundle)
    tower.name = BundleTower(opened, lambda: pytest.fail("its program is not there"), RUNTIME).name
    given = {"tower": tower, "num_crops": num_crops, "features": features}
    with Session(opened, SeeingChain(VOCAB, 3000, 3000), **given) as session:
        request = question(pictures)
        return "".join(session.generate(request.pop("messages"), **request)), tower.seen


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_files_are_pythons_to_the_byte_and_read_both_ways(bundle, tmp_path):
    pictures = [PICTURES[name] for name in SHOWN]
    text, seen = by_python(bundle, tmp_path / "python", pictures)
    assert by_core(bundle, tmp_path / "new/folder/core", pictures) == (text, seen) and seen > 0
    files = contents(tmp_path / "python")
    assert contents(tmp_path / "new/folder/core") == files and len(files) == 3
    assert by_core(bundle, tmp_path / "python", pictures) == (text, 0)
    assert by_python(bundle, tmp_path / "new/folder/core", pictures) == (text, 0)
    fewer = by_core(bundle, tmp_path / "python", pictures, num_crops=1)  # other crops are other features
    assert fewer == by_python(bundle, tmp_path / "new/folder/core", pictures, 1) and fewer[1] > 0
    assert contents(tmp_path / "new/folder/core") == contents(tmp_path / "python")


@pytest.fixture(scope="module")
def kept(bundle, tmp_path_factory) -> tuple[Path, bytes]:
    """The file of picture C, and what it holds."""
    folder = tmp_path_factory.mktemp("kept")
    by_python(bundle, folder, [PICTURES["C"]])
    (path,) = folder.iterdir()
    return path, path.read_bytes()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@settings(max_examples=40, deadline=None)
@given(some.data())
def test_damaged_files_are_made_anew_by_both(bundle, kept, data):
    path, whole = kept
    rows = np.load(io.BytesIO(whole))
    assert rows.shape[1] == HIDDEN
    kind = data.draw(
        some.sampled_from(["cut", "garbage", "type", "wide", "short", "transposed", "header", "pickled", "swapped"])
    )
    if kind == "cut":
        damaged = whole[: data.draw(some.integers(0, len(whole) - 1))]
    elif kind == "garbage":
        damaged = data.draw(some.binary(max_size=300))
    elif kind == "header":
        at = data.draw(some.integers(0, 60))
        damaged = whole[:at] + bytes([whole[at] ^ data.draw(some.sampled_from([1, 128]))]) + whole[at + 1 :]
    else:
        changed = {"type": rows.astype(np.float64), "wide": rows[:, :-1], "short": rows[:-1], "transposed": rows.T}
        changed |= {"pickled": np.array([None, {}], object), "swapped": rows.astype(">f4")}
        damaged = npy(np.ascontiguousarray(changed[kind]))
    path.write_bytes(whole)
    expected = by_core(bundle, path.parent, [PICTURES["C"]])
    assert expected[1] == 0
    for ask in (by_core, by_python):
        path.write_bytes(damaged)
        text, seen = ask(bundle, path.parent, [PICTURES["C"]])
        assert text == expected[0]
        assert seen or (ask is by_python and kind == "header")  # numpy reads headers that it does not write
        assert not seen or contents(path.parent) == {path.name: whole}


def test_what_lies_behind_the_array_is_no_damage(bundle, kept):
    path, whole = kept
    path.write_bytes(whole + b"more")
    assert by_core(bundle, path.parent, [PICTURES["C"]]) == by_python(bundle, path.parent, [PICTURES["C"]])
    assert path.read_bytes() == whole + b"more"


def test_another_runtime_has_files_of_its_own(bundle, kept, tmp_path):
    tower = DrawnTower()
    with core_session(bundle, SeeingChain(VOCAB, 3000, 3000), tower=tower) as session:
        session.keep_features(tmp_path, "drawn 2")
        session.answer(question([session.picture(PICTURES["C"])]))
    (made,) = tmp_path.iterdir()
    known = kept[0].name
    assert tower.seen and made.name[32:] == known[32:] and made.name[:32] != known[:32]
    assert made.name.endswith(f"-{NUM_CROPS}.npy")


def test_bad_folders_are_told_in_a_line(bundle, tmp_path):
    engine, file = SeeingChain(VOCAB, 3000, 3000), tmp_path / "file"
    file.write_bytes(b"")
    with core_session(bundle, engine, tower=DrawnTower()) as session:
        for folder, runtime, line in (
            ("", RUNTIME, "the folder for features of pictures is empty; give its name"),
            (file, RUNTIME, f"{file} is a file; give a folder"),
            (tmp_path, None, "the runtime is null"),
            (None, RUNTIME, "the folder is null"),
        ):
            with pytest.raises(CoreError, match=line) as told:
                session.keep_features(folder, runtime)
            assert "\n" not in str(told.value)
        session.keep_features(file / "under", RUNTIME)  # known when it is first written
        with pytest.raises(CoreError, match=f"{file} can't be made"):
            session.answer(question([session.picture(PICTURES["C"])]))
        session.keep_features(tmp_path / "there", RUNTIME)  # and the session goes on
        assert session.answer(question([session.picture(PICTURES["C"])])).statistics["finish_reason"] == "length"
        assert len(list((tmp_path / "there").iterdir())) == 1
    with pytest.raises(InputError, match="can't be written"):
        by_python(bundle, file / "under", [PICTURES["C"]])
    line = "this session sees no pictures: it has no features to keep; leave the folder out"
    blind = write_bundle(tmp_path / "blind", engine)
    with core_session(blind, engine) as session, pytest.raises(CoreError, match=line):
        session.keep_features(tmp_path, RUNTIME)
