"""Towers of .pte bundles: vision.pte by our runner or by ExecuTorch's Python bindings."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from phi3mobile.engines import packed_cache
from phi3mobile.engines.tower import BundleTower

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle


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


def open_executorch_tower(bundle: Bundle, threads: int = 0) -> BundleTower:
    """By the bindings; threads are ExecuTorch's own."""
    return BundleTower(bundle, lambda: _Bindings(bundle), version("executorch"))


def open_native_tower(bundle: Bundle, threads: int = 0) -> BundleTower:
    """By our runner. threads: see NativeEngine; 0 where a model is open: as many as that has."""
    from phi3mobile.engines.native import runtime_version

    return BundleTower(bundle, lambda: _Native(bundle, threads), runtime_version())
