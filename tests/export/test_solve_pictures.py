"""Decoders solved on pictures too: their rows by both towers, where they lie, and what that is worth."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from exported import psnr
from photos import drawn

from phi3mobile.cli import main
from phi3mobile.engines.eager import EagerEngine
from phi3mobile.errors import InputError
from phi3mobile.export.packed import PackedModel, load_packed
from phi3mobile.export.packed_vision import PackedVision, load_packed_vision
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.solve.calibration import calibration_of
from phi3mobile.export.solve.folder import Solved
from phi3mobile.export.solve.pictures import MOST, beside, picture_rows
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.loading import load_model, load_vision
from phi3mobile.models.vision import merge, views
from phi3mobile.text.vocabularies import load_tokenizer

Image = pytest.importorskip("PIL.Image", reason="pip install pillow")


@pytest.fixture(scope="module")
def checkpoint(checkpoint_of):
    return open_checkpoint(checkpoint_of("vision-tiny"))


@pytest.fixture
def own(tmp_path, text):
    """A folder with a text and two pictures."""
    folder = tmp_path / "own"
    folder.mkdir()
    shutil.copy(text, folder / "words.txt")
    for number in range(2):
        Image.fromarray(drawn(number, 60, 40)).save(folder / f"{number}.png")
    return folder


def rows_by(vision, picture: np.ndarray) -> np.ndarray:
    plan, cut = views(picture, 1)
    features = vision.encode(torch.from_numpy(np.stack(list(cut)))).numpy()
    separators = [separator.numpy() for separator in vision.separators]
    return vision.project(torch.from_numpy(merge(features, plan.grid, *separators))).numpy()


def test_rows_are_those_of_both_towers(checkpoint, own):
    packed = PackedVision(checkpoint)
    exact, values = picture_rows(checkpoint, packed, sorted(own.glob("*.png")))
    assert exact.shape == values.shape == (2, 313, 64) and not torch.equal(exact, values)
    floats, integers = load_vision(checkpoint.folder), load_packed_vision(packed)
    for number in range(2):
        np.testing.assert_allclose(exact[number], rows_by(floats, drawn(number, 60, 40)), rtol=1e-4, atol=1e-4)
        assert (
            psnr(rows_by(integers, drawn(number, 60, 40)), values[number].numpy()) > 60
        )  # of a batch, a value may round otherwise
    assert picture_rows(checkpoint, packed, ()) == (None, None)
    assert len(picture_rows(checkpoint, packed, [own / "0.png"] * (MOST + 1))[0]) == MOST


def test_pictures_come_first_in_windows_of_their_own():
    text, rows = torch.randn(2, 20, 4), torch.randn(3, 7, 4)
    both = beside(text, rows)
    assert both.shape == (5, 20, 4) and torch.equal(both[:2], text) and torch.equal(both[2:, :7], rows)
    assert torch.equal(both[2:, 7:], text[[0, 1, 0], :13])
    assert beside(text, None) is text and torch.equal(beside(text[:, :5], rows)[2:], rows[:, :5])


def test_a_decoder_solved_on_pictures_reads_them_better(checkpoint, own, text, tmp_path, capsys):
    """On a picture that neither was solved on, against the float decoder on the same rows."""
    recipe, rows = find_recipe("android-cpu"), rows_by(load_vision(checkpoint.folder), drawn(9, 60, 40))
    expected = EagerEngine(load_model(checkpoint.folder, 320), 320).forward_embeddings(rows, 0)
    reached, cards = {}, {}
    for name, given in (("text", text), ("pictures", own)):
        command = ["quantize", str(checkpoint.folder), "-o", str(tmp_path / name), "--calibration", str(given)]
        assert main(command) == 0
        assert ("626 rows of pictures" in capsys.readouterr().out) == (name == "pictures")
        solved = Solved(tmp_path / name)
        cards[name] = solved.about["quality"]["calibration"]
        engine = EagerEngine(load_packed(PackedModel(solved, recipe), 320), 320)
        reached[name] = psnr(expected, engine.forward_embeddings(rows, 0))
    assert reached["pictures"] > reached["text"] + 1, reached
    assert cards["pictures"]["picture_rows"] == 626 and "picture_rows" not in cards["text"]
    assert cards["pictures"]["tokens"] == cards["text"]["tokens"] and json.dumps(cards)


def test_a_picture_that_is_too_narrow_is_told_before_anything_is_solved(checkpoint, own):
    Image.fromarray(drawn(3, 700, 2)).save(own / "narrow.png")
    with pytest.raises(InputError, match="a picture of 700 × 2 pixels is too narrow"):
        calibration_of(load_tokenizer(checkpoint.folder), checkpoint.config, own)
