"""A vision tower and its projector seen as packed integers: what every target exports, one tensor at a time.

8 bits by default: a tower is small and loses fine print first. Norms, patches, positions and separators stay float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from phi3mobile.errors import InputError
from phi3mobile.export.integers import Integers
from phi3mobile.export.quantize import quantize
from phi3mobile.models.checkpoint import Checkpoint
from phi3mobile.models.clip import ClipLayer, Tower, Vision, merged, projector
from phi3mobile.models.form import Form
from phi3mobile.models.loading import fill
from phi3mobile.models.quantized import Packed, QuantizedLinear, stacked
from phi3mobile.models.vision_config import PREFIX, PROJECTOR, TOWER, VisionConfig, layer_prefix

if TYPE_CHECKING:
    from phi3mobile.export.solve.rotate import Rotated

GROUP = 32  # columns of a scale of 4 bits
SEPARATORS = "separators.bin"  # float32 [2, 4 C]: after a row of tokens, before the global view
_VIEWS = 4  # that go through a layer at once

Module = TypeVar("Module", bound=nn.Module)


class PackedVision:
    """Reads packed integers, or rounds floats to nearest on demand, and keeps nothing. Names are the checkpoint's.

    bits: 8 with a scale a row, or 4 with a scale for 32 columns; what is packed already stays as it is. Raises InputError for
    a model without a tower, and for bits or widths that can't be.
    """

    def __init__(self, source: Checkpoint | Rotated | Integers, bits: int = 8) -> None:
        if source.config.vision is None:
            raise InputError(f"model_type {source.config.family} takes no pictures: it has no vision tower to pack")
        self.source = source
        self.config: VisionConfig = source.config.vision
        self._shapes, self._matrices = self.config.tensors(), frozenset(self.config.matrices())
        if isinstance(source, Integers) and (form := source.form_of(f"{PROJECTOR}0.weight")):
            bits = form.bits
        if bits not in (4, 8):
            raise InputError(f"a vision tower of {bits} bits: 4 or 8 are known")
        self.bits = bits
        widths = (self.config.hidden_size, self.config.intermediate_size, self.config.projection_size)
        if bits == 4 and (uneven := [width for width in widths if width % GROUP]):
            raise InputError(f"a vision tower of 4 bits takes {GROUP} columns a scale: {uneven[0]} columns don't divide so")

    def names(self) -> list[str]:
        """Every tensor, in the order of computing."""
        return list(self._shapes)

    def form_of(self, name: str) -> Form | None:
        """How a matrix is packed; None for what stays float32."""
        if isinstance(self.source, Integers):
            return self.source.form_of(name)
        if name not in self._matrices:
            return None
        return Form(self.bits, GROUP if self.bits == 4 else self._shapes[name][1])

    def matrix_form(self, name: str) -> Form:
        """How the matrix `name` is packed."""
        form = self.form_of(name)
        assert form is not None, f"{name} is no matrix"
        return form

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def has_bias(self, name: str) -> bool:
        """Whether the matrix `name` has a bias: all have."""
        return True

    def tensor(self, name: str) -> Packed | torch.Tensor:
        """A matrix packed, with its bias; or anything else in float32, in the checkpoint's shape."""
        return self.matrix(name) if name in self._matrices else self.vector(name)

    def matrix(self, name: str) -> Packed:
        """The matrix `name`, with its bias."""
        weight, form = self.source.tensor(name), self.matrix_form(name)
        packed = weight if isinstance(weight, Packed) else quantize(weight, *form)
        return replace(packed, bias=self.vector(f"{name.removesuffix('weight')}bias"))

    def attention_matrix(self, layer: int) -> Packed:
        """q, k and v of a layer as one matrix of 3 * hidden rows: the same integers."""
        return stacked([self.matrix(f"{layer_prefix(layer)}self_attn.{part}_proj.weight") for part in "qkv"])

    def vector(self, name: str) -> torch.Tensor:
        """A tensor that stays float32: a norm's, a bias, the patches' weights, positions, the class token, a separator."""
        values = self.source.tensor(name)
        assert isinstance(values, torch.Tensor) and name not in self._matrices, f"{name} is a packed matrix"
        return values.float()

    def separators(self) -> tuple[torch.Tensor, torch.Tensor]:
        """At the end of a row of patches and before the global view, each float32 [4 * hidden]."""
        return self.vector(f"{PREFIX}sub_GN").flatten(), self.vector(f"{PREFIX}glb_GN").flatten()

    def part(self) -> dict[str, Packed | torch.Tensor]:
        """All of it, as solve.folder.write_part takes it."""
        values = {name: self.tensor(name) for name in self.names()}
        return {name: replace(value, bias=None) if isinstance(value, Packed) else value for name, value in values.items()}

    def nbytes(self) -> int:
        """Bytes of integers, scales and float32 values, from the shapes."""
        total = 0.0
        for name, shape in self._shapes.items():
            form = self.form_of(name)
            total += math.prod(shape) * (4 if form is None else form.bits_per_weight(shape[1]) / 8)
        return round(total)


