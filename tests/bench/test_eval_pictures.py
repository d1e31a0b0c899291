"""The task `pictures`: a tiny trained model reads boards through the whole line, and every wrong way of showing them costs it.

tests/bench/reader was written by training/experiments/picture_reader.py: it sees colours in crops, lines in the global view.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from phi3mobile.bench.evaluate import pictures
from phi3mobile.bench.evaluate.answers import Answers
from phi3mobile.bench.evaluate.model import open_model
from phi3mobile.bench.evaluate.pictures import COLOURS, LINES, SHAPES, documents, first_word, measure_pictures, picture
from phi3mobile.bench.evaluate.results import read_results
from phi3mobile.cli import main
from phi3mobile.engines.eager import EagerTower
from phi3mobile.errors import InputError
from phi3mobile.models.vision import cut, merge, plan_crops
from phi3mobile.session import pictures as shown

READER = Path(__file__).with_name("reader")
ASKED = 6 * 8 + 6 * 4  # questions about twelve boards

# What is drawn and asked


def test_boards_and_questions_are_the_same_every_time():
    first, again = list(documents()), list(documents())
    assert [(one.question, one.answer) for one in first] == [(one.question, one.answer) for one in again]
    assert len(first) == 240 and {one.answer for one in first} == {*COLOURS, *LINES}
    assert first[1].question == "What colour is the upper right square? Answer with one word."


@pytest.mark.parametrize("across, down", SHAPES)
def test_a_board_is_whole_crops_that_nothing_resizes(across, down):
    board = next(one.board for one in documents() if one.board.colours.shape == (down, across))
    drawn = picture(board)
    plan = plan_crops(drawn.shape[1], drawn.shape[0], pictures.CROPS)
    assert plan.resized == plan.padded == (drawn.shape[1], drawn.shape[0]) and plan.grid == (across, down)
    for row, column in np.ndindex(down, across):
        square = drawn[row * pictures.CELL :, column * pictures.CELL :][: pictures.CELL, : pictures.CELL]
        assert tuple(square[0, 0]) == list(COLOURS.values())[board.colours[row, column]]
        kind = LINES[board.lines[row, column]]
        assert (square[0] == 0).all(-1).any() == (kind == "upright") and (square[:, 0] == 0).all(-1).any() == (kind == "level")


@pytest.mark.parametrize("said, word", [("Red.", "red"), (" **blue**, I think", "blue"), ("", ""), ("42", "")])
def test_the_first_word_counts(said, word):
    assert first_word(said) == word


# What the trained model reads


@pytest.fixture(scope="module")
def seen() -> dict[bytes, np.ndarray]:
    """Features by view, for all tests here: mutations change what is made of them."""
    return {}


@pytest.fixture
def score(tmp_path, monkeypatch, seen):
    """The accuracies of the reader now."""
    encode = EagerTower.encode

    def remembered(tower: EagerTower, view: np.ndarray) -> np.ndarray:
        key = view.tobytes()
        if key not in seen:
            seen[key] = encode(tower, view)
        return seen[key]

    def get(limit: int = ASKED) -> dict[str, float]:
        monkeypatch.setattr(EagerTower, "encode", remembered)
        model = open_model(READER)
        answers = Answers(tmp_path / "answers.sqlite", model.identity)
        return measure_pictures(model, answers, limit=limit)["metrics"]

    return get


def test_the_reader_reads(score):
    found = score()
    assert found["acc"] >= 0.95 and set(found) == {"acc", "acc_colour", "acc_lines"}


def by_columns(picture, grid):
    """Crops column by column."""
    whole, *crops = cut(picture, grid)
    across, down = grid
    return [whole, *(crops[row * across + column] for column in range(across) for row in range(down))]


def whole_last(picture, grid):
    whole, *crops = cut(picture, grid)
    return [*crops, whole]


def whole_on_its_side(picture, grid):
    whole, *crops = cut(picture, grid)
    return [whole.transpose(0, 2, 1), *crops]


def without_whole(picture, grid):
    whole, *crops = cut(picture, grid)
    return [whole * 0, *crops]


def not_normalised(picture, grid):
    return [view * 0.27 + 0.45 for view in cut(picture, grid)]


def transposed(features, grid, sub, whole):
    """Crops across taken for crops down; what is too long is cut, what lacks is nothing."""
    rows, turned = merge(features, grid, sub, whole), merge(features, grid[::-1], sub, whole)[: 12 * 12 * 4 + 400]
    rows[: len(turned)] = turned[: len(rows)]
    rows[len(turned) :] = 0
    return rows


def crop_by_crop(features, grid, sub, whole):
    """Each crop's tokens on their own, one crop after the other, as a known implementation has them."""
    across, down = grid
    rows, tokens = merge(features, grid, sub, whole), 12 * 12 * across * down
    own = merge(features, (1, across * down), sub, whole)
    right = [row for row in range(12 * down * (12 * across + 1)) if row % (12 * across + 1) < 12 * across]
    rows[right] = own[: 13 * 12 * across * down].reshape(-1, 13, own.shape[1])[:, :12].reshape(tokens, -1)
    return rows


