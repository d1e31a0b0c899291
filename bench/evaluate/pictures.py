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

CELL = 168  # pixels of a square's side: 2 x 2 squares are a crop
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 170),
    "grey": (140, 140, 140),
}
LINES = ("none", "upright", "level")
SHAPES = ((4, 4), (4, 2), (2, 4), (6, 2))  # squares across, down: 2 x 2, 2 x 1, 1 x 2 and 3 x 1 crops
QUESTIONS = {
    "colour": "What colour is the square in row {row}, column {column}? Answer with one word.",
    "lines": "Which lines are on the square in row {row}, column {column}: upright, level or none? Answer with one word.",
}
BOARDS, ASKED = 20, 5  # asked: questions of each kind about a board
CROPS = 4
SEED = 336
_ANSWER_TOKENS = 16
_EVERY, _LINE = 6, 1  # a dark line of one pixel, where a coordinate is 1 modulo 6


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
        return QUESTIONS[self.kind].format(row=self.row + 1, column=self.column + 1)

    @property
    def answer(self) -> str:
        return self.board.answer(self.kind, self.row, self.column)


def random_board(across: int, down: int, draw: random.Random) -> Board:
    squares = [(draw.randrange(len(COLOURS)), draw.randrange(len(LINES))) for _ in range(across * down)]
    colours, lines = np.array(squares).T.reshape(2, down, across)
    return Board(colours, lines)


def picture(board: Board) -> np.ndarray:
    """The board as uint8 [CELL * down, CELL * across, 3]."""
    plain = np.array(list(COLOURS.values()), np.uint8)[board.colours].repeat(CELL, 0).repeat(CELL, 1)
    kinds = board.lines.repeat(CELL, 0).repeat(CELL, 1)
    y, x = np.indices(kinds.shape)
    dark = (kinds == 1) & (x % _EVERY == _LINE) | (kinds == 2) & (y % _EVERY == _LINE)
    return np.where(dark[..., None], 0, plain).astype(np.uint8)


def documents(boards: int = BOARDS, asked: int = ASKED, seed: int = SEED) -> Iterator[Document]:
    """`asked` questions of each kind about each of `boards`, shapes in turn."""
    draw = random.Random(seed)
    for number in range(boards):
        across, down = SHAPES[number % len(SHAPES)]
        board = random_board(across, down, draw)
        for kind in QUESTIONS:
            for square in draw.sample(range(across * down), asked):
                yield Document(board, kind, *divmod(square, across))


def measure_pictures(
    model: Model,
    answers: Answers,
    *,
    limit: int | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Share of questions whose answer's first word is right, of all and of each kind; asked in the model's chat format.

    Raises InputError for a model that sees no pictures or has no chat template.
    """
    name = model.about["name"]
    if model.tower is None:
        raise InputError(f"{name} reads text only, and the task pictures asks about pictures: evaluate a model that sees")
    if model.chat is None:
        raise InputError(f"{name} has no chat template, in which the task pictures is asked: add one to its tokenizer")
    asked = list(documents())[:limit]
    right: dict[str, list[bool]] = {kind: [] for kind in QUESTIONS}
    session: Session | None = None
    for done, document in enumerate(asked):
        progress("pictures", done, len(asked))
        shown = picture(document.board)
        key = ["picture", picture_hash(shown), CROPS, document.question, _ANSWER_TOKENS]
        said = answers.get(key)
        if said is None:
            session = session or Session(model, model.engine, tower=model.tower(), num_crops=CROPS)
            content = [{"type": "image", "image": shown}, {"type": "text", "text": document.question}]
            messages = [{"role": "user", "content": content}]
            said = "".join(session.generate(messages, sampling=GREEDY, max_tokens=_ANSWER_TOKENS))
            answers.put(key, said)
        right[document.kind].append(first_word(said) == document.answer)
    if session is not None and session.pictures is not None:
        session.pictures.close()
    progress("pictures", len(asked), len(asked))
    every = sum(right.values(), [])
    score = float(np.mean(every))
    metrics = {f"acc_{kind}": float(np.mean(found)) for kind, found in right.items() if found}
    stderr = (score * (1 - score) / max(1, len(every) - 1)) ** 0.5
    return {"metric": "acc", "score": score, "stderr": stderr, "metrics": {"acc": score} | metrics, "shots": 0, "n": len(every)}


def first_word(text: str) -> str:
    """In small letters, without what surrounds it; empty if there is none."""
    found = re.search(r"[a-z]+", text.lower())
    return found[0] if found else ""
