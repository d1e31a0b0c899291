"""Our operator `phi3mobile::sparse_moe`: definition and fake implementation. Kernel: phi3mobile/core/kernels/experts.cpp.

x float32 [T, D], the router's weight float32 [E, D] -> float32 [T, D]: every token through `used` of the layer's E experts,
chosen by models/routing.py (jitter < 0: softmax_topk, else sparsemixer), whose results are added in the experts' order. Experts
are no tensors of the program: they lie in the bundle's file of experts, which the runner opens (p3m_open_experts). The
reference is models/experts.Mixture with quantized linears, as export.packed.load_packed makes it.
"""

from __future__ import annotations

import torch

_library = torch.library.Library("phi3mobile", "FRAGMENT")
_SCHEMA = "Tensor x, Tensor router, int layer, int used, float jitter"


def _shape(x, router, *_rest, **_kwargs) -> torch.Tensor:
    return torch.empty_like(x)


def _refuse(*_args, **_kwargs):
    raise RuntimeError("phi3mobile::sparse_moe runs in the native runner only; in torch run models.experts.Mixture")


_library.define(f"sparse_moe({_SCHEMA}) -> Tensor")
_library.define(f"sparse_moe.out({_SCHEMA}, *, Tensor(z!) out) -> Tensor(z!)")
_library.impl("sparse_moe", _refuse, "CPU")
_library.impl("sparse_moe.out", _refuse, "CPU")
torch.library.register_fake("phi3mobile::sparse_moe", _shape, lib=_library)
