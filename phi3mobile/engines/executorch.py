"""Engine over ExecuTorch's Python bindings: runs anywhere the wheel installs; needs torch in the process."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from phi3mobile.engines import LONG_REGIME, check_memory, check_operators, check_version

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle


class ExecutorchEngine:
    """A bundle's .pte. Raises InputError if this ExecuTorch can't run it: version or operators."""

    def __init__(self, bundle: Bundle) -> None:
        runtime = bundle.manifest["runtime"]
        check_version(runtime["version"], version("executorch"))
        check_memory(bundle.manifest["memory"], bundle.info.max_context, weights_on_heap=True)
        start = time.perf_counter()
        import torch
        from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  llama::* kernels
        from executorch.extension.pybindings import portable_lib
        from executorch.kernels import quantized  # noqa: F401  embedding kernels

        check_operators(runtime["operators"], portable_lib._get_operator_names())
        self.import_s = time.perf_counter() - start
        start = time.perf_counter()
        torch.set_num_threads(1)  # else custom_sdpa's matrix products fight ExecuTorch's own threads: prefill 1.4x slower
        self._torch, self.info = torch, bundle.info
        self._module = portable_lib._load_for_executorch(str(bundle.program))
        self.forward(np.zeros(min(2, self.info.max_chunk), dtype=np.int64), 0)  # packs weights, starts threads
        self.load_s = time.perf_counter() - start

    def forward(self, tokens: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        """See Engine.forward. The result is a copy: it stays valid after the next call."""
        marked = position + LONG_REGIME if long and self.info.original_context is not None else position
        inputs = (self._torch.from_numpy(tokens)[None], self._torch.tensor([marked]))
        return self._module.forward(inputs)[0][0].numpy()

    def reset(self) -> None:
        """Nothing to do: a new sequence overwrites the cache from position 0."""

    def close(self) -> None:
        self._module = None
