"""ExecuTorch's Python bindings and its kernels, without its exporter, which `portable_lib` and `custom_ops` import: seconds."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from phi3mobile.errors import InputError

_KERNELS = (
    ("executorch.extension.llm.custom_ops", "*custom_ops_aot_lib.*"),  # llama::*
    ("executorch.kernels.quantized", "*quantized_ops_aot_lib.*"),  # embeddings
)


@cache
def load_bindings() -> ModuleType:
    """`executorch.extension.pybindings.portable_lib`, with the kernels of the wheel registered. Raises InputError."""
    import torch  # its libraries are what the extension is linked to
    from executorch.extension.pybindings import _C

    for package, pattern in _KERNELS:
        spec = find_spec(package)
        folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
        found = [path for folder in folders for path in folder.glob(pattern)]
        if len(found) != 1:
            raise InputError(f"{package} has {len(found)} libraries {pattern}, 1 was expected; install executorch again")
        torch.ops.load_library(str(found[0]))
    return _C