def empty_separators(features, grid, sub, whole):
    return merge(features, grid, sub * 0, whole * 0)


def no_separators(features, grid, sub, whole):
    """Rows follow each other, and what lacks at the end is nothing."""
    rows = merge(features, grid, sub, whole)
    line = 12 * grid[0] + 1
    crops = rows[: 12 * grid[1] * line].reshape(-1, line, rows.shape[1])[:, :-1].reshape(-1, rows.shape[1])
    tail = rows[12 * grid[1] * line + 1 :].reshape(12, 13, -1)[:, :-1].reshape(144, -1)
    lacking = len(rows) - len(crops) - len(tail)
    return np.concatenate([crops, tail, np.zeros((lacking, rows.shape[1]), np.float32)])


def whole_first(features, grid, sub, whole):
    """The global view, the separator between both, the crops."""
    rows = merge(features, grid, sub, whole)
    count = 12 * grid[1] * (12 * grid[0] + 1)
    return np.concatenate([rows[count + 1 :], rows[count : count + 1], rows[:count]])


# What is wrong, which questions it costs, and what is left of them at most. A separator at the other end of its row shifts a
# picture by one token and costs nothing here: parity with the reference (tests/models) knows that.
SHOWN = [
    (by_columns, "acc_colour", 0.75),
    (whole_last, "acc", 0.5),
    (whole_on_its_side, "acc_lines", 0.65),
    (without_whole, "acc_lines", 0.5),
    (not_normalised, "acc", 0.4),
]
MERGED = [
    (transposed, "acc_colour", 0.87),
    (crop_by_crop, "acc_colour", 0.6),
    (no_separators, "acc", 0.7),
    (empty_separators, "acc_lines", 0.8),
    (whole_first, "acc", 0.7),
]


@pytest.mark.parametrize("wrong, metric, most", SHOWN, ids=[wrong.__name__ for wrong, *_ in SHOWN])
def test_views_of_another_order_or_look_cost_answers(wrong, metric, most, score, monkeypatch):
    monkeypatch.setattr(shown, "cut", wrong)
    assert score()[metric] <= most


@pytest.mark.parametrize("wrong, metric, most", MERGED, ids=[wrong.__name__ for wrong, *_ in MERGED])
def test_patches_in_another_order_cost_answers(wrong, metric, most, score, monkeypatch):
    monkeypatch.setattr(shown, "merge", wrong)
    assert score()[metric] <= most


# The verb


def test_eval_takes_the_task(tmp_path, capsys):
    answers, out = tmp_path / "answers.sqlite", tmp_path / "results.jsonl"
    arguments = ["eval", str(READER), "--tasks", "pictures", "--limit", "12", "--answers", str(answers), "--out", str(out)]
    for again in (False, True):
        assert main(arguments) == 0
        (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
        assert (found["task"], found["metric"], found["n"], found["shots"]) == ("pictures", "acc", 12, 0)
        assert found["score"] >= 0.9
        assert read_results(out)[-1]["answered_before"] == again


def test_a_model_that_reads_text_only_is_refused_by_name(checkpoint_of, tmp_path):
    folder = checkpoint_of("tiny-gqa")
    answers = Answers(tmp_path / "answers.sqlite", "")
    with pytest.raises(InputError, match=f"{folder.name} reads text only, and the task pictures asks about pictures: evaluate"):
        measure_pictures(open_model(folder), answers)


def test_a_model_without_a_chat_template_is_refused_by_name(checkpoint_of, tmp_path):
    model = open_model(checkpoint_of("vision-tiny"))
    model.chat = None
    with pytest.raises(InputError, match="has no chat template, in which the task pictures is asked"):
        measure_pictures(model, Answers(tmp_path / "answers.sqlite", ""))
