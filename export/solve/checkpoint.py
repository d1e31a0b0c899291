"""A float checkpoint solved into a folder of packed integers, layer after layer, with a quality card from the same pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.export.quantize import quantize
from phi3mobile.export.solve.balance import FormOf, balance, best_sizes, divide
from phi3mobile.export.solve.card import Card
from phi3mobile.export.solve.folder import HEAD, matrix_of, read_part, vector_of, write_part
from phi3mobile.export.solve.gptq import Inputs, solve
from phi3mobile.export.solve.mixture import router_weights
from phi3mobile.export.solve.pictures import beside
from phi3mobile.export.solve.stream import Weights, hessian, load_layer, load_norm, rounded, run_layer, run_watched, solve_layer
from phi3mobile.models.checkpoint import Checkpoint
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.form import Form
from phi3mobile.models.modules import Halves
from phi3mobile.models.quantized import Packed, QuantizedEmbedding, QuantizedLinear
from phi3mobile.models.tensors import FINAL_NORM
from phi3mobile.progress import Progress, silent

if TYPE_CHECKING:
    from phi3mobile.export.solve.rotate import Rotated

EMBEDDING = "model.embed_tokens.weight"
_ROWS = 256  # of a matrix looked at before the others


@torch.no_grad()
def solve_checkpoint(
    checkpoint: Checkpoint | Rotated,
    folder: Path,
    form_of: FormOf,
    tokens: torch.Tensor,
    card_tokens: torch.Tensor,
    progress: Progress = silent,
    seen: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    activation_group: int | None = None,
) -> dict[str, Any]:
    """Solve every matrix on calibration `tokens` int64 [B, T], write `folder` (which exists) and measure the quality card.

    seen: rows of pictures [P, R, D] that they are solved on too, in the float model and in the quantized one. activation_group:
    the recipe's.

    Parts that are in the folder already are taken over: a killed run goes on. Raises InputError for weights or hidden states
    that are not finite, naming the tensor or layer.
    """
    config, layers = checkpoint.config, checkpoint.config.num_hidden_layers
    weights = checkpoint.tensor
    table = weights(EMBEDDING)
    packed = _kept(
        folder / "packed-embedding.safetensors", lambda: {EMBEDDING: quantize(weights(EMBEDDING), *form_of(EMBEDDING))}
    )
    embed = QuantizedEmbedding(matrix_of(packed, EMBEDDING))
    card = Card(config, card_tokens, functional.embedding(card_tokens, table), embed(card_tokens), activation_group)
    exact = beside(functional.embedding(tokens, table) * config.embedding_multiplier, seen[0])
    x = beside(embed(tokens) * config.embedding_multiplier, seen[1])
    del table  # in float32 as large as a layer
    for index in range(layers):
        progress("solve layers", index, layers + 1)
        layer, path = load_layer(config, index, weights), folder / f"packed-layer-{index:03}.safetensors"
        card.through_float(layer, index)
        exact, inputs, made, chosen = run_watched(config, layer, index, exact)
        if chosen is not None:
            card.count_experts(chosen, config)
        if not path.exists() and (trained := on_grid(layer, index, form_of)):
            write_part(path, _vectors(layer, index) | trained)
        if path.exists():
            take_over(layer, index, read_part(path), activation_group)
            x = run_layer(config, layer, index, x)
        else:
            balance(config, layer, index, inputs, form_of, activation_group)
            vectors = _vectors(layer, index)  # before the linears, whose biases are among them, are replaced
            matrices, x = solve_layer(
                config,
                layer,
                index,
                x,
                inputs,
                made,
                lambda name, weight, inputs: solve(weight, inputs, *form_of(name)),
                chosen,
                lambda name, weight: quantize(weight, *form_of(name)),
                activation_group,
            )
            write_part(path, vectors | matrices)
        card.through_quantized(layer, index)
    progress("solve layers", layers, layers + 1)
    head = weights(HEAD)
    packed = _kept(folder / "packed-end.safetensors", lambda: _end(config, x, weights, head, form_of(HEAD), activation_group))
    packed_norm = load_norm(config, partial(vector_of, packed))
    bias = None if config.head_bias is None else weights(config.head_bias)
    return card.finish(load_norm(config, weights), head, packed_norm, matrix_of(packed, HEAD), bias)


def _end(
    config: DecoderConfig, x: torch.Tensor, weights: Weights, head: torch.Tensor, bits: Form, activation_group: int | None
) -> dict[str, Packed | torch.Tensor]:
    """Final norm and head, solved on the hidden states x [B, T, D].

    A head on the grid already keeps its integers, and a tied 8-bit one its embedding's: a target may store the table once.
    """
    norm, packed = load_norm(config, weights), quantize(head, *bits)
    if not (_rounds_to(packed, head) or (config.tie_word_embeddings and bits.bits == 8)):
        sizes = best_sizes(head, norm(x), bits, activation_group=activation_group)
        divide(norm, sizes)
        if bits.bits == 4:
            seen = rounded(norm(x), activation_group)
            packed = solve(head * sizes, Inputs(hessian(seen, torch.ones(seen.shape[:2]))), *bits)
        else:
            packed = quantize(head * sizes, *bits)
    found: dict[str, Packed | torch.Tensor] = {
        f"{config.tensor(FINAL_NORM).module}.{key}": value.data for key, value in norm.named_parameters()
    }
    return found | {HEAD: packed} | ({} if config.head_bias is None else {config.head_bias: weights(config.head_bias)})


def _kept(path: Path, make: Callable[[], dict[str, Packed | torch.Tensor]]) -> dict[str, Packed | torch.Tensor]:
    """What is in the file; made and written if there is none."""
    if not path.exists():
        write_part(path, make())
    return read_part(path)


def _kept_float(layer: Halves) -> dict[str, nn.Parameter]:
    """By name: norms, biases, routers."""
    routers = router_weights(layer)
    return {key: value for key, value in layer.named_parameters() if value.dim() == 1 or key in routers}


def _vectors(layer: Halves, index: int) -> dict[str, torch.Tensor]:
    return {f"model.layers.{index}.{key}": value.data for key, value in _kept_float(layer).items()}


def on_grid(layer: Halves, index: int, form_of: FormOf) -> dict[str, Packed]:
    """The layer's integers if its floats are on the grid already, as training/qat.py leaves them: they must stay. Else {}."""
    found = {}
    for key, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            name, some = f"model.layers.{index}.{key}.weight", module.weight[:_ROWS]
            if not _rounds_to(quantize(some, *form_of(name)), some):
                return {}
            found[name] = quantize(module.weight, *form_of(name))
            if not _rounds_to(found[name], module.weight):
                return {}
    return found


def _rounds_to(packed: Packed, weight: torch.Tensor) -> bool:
    """Whether rounding changed nothing; the first rows that it did are enough."""
    parts = zip(torch.arange(len(weight)).split(_ROWS), weight.split(_ROWS), strict=True)
    return all(torch.allclose(packed.rows(rows).dequantized(), part, rtol=1e-4, atol=1e-7) for rows, part in parts)


def take_over(layer: Halves, index: int, packed: dict[str, Packed | torch.Tensor], activation_group: int | None = None) -> None:
    """Give a float layer the integers of an earlier run, and the norms that go with them."""
    for name, vector in _kept_float(layer).items():
        vector.data = vector_of(packed, f"model.layers.{index}.{name}")
    for name, linear in list(layer.named_modules()):
        if isinstance(linear, nn.Linear):
            owner, _, attribute = name.rpartition(".")
            module = QuantizedLinear(matrix_of(packed, f"model.layers.{index}.{name}.weight"), activation_group)
            module.bias = linear.bias
            setattr(layer.get_submodule(owner), attribute, module)
