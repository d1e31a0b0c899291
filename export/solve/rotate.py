"""A checkpoint with its hidden states turned, so that no channel sticks out: the same function, kinder to int8 activations.

R turns the hidden states, and each head of v by itself (R1 and R2 of SpinQuant, arXiv 2405.16406, after QuaRot, arXiv
2404.00456). Nothing is computed for it on the phone: what writes the hidden states is stored as R W, what reads them as W R,
with the weights of the norm before it multiplied in first, as R does not commute with them.

R is a product of reflections, x -> 2 mean(x) - x, over fours, twos, threes ... of coordinates. So it is symmetric and its own
inverse, it spreads one coordinate almost evenly over all (exactly for a power of four, where it is a Hadamard matrix; random
signs would leave peaks of 4 times that), and it keeps a vector of ones: LayerNorm's centring commutes with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from phi3mobile.errors import InputError
from phi3mobile.models.checkpoint import Checkpoint
from phi3mobile.models.tensors import EMBED, FINAL_NORM, NORMS, QKV, O, Tensor
from phi3mobile.models.vision_config import PROJECTOR
from phi3mobile.progress import Progress, silent

_LARGEST_SHIFT = 1000.0  # of a final norm's bias over its weight: more would drown the hidden states


def turn(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """R along one dimension of x: turn(turn(x)) is x, and turn(ones) ones."""
    dim, stride = dim % x.ndim, 1
    for count in _factors(x.shape[dim]):
        parts = x.unflatten(dim, (-1, count, stride))
        x = (2 * parts.mean(dim + 1, keepdim=True) - parts).flatten(dim, dim + 2)
        stride *= count
    return x


def _factors(size: int) -> Iterator[int]:
    """Fours first: of a reflection of four every entry is 1/2 in size, of two one is 0."""
    for factor in (4, 2, *range(3, size + 1)):
        while size % factor == 0:
            yield factor
            size //= factor


class Rotated:
    """A float checkpoint, turned: read like a Checkpoint, one tensor at a time, and nothing is kept.

    Norms have weights of one. A tied head gets its own table: the final norm is in it and not in the embedding.
    Raises InputError for a LayerNorm whose bias can't be kept: its weight is almost zero, and what reads it has no bias.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.source, self.folder = checkpoint, checkpoint.folder
        self.config = replace(checkpoint.config, tie_word_embeddings=False)
        self._tensors = self.config.tensors()
        self._shifted = set()  # norms whose bias stays with them: what reads them has none that could take it over
        for tensor in self._tensors.values():
            if tensor.reads in NORMS and f"{tensor.module}.bias" not in self._tensors:
                norm = self._norm_of(tensor).module
                if f"{norm}.bias" in self._tensors:
                    self._shifted.add(norm)
                    self._shift(norm)  # what can't be kept is told before anything is solved

    def names(self) -> list[str]:
        return list(self.config.tensors())

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def check_values(self, progress: Progress = silent) -> None:
        """InputError naming the first of the checkpoint's tensors with a value that is NaN or infinite."""
        self.source.check_values(progress)

    def source_hash(self) -> str:
        """Of the checkpoint that is turned."""
        return self.source.source_hash()

    def tensor(self, name: str) -> torch.Tensor:
        """One weight in float32. InputError if a value of the checkpoint's is NaN or infinite."""
        if name in self.config.vision_tensors():  # only what the projector writes stands among the hidden states
            value = self.source.tensor(name)
            return turn(value, 0) if name.startswith(f"{PROJECTOR}2.") else value
        found, (module, _, part) = self._tensors[name], name.rpartition(".")
        role = found.of or found.role  # of a bias: what it belongs to
        if role in NORMS:
            return self._norm(name)
        reader = self.config.tensor(role, found.layer)
        if reader.reads in NORMS:
            value = self._reader(module, self._norm_of(reader).module, part)
            return self._values_turned(value, found.layer) if role == QKV else value
        value = self.source.tensor(name)
        if role == O and part == "weight":
            value = turn(value.unflatten(1, (-1, self.config.head_dim))).flatten(1)
        return turn(value) if role == EMBED else turn(value, 0)

    def _reader(self, module: str, norm: str, part: str) -> torch.Tensor:
        """A linear's weight with its norm's in it, or its bias with the norm's; a head has none."""
        weight, scale = (self.source.tensor(f"{one}.weight") for one in (module, norm))
        if part == "weight":
            return turn(weight * scale)
        return self.source.tensor(f"{module}.bias") + weight @ self.source.tensor(f"{norm}.bias")

    def _values_turned(self, value: torch.Tensor, layer: int | None) -> torch.Tensor:
        """Rows of the fused projection, or its bias, with each KV head's v turned."""
        rows = self.config.tensor(QKV, layer).rows["v"]
        value[rows] = turn(value[rows].unflatten(0, (-1, self.config.head_dim)), 1).flatten(0, 1)
        return value

    def _norm_of(self, tensor: Tensor) -> Tensor:
        """The norm that a linear reads the hidden states through."""
        assert tensor.reads is not None, tensor.name
        return self.config.tensor(tensor.reads, None if tensor.reads == FINAL_NORM else tensor.layer)

    def _norm(self, name: str) -> torch.Tensor:
        if name.endswith("weight"):
            return torch.ones(self.shape(name))
        module = name.rpartition(".")[0]
        return turn(self._shift(module)) if module in self._shifted else torch.zeros(self.shape(name))

    def _shift(self, module: str) -> torch.Tensor:
        """A LayerNorm's bias as what is added before its weight multiplies."""
        weight, bias = (self.source.tensor(f"{module}.{part}") for part in ("weight", "bias"))
        if (bias.abs() > _LARGEST_SHIFT * weight.abs()).any():
            raise InputError(f"{module} has weights near zero where its bias is not: leave out --rotate")
        return torch.where(bias == 0, 0.0, bias / weight)
