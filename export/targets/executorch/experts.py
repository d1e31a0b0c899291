"""The experts of a mixture -> the bundle's file of experts, one at a time; and the operator that reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from phi3mobile.engines.expert_file import ExpertShape, padded
from phi3mobile.errors import InputError
from phi3mobile.export.packed import PackedModel
from phi3mobile.export.targets.executorch.tiled import tiles_of
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.quantized import Packed
from phi3mobile.models.routing import SPARSEMIXER
from phi3mobile.models.tensors import DOWN, GATE_UP, ROUTER
from phi3mobile.progress import Progress, silent

FILE = "experts.bin"


def is_mixture(config: DecoderConfig) -> bool:
    """Whether the layers' MLPs are mixtures of experts."""
    return config.block(0).routing is not None


def expert_shape(packed: PackedModel) -> ExpertShape:
    """InputError for experts in a form that the kernel does not compute with."""
    config, routing = packed.config, packed.config.block(0).routing
    assert routing is not None
    groups = {}
    for role in (GATE_UP, DOWN):
        forms = {
            packed.matrix_form(config.tensor(role, layer, expert).name)
            for layer in range(config.num_hidden_layers)
            for expert in range(routing.experts)
        }
        form = next(iter(forms))
        if len(forms) > 1 or form.bits != 4 or form.offsets:
            raise InputError(
                f"experts in {len(forms)} forms, such as {form}: they have to be 4 bit in one form; leave out --bits"
            )
        groups[role] = form.group
    sizes = (config.num_hidden_layers, routing.experts, config.hidden_size, config.intermediate_size)
    return ExpertShape(*sizes, groups[GATE_UP], groups[DOWN])


def write_experts(packed: PackedModel, path: Path, progress: Progress = silent) -> ExpertShape:
    """Write the file. Holds one expert in memory."""
    shape, config = expert_shape(packed), packed.config
    sums: list[int] = []
    with path.open("wb") as file:
        file.seek(shape.data_at)
        for layer in range(shape.layers):
            progress("experts", layer, shape.layers)
            for expert in range(shape.experts):
                for role in (GATE_UP, DOWN):
                    matrix = packed.matrix(config.tensor(role, layer, expert).name)
                    data = b"".join(tiles_of(half).tobytes() for half in _halves(matrix, role))
                    sums.append(checksum(data))
                    file.write(data)
                    file.write(bytes(padded(len(data)) - len(data)))
        checks = np.array(sums, np.uint64).tobytes()
        file.seek(0)
        file.write(shape.header(checksum(shape.header() + checks)) + checks)
    progress("experts", shape.layers, shape.layers)
    assert path.stat().st_size == shape.size
    return shape


def _halves(matrix: Packed, role: str) -> list[Packed]:
    """Gate and up, which are tiled alone, or down."""
    inner = len(matrix.codes) // 2
    return [matrix.rows(slice(0, inner)), matrix.rows(slice(inner, None))] if role == GATE_UP else [matrix]


def checksum(data: bytes) -> int:
    """core/src/expert_format.cpp's: the sum of 64-bit words, each times an odd number by its place."""
    words = np.frombuffer(data + bytes(-len(data) % 8), np.uint64)
    with np.errstate(over="ignore"):
        return int((words * (2 * np.arange(len(words), dtype=np.uint64) + np.uint64(1))).sum(dtype=np.uint64))


class SparseMoe(nn.Module):
    """h [T, D] -> what the layer's experts make of it [T, D], by our operator; the router's weight is in the program."""

    router: torch.Tensor

    def __init__(self, packed: PackedModel, layer: int) -> None:
        super().__init__()
        from phi3mobile.models import ops_experts  # noqa: F401  phi3mobile::sparse_moe

        routing = packed.config.block(layer).routing
        assert routing is not None
        self.layer, self.used = layer, routing.used
        self.jitter = routing.jitter if routing.kind == SPARSEMIXER else -1.0
        self.register_buffer("router", packed.vector(packed.config.tensor(ROUTER, layer).name))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return torch.ops.phi3mobile.sparse_moe(h, self.router, self.layer, self.used, self.jitter)
