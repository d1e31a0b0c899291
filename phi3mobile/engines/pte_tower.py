"""Towers of .pte bundles: vision.pte by our runner or by ExecuTorch's Python bindings.

The program is loaded when the first picture comes, so that a conversation without pictures neither waits nor pays for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

import numpy as np

from phi3mobile.bundle import VISION_FILES
from phi3mobile.engines import packed_cache
from phi3mobile.errors import InputError
from phi3mobile.models.vision import PATCHES, SIDE

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle


class Program(Protocol):
    """A loaded vision.pte."""

    def run(self, method: str, given: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The result of a method, float32 of `shape`, the caller's own."""
        ...

    def close(self) -> None: ...


class PteTower:
    """See engines.tower.Tower. Raises InputError for separators of another size than the manifest's."""

    def __init__(self, bundle: Bundle, load: Callable[[], Program], runtime: str) -> None:
        about = bundle.vision
        assert about is not None
        files = [bundle.manifest["files"][about[part]]["sha256"] for part in VISION_FILES]
        self.name = hashlib.sha256(" ".join([*files, runtime]).encode()).hexdigest()[:32]
        self.num_crops, self.hidden = about["num_crops"], about["hidden"]
        self._width, self._rows, self._load = about["width"], about["rows"], load
        path = bundle.folder / about["separators"]
        values = np.fromfile(path, "<f4")
        if len(values) != 8 * self._width:
            raise InputError(f"{path} has {len(values)} values, {8 * self._width} were expected; export the bundle again")
        self.separators = (values[: 4 * self._width], values[4 * self._width :])
        self._program: Program | None = None
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


class _Bindings:
    """By ExecuTorch's Python bindings."""

    def __init__(self, bundle: Bundle) -> None:
        import torch

        from phi3mobile.engines.bindings import load_bindings

        assert bundle.vision is not None
        self._torch, self._module = torch, load_bindings()._load_for_executorch(str(bundle.folder / bundle.vision["program"]))

    def run(self, method: str, given: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return self._module.run_method(method, (self._torch.from_numpy(given),))[0].numpy().reshape(shape)

    def close(self) -> None:
        self._module = None


class _Native:
    """By our runner, its packed weights in the user's cache as the decoder's are."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        from phi3mobile.engines.native import NativeProgram, runtime_version

        assert bundle.vision is not None
        path = bundle.folder / bundle.vision["program"]
        file = packed_cache.file_for(bundle.manifest["files"][bundle.vision["program"]]["sha256"], runtime_version())
        self._program = NativeProgram(path, file, threads)

    def run(self, method: str, given: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return self._program.compute(method, given, shape)

    def close(self) -> None:
        self._program.close()


def open_executorch_tower(bundle: Bundle, threads: int = 0) -> PteTower:
    """By the bindings; threads are ExecuTorch's own."""
    return PteTower(bundle, lambda: _Bindings(bundle), version("executorch"))


def open_native_tower(bundle: Bundle, threads: int = 0) -> PteTower:
    """By our runner. threads: see NativeEngine; 0 where a model is open: as many as that has."""
    from phi3mobile.engines.native import runtime_version

    return PteTower(bundle, lambda: _Native(bundle, threads), runtime_version())
