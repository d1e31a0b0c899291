"""What the model's thread tells the window."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3mobile.assistant.problems import Problem
from phi3mobile.session.sampling import GREEDY, Sampling


@dataclass(frozen=True)
class Loading:
    stage: str
    fraction: float  # of the stages, 0 to 1


@dataclass(frozen=True)
class Loaded:
    path: Path
    name: str
    context: int
    load_s: float
    sampling: Sampling = GREEDY  # the model's own
    sees: bool = False  # pictures


@dataclass(frozen=True)
class LibraryOpened:
    path: Path | None  # None: none is open any more
    documents: tuple[str, ...] = ()  # that it was made from just now


@dataclass(frozen=True)
class Notice:
    text: str


@dataclass(frozen=True)
class Sources:
    passages: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Piece:
    text: str


@dataclass(frozen=True)
class Finished:
    numbers: dict[str, Any] | None  # Statistics as a dict


@dataclass(frozen=True)
class Failed:
    """`at`: load, library, documents or answer."""

    at: str
    problem: Problem


Event = Loading | Loaded | LibraryOpened | Notice | Sources | Piece | Finished | Failed
