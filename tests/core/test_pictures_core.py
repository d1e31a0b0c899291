"""Pictures in the core: bits of Python's views and rows, conversations as Python's session holds them, and bad input."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some
from library import CoreError, core, core_session
from scenarios import VOCAB, play, write_bundle
from seeing import BEGIN, PICTURES, DrawnTower, SeeingChain, drawn, seeing_scenario, shown, write_seeing_bundle
from test_session_core import PythonPlayer

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.native import native_library
from phi3mobile.errors import InputError
from phi3mobile.models.vision import merge, views
from phi3mobile.pictures import open_picture
from phi3mobile.session.session import Session

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native")
BYTE_LEVEL_FLAGS, ROBERTA_FLAGS = ("add_prefix_space", "trim_offsets", "use_regex"), ("trim_offsets", "add_prefix_space")


def says(*numbers: int | str, text: str = "the") -> dict[str, Any]:
    return {"role": "user", "content": [*({"type": "image", "image": n} for n in numbers), {"type": "text", "text": text}]}


def looked_at(folder, picture: np.ndarray, num_crops: int, orientation: int = 1) -> DrawnTower:
    """The tower after the core has shown it a picture."""
    tower, engine = DrawnTower(keeps=True), SeeingChain(VOCAB, max_context=3000, max_chunk=3000)
    with core_session(folder, engine, tower=tower, num_crops=num_crops) as session:
        session.answer({"messages": [says(session.picture(picture, orientation))], "max_tokens": 1})
    return tower


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    engine = SeeingChain(VOCAB, max_context=3000, max_chunk=3000)
    return write_seeing_bundle(tmp_path_factory.mktemp("seeing") / "bundle", engine)


def check_bits(folder, picture: np.ndarray, num_crops: int, orientation: int = 1, upright: np.ndarray | None = None) -> None:
    tower = looked_at(folder, picture, num_crops, orientation)
    plan, expected = views(open_picture(picture) if upright is None else upright, num_crops)
    wanted = list(expected)
    assert len(tower.views) == len(wanted)
    for one, other in zip(tower.views, wanted, strict=True):
        assert one.tobytes() == other.tobytes()
    features = np.stack([DrawnTower().encode(view) for view in wanted])
    assert np.concatenate(tower.merged).tobytes() == merge(features, plan.grid, *tower.separators).tobytes()


@settings(max_examples=200, deadline=None)
@given(some.integers(1, 700), some.integers(1, 700), some.integers(1, 5), some.integers(0, 99), some.sampled_from([3, 4]))
@example(280, 250, 16, 0, 3)  # 1344 × 1199, where exact arithmetic says 1200
@example(1, 1, 4, 0, 3)
@example(1, 336, 1, 0, 3)
@example(1600, 10, 16, 0, 3)
@example(10, 1600, 16, 1, 3)
@example(1170, 2532, 16, 2, 3)
@example(4000, 3, 4, 3, 3)
@example(672, 504, 4, 4, 4)  # nothing to resize
def test_views_and_rows_have_pythons_bits(folder, width, height, num_crops, seed, channels):
    picture = drawn(seed, width, height, channels)
    if max(width, height) > 336 * num_crops * min(width, height):
        with pytest.raises(CoreError, match="too narrow"):
            looked_at(folder, picture, num_crops)
        return
    check_bits(folder, picture, num_crops)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_exifs(folder, orientation, tmp_path):
    from PIL import Image

    picture, exif = drawn(orientation, 50, 33), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    check_bits(folder, picture, 4, orientation, open_picture(tmp_path / "turned.png"))


def test_rows_may_have_gaps(folder):
    check_bits(folder, drawn(3, 90, 40)[:, 5:77], 4, upright=drawn(3, 90, 40)[:, 5:77])


class PythonSeer(PythonPlayer):
    def __init__(self, folder, engine) -> None:
        self.notes: list[str] = []
        self.session = Session(open_bundle(folder), engine, tower=DrawnTower(), on_event=self.notes.append)

    def answer(self, request: dict[str, Any], cancel_after: int | None) -> Any:
        return super().answer(shown(request, PICTURES.__getitem__), cancel_after)


class CoreSeer:
    def __init__(self, session) -> None:
        self.session = session

    def answer(self, request: dict[str, Any], cancel_after: int | None) -> Any:
        return self.session.answer(shown(request, lambda name: self.session.picture(PICTURES[name])), cancel_after)

    def reset(self) -> None:
        self.session.reset()


def compare(numbers: range, folder) -> dict[str, int]:
    """How often each thing happened. Asserts that both sessions said and computed the same."""
    seen: dict[str, int] = {}
    for number in numbers:
        about = seeing_scenario(number)
        first, second = (SeeingChain(VOCAB, **about["engine"]) for _ in range(2))
        bundle = write_seeing_bundle(folder / str(number), first)
        expected = list(play(about, PythonSeer(bundle, first), first, InputError))
        with core_session(bundle, second, tower=DrawnTower()) as session:
            found = list(play(about, CoreSeer(session), second, CoreError))
        for step, (one, other) in enumerate(zip(expected, found, strict=True)):
            assert one == other, f"scenario {number}, answer {step}"
            what = [one["statistics"]["finish_reason"], *(note.split()[0] for note in one["notes"])] if "text" in one else []
            what += ["refused: " + " ".join(one["refused"].split()[2:4])] if "refused" in one else []
            what += ["reused"] if "text" in one and one["statistics"]["reused_tokens"] > 320 else []
            for name in what:
                seen[name] = seen.get(name, 0) + 1
    return seen


def test_sixty_conversations_are_pythons(tmp_path):
    seen = compare(range(60), tmp_path)
    for what in ("stop", "length", "cancelled", "looking", "LongRoPE:", "the", "context", "reused"):
        assert seen.get(what, 0) > 0, (what, seen)
    assert sum(count for what, count in seen.items() if what.startswith("refused")) > 5, seen


@pytest.mark.slow
def test_a_thousand_conversations_are_pythons(tmp_path):
    compare(range(60, 1060), tmp_path)


def test_a_picture_is_seen_once(folder):
    tower, engine = DrawnTower(), SeeingChain(VOCAB, max_context=3000, max_chunk=3000)
    with core_session(folder, engine, tower=tower) as session:
        number = session.picture(PICTURES["D"])
        assert tower.seen == 0 and session.picture(PICTURES["D"].copy()) == number
        first = session.answer({"messages": [says(number)], "max_tokens": 3})
        assert tower.seen == 3 and first.notes == ["looking at a picture (3 views)"]
        history = [says(number), {"role": "assistant", "content": first.text}, {"role": "user", "content": "and"}]
        again = session.answer({"messages": history, "max_tokens": 3})
        assert tower.seen == 3 and again.statistics["reused_tokens"] > 450 and not again.notes
        session.reset()
        assert session.answer({"messages": [says(number)], "max_tokens": 3}).text == first.text and tower.seen == 3
        for seed in range(8):  # eight others: the rows of the first are dropped
            session.answer({"messages": [says(session.picture(drawn(seed, 5, 5)))], "max_tokens": 1})
        seen = tower.seen
        assert session.answer({"messages": [says(number)], "max_tokens": 3}).text == first.text and tower.seen == seen + 3


def test_a_cancel_ends_within_a_view(folder):
    tower, engine = DrawnTower(), SeeingChain(VOCAB, max_context=3000, max_chunk=3000)
    with core_session(folder, engine, tower=tower) as session:
        request = {"messages": [says(session.picture(PICTURES["D"]))], "max_tokens": 3}
        session.start(request)
        while tower.seen < 2:
            assert session.next()[0] > 0
        session.cancel()
        assert session.next()[0] == 0 and tower.seen == 2
        assert session.answer(request).statistics["finish_reason"] == "length" and tower.seen == 3  # it goes on


def test_a_tower_that_fails_ends_the_answer_and_is_told(folder):
    tower, engine = DrawnTower(), SeeingChain(VOCAB, max_context=3000, max_chunk=3000)
    with core_session(folder, engine, tower=tower) as session:
        request = {"messages": [says(session.picture(PICTURES["D"]))], "max_tokens": 3}
        encode, project = tower.encode, tower.project
        tower.encode = tower.project = lambda given: (_ for _ in ()).throw(RuntimeError("the GPU went away"))
        with pytest.raises(CoreError, match=r"^the GPU went away$"):
            session.answer(request)
        tower.encode = encode
        with pytest.raises(CoreError, match=r"^the GPU went away$"):
            session.answer(request)
        tower.project = project
        assert session.answer(request).statistics["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("width", "height", "stride", "channels", "orientation", "line"),
    [
        (0, 5, 0, 3, 1, "the picture has 0 × 5 pixels; give one with at least one pixel each way"),
        (5, -1, 0, 3, 1, "the picture has 5 × -1 pixels"),
        (20000, 20000, 0, 3, 1, "the picture has 400 megapixels, at most 128 are read: make it smaller"),
        (1 << 62, 1 << 62, 0, 3, 1, "megapixels, at most 128 are read"),
        (5, 5, 14, 3, 1, "stride is 14; a row has 15 bytes"),
        (5, 5, -15, 3, 1, "stride is -15; a row has 15 bytes"),
        (5, 5, 0, 1, 1, "channels is 1; it is 3 (RGB) or 4 (RGBA)"),
        (5, 5, 0, 3, 0, "orientation is 0; EXIF's are 1 (as it lies) to 8"),
        (5, 5, 0, 3, 9, "orientation is 9"),
        (5000, 5, 0, 3, 1, "too narrow: with num_crops 2 the long side may be 672 times the short one; cut it into parts"),
    ],
)
def test_bad_pictures(folder, width, height, stride, channels, orientation, line):
    engine, error, pixels = SeeingChain(VOCAB, max_context=3000, max_chunk=3000), b" " * 300, bytes(5000 * 5 * 3)
    with core_session(folder, engine, tower=DrawnTower()) as session:
        given = session.handle, pixels, width, height, stride, channels, orientation, error, 300
        assert session.library.p3m_session_picture(*given) == -1
        assert line in error.decode() and b"\n" not in error
        assert session.library.p3m_session_picture(session.handle, None, 5, 5, 0, 3, 1, error, 300) == -1
        assert b"the pixels are null" in error
    assert core().p3m_session_picture(None, pixels, 5, 5, 0, 3, 1, error, 300) == -1 and b"the session is null" in error


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([{"type": "image", "image": 1}, {"type": "text", "text": "<|image_2|>"}], "message 0 says <|image_2|>, and the "),
        ([{"type": "image", "image": 1}, {"type": "text", "text": "<|image_0|><|image_1|>"}], "message 0 says <|image_0|>"),
        (
            [{"type": "image", "image": 1}] * 2 + [{"type": "text", "text": "<|image_1|>"}],
            "2 images and never says <|image_2|>",
        ),
        (
            [{"type": "image", "image": 7}],
            "a message has the image 7; this session was given 1: p3m_session_picture gives each",
        ),
        ([{"type": "image", "image": 0}], "a message has the image 0; this session was given 1"),
        (
            [{"type": "image", "image": "photo.jpg"}],
            "message 0 has the part {'type': 'image', 'image': 'photo.jpg'}; allowed are",
        ),
        ([{"type": "image"}], "message 0 has the part {'type': 'image'}"),
        ([{"type": "image", "image": 1}, {"type": "audio"}], "message 0 has the part {'type': 'audio'}"),
        ([{"type": "image", "image": 1}, 5], "message 0 has the part 5"),
        ([], "message 0 has no text as its content"),
        ([{"type": "image", "image": 1}] * 9, "4113 are of pictures, num_crops 1 would fit"),
        ([{"type": "image", "image": 1}] * 10, "4570 are of pictures, show fewer of them"),
    ],
)
def test_bad_contents(folder, content, line):
    engine = SeeingChain(VOCAB, max_context=3000, max_chunk=3000)
    with core_session(folder, engine, tower=DrawnTower()) as session:
        session.picture(PICTURES["D"])
        with pytest.raises(CoreError) as told:
            session.start({"messages": [{"role": "user", "content": content}]})
        assert line in str(told.value) and "\n" not in str(told.value)


def test_who_sees_none_says_so(folder, tmp_path):
    engine = SeeingChain(VOCAB, max_context=3000, max_chunk=3000)
    blind = write_bundle(tmp_path / "blind", engine)
    for where, who in ((folder, "the application's engine"), (blind, "this model")):
        with core_session(where, engine) as session:
            with pytest.raises(CoreError, match=f"a picture was given, and {who} reads text only"):
                session.picture(PICTURES["D"])
            with pytest.raises(CoreError, match=f"a picture was given, and {who} reads text only"):
                session.start({"messages": [says(1)]})
    with pytest.raises(CoreError, match="num_crops 5000: give 1 to 1024"):
        core_session(folder, engine, tower=DrawnTower(), num_crops=5000).__enter__()
    with pytest.raises(CoreError, match="sees no pictures: open it without a tower"):
        core_session(blind, engine, tower=DrawnTower()).__enter__()


@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}])
@pytest.mark.parametrize("frames", ["template", "sequence", "roberta", "none"])
def test_what_stands_before_each_piece_is_pythons(tmp_path, config, frames):
    first, second = (SeeingChain(VOCAB, max_context=500, max_chunk=500) for _ in range(2))
    folder = write_seeing_bundle(tmp_path / "bundle", first)
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    template = tokenizer["post_processor"]
    begin = template["special_tokens"][BEGIN]["ids"][0]
    tokenizer["post_processor"] = {
        "template": template,
        "sequence": {
            "type": "Sequence",
            "processors": [{"type": "ByteLevel"} | dict.fromkeys(BYTE_LEVEL_FLAGS, True), template],
        },
        "roberta": {"type": "RobertaProcessing", "sep": [BEGIN, begin], "cls": [BEGIN, begin]}
        | dict.fromkeys(ROBERTA_FLAGS, False),
        "none": None,
    }[frames]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<|user|>"}} | config), "utf-8")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["files"]["tokenizer.json"]["bytes"] = (folder / "tokenizer.json").stat().st_size
    manifest["files"]["tokenizer.json"]["sha256"] = sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    request = {"messages": [says("C")], "max_tokens": 1}
    PythonSeer(folder, first).answer(dict(request), None)
    with core_session(folder, second, tower=DrawnTower()) as session:
        CoreSeer(session).answer(request, None)
    assert first.calls == second.calls and len(first.calls) == 3


def test_a_tower_may_be_a_folder(tmp_path):
    """As Core ML's packages are."""
    engine = SeeingChain(VOCAB, max_context=3000, max_chunk=3000)
    folder = write_seeing_bundle(tmp_path / "bundle", engine)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "vision.mlpackage").mkdir()
    (folder / "vision.bin").rename(folder / "vision.mlpackage/weight.bin")
    manifest["files"]["vision.mlpackage/weight.bin"] = manifest["files"].pop("vision.bin")
    manifest["vision"]["program"] = "vision.mlpackage"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert open_bundle(folder).vision == manifest["vision"]
    with core_session(folder, engine, tower=DrawnTower()) as session:
        found = session.answer({"messages": [says(session.picture(PICTURES["C"]))], "max_tokens": 2})
    assert found.statistics["finish_reason"] == "length"
    for wrong in ("vision.mlpackag", "vision.mlpackage/weight"):
        manifest["vision"]["program"] = wrong
        (folder / "manifest.json").write_text(json.dumps(manifest))
        for opened in (lambda: core_session(folder, engine, tower=DrawnTower()).__enter__(), lambda: open_bundle(folder)):
            with pytest.raises((CoreError, InputError), match=f"vision names {wrong}, no file of the bundle"):
                opened()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"rows": None}, "vision.rows can't be null"),
        ({"width": "5"}, 'vision.width can\'t be "5"'),
        ({"width": 6}, "separators.bin has 40 values, 8 times 6 were expected; export the bundle again"),
        ({"width": 1 << 60}, "separators.bin has 40 values"),
        ({"hidden": 7}, "vision.hidden is 7, model.hidden 6; export the bundle again"),
        ({"program": "none.bin"}, "vision names none.bin, no file of the bundle"),
        ({"program": "../up"}, "vision.program can't be"),
    ],
)
def test_damaged_bundles(tmp_path, change, line):
    engine = SeeingChain(VOCAB)
    folder = write_seeing_bundle(tmp_path / "bundle", engine)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["vision"] |= change
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CoreError) as told:
        core_session(folder, engine, tower=DrawnTower()).__enter__()
    assert line in str(told.value) and "\n" not in str(told.value)
    del manifest["vision"]["bits"], manifest["vision"]["num_crops"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CoreError, match="vision"):
        core_session(folder, engine, tower=DrawnTower()).__enter__()
