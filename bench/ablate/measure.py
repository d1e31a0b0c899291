"""One setting through the whole model, layer by layer: perplexity, KL divergence and agreement with the float model.

Only one layer's weights are in memory, so that phi-3-mini is compared on a desktop.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.bench.ablate.rounding import fake_quantize
from phi3mobile.bench.ablate.settings import FLOAT, Setting, weigh
from phi3mobile.errors import InputError
from phi3mobile.export.solve.card import compare
from phi3mobile.export.solve.checkpoint import EMBEDDING
from phi3mobile.export.solve.folder import HEAD, Solved
from phi3mobile.export.solve.stream import load_layer, load_norm, rounded, run_layer
from phi3mobile.models.checkpoint import Checkpoint
from phi3mobile.models.coarse_rows import int8_values
from phi3mobile.models.finite import is_finite
from phi3mobile.models.quantized import Packed
from phi3mobile.progress import Progress, silent

_ROWS = 4096  # activations at once


class FakeLinear(nn.Module):
    """A linear on a grid, x [B, T, K] -> [B, T, N]; with gptq its codes are found on the first inputs that it gets."""

    def __init__(self, linear: nn.Linear, setting: Setting) -> None:
        super().__init__()
        self.linear, self.setting = linear, setting
        self.weight: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        setting = self.setting
        x = rounded(x) if setting.activations == "int8" else x
        if self.weight is None:
            hessian = _hessian(x) if setting.method == "gptq" and setting.bits != FLOAT else None
            self.weight = fake_quantize(self.linear.weight, setting.bits, setting.group, setting.method, hessian)
            self.linear.weight = None
        return functional.linear(x, self.weight, self.linear.bias)


def _hessian(x: torch.Tensor) -> torch.Tensor:
    """Sum of x x^T over tokens of one length, x [B, T, K] -> [K, K]: else a few enormous tokens would decide for all."""
    total = torch.zeros(x.shape[-1], x.shape[-1])
    for part in x.flatten(0, -2).split(_ROWS):
        unit = part / part.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        total.addmm_(unit.t(), unit)
    return total


@dataclass(frozen=True)
class Reference:
    """The float model on the text int64 [B, T]: its final hidden states [B, T, D], and its perplexity."""

    checkpoint: Checkpoint
    tokens: torch.Tensor
    hidden: torch.Tensor
    perplexity: float


@torch.no_grad()
def float_reference(checkpoint: Checkpoint, tokens: torch.Tensor, progress: Progress = silent) -> Reference:
    """Run the float model over `tokens`."""
    hidden = _final_states(checkpoint, tokens, Setting(bits=FLOAT), None, progress)
    found = _compare(checkpoint, tokens, hidden, hidden, _head(checkpoint), Setting(bits=FLOAT))
    return Reference(checkpoint, tokens, hidden, found["perplexity"])


@torch.no_grad()
def measure_solved(reference: Reference, solved: Solved, setting: Setting, progress: Progress = silent) -> dict[str, float]:
    """As `measure`, of the integers that `phi3mobile quantize` made; `setting` says activations and KV cache.

    Raises InputError if they were made from another checkpoint.
    """
    if solved.source_hash() != reference.checkpoint.source_hash():
        raise InputError(f"{solved.folder} was made from another checkpoint; give its own")
    hidden = _final_states(solved, reference.tokens, setting, None, progress)
    head = _floats(solved, HEAD)
    found = _compare(reference.checkpoint, reference.tokens, reference.hidden, hidden, head, setting)
    packed = {name: one for name in (*solved.names(), HEAD) if isinstance(one := solved.tensor(name), Packed)}
    layers = [one for name, one in packed.items() if "layers." in name]
    sizes = {
        "bytes": sum(one.nbytes for one in packed.values()),
        "bits_per_weight": round(_mean_bits(layers), 3),
        "bits_per_weight_all": round(_mean_bits(packed.values()), 3),
    }
    return found | {"ratio": found["perplexity"] / reference.perplexity} | sizes


def _mean_bits(packed: Collection[Packed]) -> float:
    return 8 * sum(one.nbytes for one in packed) / sum(math.prod(one.shape) for one in packed)


def _floats(source: Checkpoint | Solved, name: str) -> torch.Tensor:
    """A tensor in float32, whatever it is stored as."""
    value = source.tensor(name)
    return value.dequantized() if isinstance(value, Packed) else value.float()


@torch.no_grad()
def measure(reference: Reference, setting: Setting, calibration: torch.Tensor, progress: Progress = silent) -> dict[str, float]:
    """perplexity, ratio to the float model's, kl (nats, mean over tokens), top1 (same likeliest token), sizes.

    calibration: tokens int64 [B, T] for gptq. Raises InputError for a group that does not fit, or states that are
    not finite.
    """
    checkpoint, tokens = reference.checkpoint, reference.tokens
    solving = setting.method == "gptq" and setting.bits != FLOAT
    hidden = _final_states(checkpoint, tokens, setting, calibration if solving else None, progress)
    found = _compare(checkpoint, tokens, reference.hidden, hidden, _table(_head(checkpoint), setting), setting)
    matrices = [checkpoint.shape(name) for name in checkpoint.names() if "layers." in name and len(checkpoint.shape(name)) == 2]
    return found | {"ratio": found["perplexity"] / reference.perplexity} | weigh(setting, checkpoint.config, matrices)


def _final_states(
    source: Checkpoint | Solved, tokens: torch.Tensor, setting: Setting, calibration: torch.Tensor | None, progress: Progress
) -> torch.Tensor:
    """Hidden states [B, T, D] after the final norm."""
    config, weights = source.config, partial(_floats, source)
    table = _table(weights(EMBEDDING), setting)
    texts = [ids for ids in (calibration, tokens) if ids is not None]  # what is solved on goes first
    streams = [functional.embedding(ids, table) * config.embedding_multiplier for ids in texts]
    for index in range(config.num_hidden_layers):
        progress("layers", index, config.num_hidden_layers)
        layer = _fake(load_layer(config, index, weights), setting)
        streams = [run_layer(config, layer, index, x) for x in streams]
        if not is_finite(streams[-1]):
            raise InputError(f"the hidden states behind layer {index} are not finite with {setting.label}")
    return load_norm(config, weights)(streams[-1])


def _fake(layer: nn.Module, setting: Setting) -> nn.Module:
    """The layer with its linears on the grid and its keys and values as the KV cache keeps them."""
    for name, linear in list(layer.named_modules()):
        if isinstance(linear, nn.Linear):
            owner, _, attribute = name.rpartition(".")
            setattr(layer.get_submodule(owner), attribute, FakeLinear(linear, setting))
    exact = layer.attention_inputs

    def attention_inputs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = exact(x, cos, sin)
        return q, _kept(k, setting.kv), _kept(v, setting.kv)

    layer.attention_inputs = attention_inputs
    return layer


def _kept(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """Keys or values [B, T, Hkv, D] as a cache of `bits` gives them back; 8: as our kernels, per token and head."""
    if bits == 32:
        return rows
    if bits == 16:
        return rows.half().float()
    return int8_values(rows)


def _table(weight: torch.Tensor, setting: Setting) -> torch.Tensor:
    """Embedding or head; the widest grids are of the row, 4 bit in groups."""
    group = 32 if setting.tables == 4 else 0
    return torch.cat([fake_quantize(part, setting.tables, group, "rtn") for part in weight.split(8192)])


def _head(checkpoint: Checkpoint) -> torch.Tensor:
    return checkpoint.tensor(EMBEDDING if checkpoint.config.tie_word_embeddings else HEAD).float()


def _compare(
    checkpoint: Checkpoint,
    tokens: torch.Tensor,
    exact: torch.Tensor,
    hidden: torch.Tensor,
    fake: torch.Tensor,
    setting: Setting,
) -> dict[str, float]:
    """Figures of `hidden` against `exact`, both [B, T, D], through the heads `fake` and the checkpoint's own."""
    seen = rounded(hidden) if setting.activations == "int8" else hidden
    found = compare(checkpoint.config, tokens, exact, _head(checkpoint), seen, fake)
    return {name: found[name] for name in ("perplexity", "kl", "top1")}
