"""What each weight of a decoder is for. Targets, solver and training go by roles, never by names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Roles. One matrix or vector of each per layer, but for the embedding, the final norm and the head; of a mixture's MLP one of
# each expert.
EMBED, HEAD, FINAL_NORM = "embed", "head", "final_norm"
ATTENTION_NORM, MLP_NORM = "attention_norm", "mlp_norm"
QKV, O, GATE_UP, DOWN = "qkv", "o", "gate_up", "down"  # noqa: E741
ROUTER = "router"  # of a mixture: chooses the experts of a token, in float32
BIAS = "bias"  # of the weight that `of` names
NORMS = (ATTENTION_NORM, MLP_NORM, FINAL_NORM)
LINEARS = (QKV, O, GATE_UP, DOWN)  # of a layer

Rows = slice | list[int]  # some rows of a matrix


@dataclass(frozen=True)
class Tensor:
    """One weight.

    reads: what a linear multiplies comes from here, and may be scaled there: the norm before it, or the linear whose rows it
    sees through a function that keeps a factor (o: averages of v; down behind SwiGLU: up). None where no factor passes.
    rows: which rows of a fused weight are "q", "k", "v" (head by head), or "gate" and "up", in this order of keys: as a slice,
    or as a list of numbers.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    layer: int | None = None
    reads: str | None = None  # a role
    of: str | None = None  # of a bias: the role it belongs to
    expert: int | None = None  # of a mixture's experts: which one
    rows: Mapping[str, Rows] = field(default_factory=dict, hash=False, compare=False)

    @property
    def stacked(self) -> bool:
        """Whether the parts of a fused weight stand one behind the other, in the order of `rows`."""
        numbers = range(self.shape[0])
        parts = [list(numbers[part]) if isinstance(part, slice) else part for part in self.rows.values()]
        return [number for part in parts for number in part] == list(numbers)

    @property
    def module(self) -> str:
        """The name of the module that holds it."""
        return self.name.rpartition(".")[0]


def in_layer(tensor: Tensor) -> str:
    """The module's name inside its layer."""
    return tensor.module.removeprefix(f"model.layers.{tensor.layer}.")


def table(tensors: list[Tensor]) -> dict[str, Tensor]:
    """By name, in order."""
    return {tensor.name: tensor for tensor in tensors}


def bias_of(tensor: Tensor) -> Tensor:
    """The bias beside a weight: one value per row."""
    return Tensor(f"{tensor.module}.bias", tensor.shape[:1], BIAS, tensor.layer, of=tensor.role)


def shapes(tensors: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}
