"""Engine over ExecuTorch's Python bindings: runs anywhere the wheel installs; needs torch in the process."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from phi3mobile.engines.base import BaseEngine, check_bundle, check_operators, marked
from phi3mobile.engines.bindings import load_bindings

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle


def open_executorch(bundle: Bundle, threads: int = 0) -> ExecutorchEngine:
    """The engine of a bundle; ExecuTorch takes the physical cores, whatever `threads` says. Raises InputError."""
    return ExecutorchEngine(bundle)


class ExecutorchEngine(BaseEngine):
    """A bundle's .pte. Raises InputError if this ExecuTorch can't run it: version or operators."""

    borrows = True

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle.info)
        check_bundle(bundle, version("executorch"), None)
        start = time.perf_counter()
        import torch

        runtime = load_bindings()
        check_operators(bundle.manifest["runtime"]["operators"], runtime._get_operator_names())
        self.import_s = time.perf_counter() - start
        start = time.perf_counter()
        torch.set_num_threads(1)  # else custom_sdpa's matrix products fight ExecuTorch's own threads: prefill 1.4x slower
        self._torch = torch
        self._module = runtime._load_for_executorch(str(bundle.program))
        self.forward(np.zeros(min(2, self.info.max_chunk), dtype=np.int64), 0)  # packs weights, starts threads
        self.load_s = time.perf_counter() - start

    def _embed(self, tokens: np.ndarray) -> np.ndarray:
        return self._embedded(tokens)[0].numpy().copy()

    def _embedded(self, tokens: np.ndarray) -> Any:
        """The runtime's memory: float32 [1, T, hidden]."""
        return self._module.run_method("token_embedding", (self._torch.from_numpy(tokens)[None],), clone_outputs=False)[0]

    def _run(self, tokens: np.ndarray, position: int, long: bool) -> np.ndarray:
        if self.info.hidden is not None:
            return self._decoded("text_decoder", self._embedded(tokens), position, long)
        return self._decoded("forward", self._torch.from_numpy(tokens)[None], position, long)

    def _run_embeddings(self, rows: np.ndarray, position: int, long: bool) -> np.ndarray:
        return self._decoded("text_decoder", self._torch.from_numpy(rows)[None], position, long)

    def _decoded(self, method: str, given: Any, position: int, long: bool) -> np.ndarray:
        inputs = (given, self._torch.tensor([marked(position, long)]))
        return self._module.run_method(method, inputs, clone_outputs=False)[0][0].numpy()

    def _release(self) -> None:
        self._module = None
