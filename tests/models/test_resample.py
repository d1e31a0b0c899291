"""Resizing in numpy has the bits of Pillow's, which the checkpoints were trained with."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from phi3mobile.models import resample
from phi3mobile.models.resample import has_pillow, resize

SIDES = st.integers(1, 90)


def picture_of(width, height, seed=0, kind="noise"):
    random = np.random.default_rng(seed)
    if kind == "extremes":
        return random.choice(np.array([0, 255], np.uint8), (height, width, 3))
    return random.integers(0, 256, (height, width, 3), np.uint8)


def by_pillow(picture, size):
    """Along rows, then along columns, whatever this Pillow would begin with."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    for part in ((size[0], image.height), size):
        image = image.resize(part, Image.Resampling.BILINEAR)
    return np.asarray(image)


def in_one(picture, size):
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


@pytest.fixture
def no_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert not has_pillow()


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 99), st.sampled_from(["noise", "extremes"]), st.booleans(), st.integers(1, 3))
def test_every_size_has_pillows_bits(width, height, to_width, to_height, seed, kind, turned, rows):
    picture = picture_of(width, height, seed, kind)
    if turned:
        picture = picture[::-1].transpose(1, 0, 2)[:, ::2]  # what strides EXIF and tall pictures lead to
    expected = by_pillow(picture, (to_width, to_height))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resample, "_BLOCK", rows * 3 * max(width, height, to_width))  # a few rows at a time
        for there in (True, False):
            patch.setattr(resample, "has_pillow", lambda there=there: there)
            assert np.array_equal(resize(picture, (to_width, to_height)), expected)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(1500, 1125, (1344, 1008)), (3001, 40, (5376, 71)), (640, 427, (1344, 896)), (97, 2203, (14, 336)), (5000, 3, (336, 1))],
)
def test_sizes_of_photos_have_pillows_bits(width, height, size, no_pillow, request):
    picture = picture_of(width, height)
    ours = resize(picture, size)
    request.getfixturevalue("monkeypatch").undo()
    assert np.array_equal(ours, by_pillow(picture, size))
    if width > height:
        assert np.array_equal(ours, in_one(picture, size))


def test_the_same_size_is_the_same_picture(no_pillow):
    picture = picture_of(31, 17)
    assert np.array_equal(resize(picture, (31, 17)), picture)


def test_white_stays_white_and_black_black(no_pillow):
    for value in (0, 255):
        assert (resize(np.full((61, 83, 3), value, np.uint8), (250, 12)) == value).all()
