"""Segments as our own delegate computes them (core/kernels/segment.h): told in JSON, their matrices in tiles as named data.

Nothing is lowered, and on the phone nothing is packed: the program's bytes are mapped and multiplied as they lie. `Layout` is
what the delegate is told, written here and read back by read.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch
from executorch.exir._serialize._cord import FileBackedData
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.lowered_backend_module import LoweredBackendModule

from phi3mobile.engines.tiles import Codes, TileForm, from_tiles, to_tiles
from phi3mobile.export.packed import PackedModel
from phi3mobile.export.targets.executorch.segments import FROM_EXPERTS, MIDDLE, START, TO_EXPERTS
from phi3mobile.export.targets.executorch.stamp import Results, output_shapes, segment_matrices
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.form import Form
from phi3mobile.models.quantized import Packed

BACKEND, VERSION, ALIGNMENT = "Phi3mobileBackend", 2, 64


class Matrix(msgspec.Struct):
    """A matrix as the delegate is told of it: tiles and bias are names of data."""

    rows: int
    width: int
    bits: int
    group: int
    offsets: bool
    tiles: str
    bias: str | None

    @property
    def form(self) -> Form:
        return Form(self.bits, self.group, self.offsets)

    @property
    def keys(self) -> list[str]:
        """SHA-256 of the data, behind "tiles_"."""
        return [self.tiles] if self.bias is None else [self.tiles, self.bias]

    @property
    def tile_form(self) -> TileForm:
        return TileForm(self.width, self.group, self.bits, self.offsets)


class Layout(msgspec.Struct):
    """A segment as the delegate is told of it."""

    version: int
    hidden: int
    norm: str
    eps: float
    activation: str
    limit: float
    takes_second: bool  # besides x what attention, or the experts, made
    gives_x: bool  # besides what is computed of it
    matrices: dict[str, Matrix]


def delegate(packed: PackedModel, kind: str, layer: int, scratch: Path) -> LoweredBackendModule:
    """A segment; its matrices' bytes go to files in `scratch` until the program is written."""
    store, config = NamedDataStore(), packed.config

    def stored(data: np.ndarray) -> str:
        digest = hashlib.sha256(data.data)
        name = f"tiles_{digest.hexdigest()}"
        path = scratch / name
        if not path.exists():
            path.write_bytes(data.data)
        store.add_named_data(name, FileBackedData(str(path), sha256=digest.digest()), ALIGNMENT)
        return name

    def told(matrix: Packed) -> Matrix:
        bias = None if matrix.bias is None else stored(matrix.bias.contiguous().numpy().view(np.uint8))
        rows, width = matrix.shape
        bits, group, offsets, _ = matrix.form
        return Matrix(rows, width, bits, group, offsets, stored(tiles_of(matrix)), bias)

    matrices = {name: told(matrix) for name, matrix in segment_matrices(packed, kind, layer).items()}
    text = msgspec.json.encode(_layout(config, kind, layer, matrices))
    results = Results(0, output_shapes(config, kind, "native"))
    module = LoweredBackendModule(results, BACKEND, text, [], store.get_named_data_store_output())
    module.meta = {"debug_handle_map": {}}
    return module


def _layout(config: DecoderConfig, kind: str, layer: int, matrices: Mapping[str, Matrix]) -> Layout:
    block = config.block(layer)
    return Layout(
        VERSION,
        config.hidden_size,
        block.norm,
        config.rms_norm_eps,
        block.activation,
        block.limit if block.activation == "gegelu" else 0.0,
        kind != START,
        kind in (MIDDLE, TO_EXPERTS, FROM_EXPERTS),
        dict(matrices),
    )


def read_layout(data: bytes) -> Layout:
    return msgspec.json.decode(data, type=Layout)


def tiles_of(matrix: Packed) -> np.ndarray:
    """uint8 [n], without the bias."""
    bits, group, offsets, _ = matrix.form
    scales = matrix.scales.contiguous()
    found = Codes(
        matrix.codes.numpy(),
        scales.float().numpy() if bits == 8 else scales.view(torch.uint16).numpy(),
        *((matrix.offsets.codes.numpy(), matrix.offsets.scales.numpy()) if matrix.offsets else ()),
    )
    return to_tiles(TileForm(matrix.shape[1], group, bits, offsets), found)


def packed_of(form: TileForm, data: np.ndarray, rows: int) -> Packed:
    """tiles_of's other way."""
    found = from_tiles(form, data, rows)
    scales, offsets = torch.from_numpy(found.scales.copy()), None
    if form.bits == 8:
        return Packed(8, form.width, torch.from_numpy(found.codes.copy()), scales)
    if found.offsets is not None and found.steps is not None:
        steps = torch.from_numpy(found.steps.copy())
        offsets = Packed(8, form.groups, torch.from_numpy(found.offsets.copy()), steps)
    return Packed(4, form.group, torch.from_numpy(found.codes.copy()), scales.view(torch.bfloat16), offsets=offsets)