def write_separators(packed: PackedVision, folder: Path, program: str, rows: int) -> dict[str, Any]:
    """Write the separators into `folder`; returns what the manifest says of a tower whose program lies there.

    rows: most that one call of it projects.
    """
    values = torch.stack(packed.separators()).numpy().astype("<f4")
    (folder / SEPARATORS).write_bytes(values.tobytes())
    config = packed.config
    return {
        "program": program,
        "separators": SEPARATORS,
        "hidden": config.projection_size,
        "width": config.hidden_size,
        "rows": rows,
        "bits": packed.bits,
        "view_operations": config.view_operations,
        "row_operations": config.row_operations,
    }


def separators_difference(path: Path, packed: PackedVision) -> str:
    """Whether the file at `path` holds other separators, in a line; "": it holds these."""
    own = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32)
    return "" if torch.equal(own, torch.cat(packed.separators())) else "the separators are others than its source's"


def load_packed_vision(packed: PackedVision) -> Vision:
    """The torch module that computes with these integers, activations rounded to int8: the reference of an exported tower."""
    with torch.device("meta"):
        vision = Vision(packed.config)
    return _rounded(vision, packed, PREFIX)


@torch.no_grad()
def vision_decibels(source: Checkpoint | Rotated, packed: PackedVision, views: torch.Tensor) -> dict[str, Any]:
    """What packing costs on views float32 [B, 3, 336, 336], as signal to noise in dB: for the quality card.

    features_db: of the tower's features. rows_db: of what the decoder takes. layers_db: of every layer's output, errors of the
    layers before it included.
    """
    layers: list[float] = []
    exact, values = encoded_by_both(source, packed, views, lambda one, other: layers.append(_decibels(one, other)))
    exact_rows, rows = projected_by_both(source, packed, merged(exact), merged(values))
    return {
        "bits": packed.bits,
        "features_db": _decibels(exact, values),
        "rows_db": _decibels(exact_rows, rows),
        "layers_db": layers,
    }


@torch.no_grad()
def encoded_by_both(
    source: Checkpoint | Rotated,
    packed: PackedVision,
    views: torch.Tensor,
    after_layer: Callable[[torch.Tensor, torch.Tensor], None] = lambda exact, values: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [B, 576, C] of views float32 [B, 3, 336, 336] by the float tower and by the packed one.

    One layer is in memory at a time. after_layer: is given what both make of each, [B, 577, C].
    """
    config, floats = packed.config, source.tensor
    top = [name for name in config.tensors() if name.startswith(TOWER) and ".encoder." not in name]
    with torch.device("meta"):
        tower = Tower(replace(config, num_hidden_layers=2))
    fill(tower, top, floats, TOWER)
    exact = tower.embed(views)
    x = exact.clone()
    for index in range(config.layers):
        base = layer_prefix(index)
        with torch.device("meta"):
            layer = ClipLayer(config)
        own = [name for name in config.tensors() if name.startswith(base)]
        fill(layer, own, floats, base)
        exact = torch.cat([layer(some) for some in exact.split(_VIEWS)])
        rounded = _rounded(layer, packed, base)
        x = torch.cat([rounded(some) for some in x.split(_VIEWS)])
        after_layer(exact, x)
    return exact[:, 1:], x[:, 1:]


@torch.no_grad()
def projected_by_both(
    source: Checkpoint | Rotated, packed: PackedVision, exact: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [..., hidden] that the float projector makes of the float tower's merged rows, and the packed one of the other's."""
    with torch.device("meta"):
        project = projector(packed.config)
    fill(project, [name for name in packed.config.tensors() if name.startswith(PROJECTOR)], source.tensor, PROJECTOR)
    exact_rows = project(exact)
    return exact_rows, _rounded(project, packed, PROJECTOR)(values)


def _rounded(root: Module, packed: PackedVision, prefix: str) -> Module:
    """A module with packed linears in place of its own; its tensors are those whose names begin with `prefix`."""
    own = [name for name in packed.names() if name.startswith(prefix)]
    matrices = [name for name in own if packed.form_of(name) is not None]
    biases = {f"{name.removesuffix('weight')}bias" for name in matrices}
    for name in matrices:
        owner, _, attribute = name.removeprefix(prefix).removesuffix(".weight").rpartition(".")
        setattr(root.get_submodule(owner), attribute, QuantizedLinear(packed.matrix(name)))
    fill(root, [name for name in own if name not in biases.union(matrices)], packed.vector, prefix)
    return root.eval()


def _decibels(exact: torch.Tensor, values: torch.Tensor) -> float:
    noise = float((values - exact).double().square().sum())
    signal = float(exact.double().square().sum())
    return round(10 * math.log10(signal / max(noise, 1e-12 * signal)), 1)
