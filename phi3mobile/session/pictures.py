"""A session's pictures: each distinct one gets negative ids, one a row, by which a KV cache knows it again.

Token lists hold these ids where a picture stands; their embeddings are computed when a forward first needs them, and kept.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from phi3mobile.engines.tower import Tower
from phi3mobile.errors import InputError
from phi3mobile.files import whole_file
from phi3mobile.models.vision import CropPlan, cut, fit, merge, plan_crops
from phi3mobile.pictures import open_picture, picture_hash

SPAN = 1 << 20  # ids of one picture: more than any has rows
_KEPT = 8  # pictures whose rows stay in memory: 31 MB each at most with 16 crops


@dataclass(frozen=True)
class _Picture:
    name: str  # hash of its pixels
    plan: CropPlan
    pixels: np.ndarray  # uint8 [H, W, 3], resized and padded


class Pictures:
    """The pictures that a session was shown. `num_crops`: crops of each at most, else the model's own number.

    folder: where rows are kept for other sessions too; None: in memory alone. InputError when it can't be written.
    """

    def __init__(
        self,
        tower: Tower,
        num_crops: int | None = None,
        folder: Path | None = None,
        on_event: Callable[[str], None] = lambda event: None,
    ) -> None:
        self.tower, self.num_crops = tower, tower.num_crops if num_crops is None else num_crops
        plan_crops(1, 1, self.num_crops)  # raises for a number that can't be
        self.encode_s, self.views = 0.0, 0  # spent on views so far, and their number
        self._folder, self._on_event = folder, on_event
        self._numbers: dict[str, int] = {}
        self._opened: dict[str, int] = {}  # files and texts that need no decoding a second time
        self._pictures: list[_Picture] = []
        self._rows: OrderedDict[int, np.ndarray] = OrderedDict()

    def ids(self, image: Any) -> list[int]:
        """One id for each row of a picture (path, bytes, PIL image, array); the same pixels have the same. InputError."""
        source = _source(image)
        number = self._opened.get(source) if source else None
        if number is None:
            number = self._number(open_picture(image))
        if source:
            self._opened[source] = number
        return [-1 - SPAN * number - row for row in range(self._pictures[number].plan.tokens)]

    def embeddings(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [T, hidden] of ids that `ids` gave."""
        numbers, rows = np.divmod(-1 - np.asarray(ids, np.int64), SPAN)
        found = np.empty((len(rows), self.tower.hidden), np.float32)
        for number in np.unique(numbers):
            mine = numbers == number
            found[mine] = self._of(int(number))[rows[mine]]
        return found

    def smaller(self, ids: Sequence[int], room: int) -> int | None:
        """The most crops a picture may have so that a prompt with these ids loses enough tokens to fit `room`; None: none."""
        text = sum(token >= 0 for token in ids)
        # Resized pictures have the proportions of those that were given.
        shown = [self._pictures[-(1 + token) // SPAN] for token in ids if token < 0 and (-1 - token) % SPAN == 0]
        for num_crops in range(self.num_crops - 1, 0, -1):
            try:
                plans = [plan_crops(*picture.plan.resized, num_crops) for picture in shown]
            except InputError:
                return None
            if text + sum(plan.tokens for plan in plans) <= room:
                return num_crops
        return None

    def close(self) -> None:
        """Give the tower's memory back."""
        self.tower.close()

    def _number(self, opened: np.ndarray) -> int:
        """Of these pixels, which are fitted when they are first seen."""
        name = picture_hash(opened)
        if name not in self._numbers:
            plan = plan_crops(opened.shape[1], opened.shape[0], self.num_crops)
            self._pictures.append(_Picture(name, plan, fit(opened, plan)))
            self._numbers[name] = len(self._pictures) - 1
        return self._numbers[name]

    def _of(self, number: int) -> np.ndarray:
        """All rows of picture `number`: float32 [tokens, hidden]."""
        if number not in self._rows:
            self._rows[number] = self._read(number) if self._folder else self._encoded(number)
            while len(self._rows) > _KEPT:
                self._rows.popitem(last=False)
        self._rows.move_to_end(number)
        return self._rows[number]

    def _read(self, number: int) -> np.ndarray:
        assert self._folder is not None
        path = self._folder / f"{self.tower.name}-{self._pictures[number].name}-{self.num_crops}.npy"
        wanted = (self._pictures[number].plan.tokens, self.tower.hidden)
        rows = _array(path)
        if rows is not None and rows.shape == wanted and rows.dtype == np.float32:
            return rows
        rows = self._encoded(number)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as partial, partial.open("wb") as file:
                np.save(file, rows)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self._folder} can't be written ({reason}): pictures' features are to be kept there") from None
        return rows

    def _encoded(self, number: int) -> np.ndarray:
        picture, began = self._pictures[number], perf_counter()
        self._on_event(f"looking at a picture ({picture.plan.views} views)")
        features = np.stack([self.tower.encode(view) for view in cut(picture.pixels, picture.plan.grid)])
        rows = self.tower.project(merge(features, picture.plan.grid, *self.tower.separators))
        self.encode_s, self.views = self.encode_s + perf_counter() - began, self.views + picture.plan.views
        return rows


def _array(path: Path) -> np.ndarray | None:
    """What np.save wrote to a file; None: no file, or a damaged one."""
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception:  # numpy raises whatever damaged bytes make it
        return None


def _source(image: Any) -> str:
    """What tells a file, its bytes or a data: URI from all others without decoding it; "": nothing does."""
    if isinstance(image, str) and image.startswith("data:"):
        return hashlib.sha256(image.encode(errors="surrogatepass")).hexdigest()
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    if not isinstance(image, str | Path):
        return ""
    try:
        status = Path(image).expanduser().stat()
    except (OSError, ValueError, RuntimeError):
        return ""  # open_picture says what is wrong
    return f"{Path(image).expanduser().absolute()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
