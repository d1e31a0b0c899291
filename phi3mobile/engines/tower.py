"""What a session needs of an image encoder: views in, rows of the decoder's embeddings out; and what all bundles' do alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from phi3mobile.errors import InputError
from phi3mobile.manifest import VISION_FILES, files_of
from phi3mobile.models.vision import PATCHES, SIDE

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle


class Tower(Protocol):
    """An image encoder with its projector, loaded."""

    name: str  # the same for the same weights and arithmetic: names features that are kept
    num_crops: int  # of a picture, where nobody asks for another number
    hidden: int  # of the decoder
    separators: tuple[np.ndarray, np.ndarray]  # float32 [4 C] each: after a row of tokens, before the global view

    def encode(self, view: np.ndarray) -> np.ndarray:
        """Patches float32 [576, C] of one view float32 [3, 336, 336]."""
        ...

    def project(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings float32 [T, hidden] of merged rows float32 [T, 4 C]."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class TowerProgram(Protocol):
    """What a bundle has for its tower, loaded."""

    def run(self, method: str, given: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The result of a method, float32 of `shape`, the caller's own."""
        ...

    def close(self) -> None: ...


class BundleTower:
    """The Tower of a bundle. Raises InputError for separators of another size than the manifest's.

    Its program is loaded when the first picture comes, so that a conversation without pictures neither waits nor pays for it.
    """

    def __init__(self, bundle: Bundle, load: Callable[[], TowerProgram], runtime: str) -> None:
        about = bundle.vision
        assert about is not None
        files = [one["sha256"] for part in VISION_FILES for one in files_of(bundle.manifest, about[part]).values()]
        self.name = hashlib.sha256(" ".join([*files, runtime]).encode()).hexdigest()[:32]
        self.num_crops, self.hidden = about["num_crops"], about["hidden"]
        self._width, self._rows, self._load = about["width"], about["rows"], load
        path = bundle.folder / about["separators"]
        values = np.fromfile(path, "<f4")
        if len(values) != 8 * self._width:
            raise InputError(f"{path} has {len(values)} values, {8 * self._width} were expected; export the bundle again")
        self.separators = (values[: 4 * self._width], values[4 * self._width :])
        self._program: TowerProgram | None = None
        self._closed = False

    def encode(self, view: np.ndarray) -> np.ndarray:
        """Patches float32 [576, C] of one view float32 [3, 336, 336]. InputError: another shape, or the program won't load."""
        if view.shape != (3, SIDE, SIDE):
            raise InputError(f"a view of shape {list(view.shape)} was given: it is [3, {SIDE}, {SIDE}]")
        return self._run("encode", view[None], (PATCHES**2, self._width))

    def project(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings float32 [T, hidden] of merged rows float32 [T, 4 C], any number of them. InputError as encode's."""
        if rows.ndim != 2 or rows.shape[1] != 4 * self._width:
            raise InputError(f"rows of shape {list(rows.shape)} were given: they are [T, {4 * self._width}]")
        parts = [rows[at : at + self._rows] for at in range(0, len(rows), self._rows)]
        found = [self._run("project", part, (len(part), self.hidden)) for part in parts]
        return np.concatenate(found) if found else np.empty((0, self.hidden), np.float32)

    def close(self) -> None:
        """Give the memory back."""
        self._closed = True
        if self._program is not None:
            self._program.close()
            self._program = None

    def _run(self, method: str, given: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if self._closed:
            raise InputError("the tower is closed: open the model again")
        if self._program is None:
            self._program = self._load()
        return self._program.run(method, np.ascontiguousarray(given, np.float32), shape)
