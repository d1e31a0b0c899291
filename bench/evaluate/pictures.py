"""Task `pictures`: boards of coloured squares with lines on them, drawn here, and questions about one square each.

The answers lie at places: a crop in the wrong order, a separator at the wrong end of a row, a wrong global view or a grid
turned on its side loses them. Boards are whole crops of 336 pixels, so that nothing is resized. Drawn from a seed in numpy.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from phi3mobile.bench.evaluate.answers import Answers
from phi3mobile.bench.evaluate.model import Model
from phi3mobile.errors import InputError
from phi3mobile.pictures import picture_hash
from phi3mobile.session.sampling import GREEDY
from phi3mobile.session.session import Session

CELL = 336  # pixels of a square's side: a crop
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 170),
    "grey": (140, 140, 140),
}
LINES = ("none", "upright", "level")
SHAPES = ((2, 2), (2, 1))  # squares across, down
QUESTIONS = {
    "colour": "What colour is the {place} square? Answer with one word.",
    "lines": "Which lines are on the {place} square: upright, level or none? Answer with one word.",
}
BOARDS = 40
CROPS = 4
SEED = 336
_ANSWER_TOKENS = 16
_EVERY, _LINE = 14, range(5, 9)  # dark where a coordinate is one of these modulo 14, a patch of the encoder


@dataclass(frozen=True)
class Board:
    """What is on each square, [down, across]: indices into COLOURS and LINES."""

    colours: np.ndarray
    lines: np.ndarray

    def answer(self, kind: str, row: int, column: int) -> str:
        """The right word about a square; row and column count from 0."""
        return list(COLOURS)[self.colours[row, column]] if kind == "colour" else LINES[self.lines[row, column]]


@dataclass(frozen=True)
class Document:
    """One question about one board."""

    board: Board
    kind: str
    row: int
    column: int

    @property
    def question(self) -> str:
        return asked(self.kind, self.row, self.column, len(self.board.colours))

    @property
    def answer(self) -> str:
        return self.board.answer(self.kind, self.row, self.column)


def asked(kind: str, row: int, column: int, rows: int) -> str:
    """The question about a square of a board with so many rows."""
    side = ("left", "right")[column]
    return QUESTIONS[kind].format(place=side if rows == 1 else f"{('upper', 'lower')[row]} {side}")


def random_board(across: int, down: int, draw: random.Random) -> Board:
    squares = [(draw.randrange(len(COLOURS)), draw.randrange(len(LINES))) for _ in range(across * down)]
    colours, lines = np.array(squares).T.reshape(2, down, across)
    return Board(colours, lines)


def picture(board: Board) -> np.ndarray:
    """The board as uint8 [CELL * down, CELL * across, 3]."""
    plain = np.array(list(COLOURS.values()), np.uint8)[board.colours].repeat(CELL, 0).repeat(CELL, 1)
    kinds = board.lines.repeat(CELL, 0).repeat(CELL, 1)
    y, x = np.indices(kinds.shape)
    dark = (kinds == 1) & np.isin(x % _EVERY, _LINE) | (kinds == 2) & np.isin(y % _EVERY, _LINE)
    return np.where(dark[..., None], 0, plain).astype(np.uint8)


def documents() -> Iterator[Document]:
    """Every question about every board, shapes in turn."""
    draw = random.Random(SEED)
    for number in range(BOARDS):
        across, down = SHAPES[number % len(SHAPES)]
        board = random_board(across, down, draw)
        for kind in QUESTIONS:
            for square in range(across * down):
                yield Document(board, kind, *divmod(square, across))


def check_sees(model: Model) -> None:
    """InputError for a model that sees no pictures or has no chat template."""
    name = model.about["name"]
    if model.tower is None:
        raise InputError(f"{name} reads text only, and the task pictures asks about pictures: evaluate a model that sees")
    if model.chat is None:
        raise InputError(f"{name} has no chat template, in which the task pictures is asked: add one to its tokenizer")


def measure_pictures(
    model: Model, answers: Answers, *, limit: int | None = None, progress: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, Any]:
    """Share of questions whose answer's first word is right, of all and of each kind; asked in the model's chat format.

    Raises InputError as `check_sees`, and for a context that a picture does not fit.
    """
    check_sees(model)
    ask = _Asker(model, answers)
    every = list(documents())[:limit]
    right: dict[str, list[bool]] = {kind: [] for kind in QUESTIONS}
    for done, document in enumerate(every):
        progress("pictures", done, len(every))
        right[document.kind].append(first_word(ask(document)) == document.answer)
    ask.close()
    progress("pictures", len(every), len(every))
    score, count = sum(map(sum, right.values())) / len(every), len(every)
    metrics = {"acc": score} | {f"acc_{kind}": float(np.mean(found)) for kind, found in right.items() if found}
    stderr = (score * (1 - score) / max(1, count - 1)) ** 0.5
    return {"metric": "acc", "score": score, "stderr": stderr, "metrics": metrics, "shots": 0, "n": count}


class _Asker:
    """A model with its tower, loaded when the first question was not answered before."""

    def __init__(self, model: Model, answers: Answers) -> None:
        self._model, self._answers = model, answers
        self._session: Session | None = None

    def __call__(self, document: Document) -> str:
        """The model's greedy answer."""
        shown = picture(document.board)
        key = ["picture", picture_hash(shown), CROPS, document.question, _ANSWER_TOKENS]
        said = self._answers.get(key)
        if said is None:
            content = [{"type": "image", "image": shown}, {"type": "text", "text": document.question}]
            messages = [{"role": "user", "content": content}]
            said = "".join(self._opened().generate(messages, sampling=GREEDY, max_tokens=_ANSWER_TOKENS))
            self._answers.put(key, said)
        return said

    def close(self) -> None:
        """Give the tower's memory back; the engine is the model's."""
        if self._session is not None and self._session.pictures is not None:
            self._session.pictures.close()

    def _opened(self) -> Session:
        if self._session is None:
            assert self._model.tower is not None  # check_sees
            self._session = Session(self._model, self._model.engine, tower=self._model.tower(), num_crops=CROPS)
        return self._session


def first_word(text: str) -> str:
    """In small letters, without what surrounds it; empty if there is none."""
    found = re.search(r"[a-z]+", text.lower())
    return found[0] if found else ""
