"""Method keep: a checkpoint that is integers already goes into a folder of packed ones with its own, nothing solved.

What a program's grid holds stays as it is; what it does not (5 and 6 bits, uneven levels) takes 8 bits a row. Columns are made
alike by whole groups, which costs the integers nothing: scales and offsets take it over. How far is read off one pass
of the float model over a little text.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.errors import InputError
from phi3mobile.export.quantize import quantize
from phi3mobile.export.recipe import EMBEDDING, HEAD, Recipe
from phi3mobile.export.solve.balance import best_sizes, divide
from phi3mobile.export.solve.card import Card
from phi3mobile.export.solve.checkpoint import take_over
from phi3mobile.export.solve.folder import matrix_of, vector_of, write_part
from phi3mobile.export.solve.kept import fits, group_sizes, held, scaled
from phi3mobile.export.solve.stream import load_layer, load_norm, run_watched
from phi3mobile.export.targets import target_of
from phi3mobile.models.checkpoint import Checkpoint
from phi3mobile.models.form import Form
from phi3mobile.models.modules import Halves
from phi3mobile.models.quantized import Packed, QuantizedEmbedding
from phi3mobile.models.tensors import DOWN, FINAL_NORM, GATE_UP, LINEARS, NORMS, Tensor, in_layer
from phi3mobile.progress import Progress, silent

TOKENS = 512  # of calibration text, for the sizes of columns
_HEAD_ROWS = 8  # one of so many rows of the head is looked at
FEW_BITS = 9.0  # a weight, scales included: what is stored so is kept by default

Part = dict[str, Packed | torch.Tensor]


def is_packed(checkpoint: Checkpoint) -> bool:
    """Whether the layers' matrices are stored in at most 8 bits, so that keep is what should be done with them."""
    tensors = [tensor for tensor in checkpoint.config.tensors().values() if tensor.role in LINEARS]
    sizes = [tensor.shape[0] * tensor.shape[1] for tensor in tensors]
    bits = sum(checkpoint.bits_of(tensor.name) * size for tensor, size in zip(tensors, sizes, strict=True))
    return bits <= FEW_BITS * sum(sizes)


def refuse_whole_rows(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """InputError naming a matrix, if the recipe knows no groups of columns, and the recipes that do."""
    if not recipe.group:
        first = next(tensor.name for tensor in checkpoint.config.tensors().values() if tensor.role in LINEARS)
        able = [one.name for one in target_of(recipe).recipes if one.group]
        raise InputError(
            f"recipe {recipe.name} has one 4-bit scale a row, which can't hold {first} ({checkpoint.stored_as(first)}): take "
            f"--recipe {' or '.join(able)}, or --method gptq"
        )


class Keeping:
    """A checkpoint's matrices as the recipe's programs hold them, and a count of which were kept as they are."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        self.checkpoint, self.recipe = checkpoint, recipe
        self.kinds: dict[str, dict[str, int]] = {}  # stored as -> held as -> matrices
        self._bits, self._weights = 0.0, 0
        self._grid = lru_cache(maxsize=8)(checkpoint.grid)  # sizes and then the matrix: both ask for a layer's

    def exactly(self, name: str) -> Packed | None:
        """The matrix with its own integers; None if no program holds them."""
        grid = self._grid(name)
        return None if grid is None else held(grid, self.recipe.signed)

    def fits(self, name: str) -> Form | None:
        """The bits and groups that hold the matrix as it is; None if no program has them."""
        grid = self._grid(name)
        return None if grid is None else fits(grid)

    def matrix(self, tensor: Tensor, values: torch.Tensor, rows: torch.Tensor, sizes: torch.Tensor) -> Packed:
        """One matrix times `rows` [N] and `sizes` [K]; values [N, K]: dequantized, without these. Experts share one form."""
        grid, width = self._grid(tensor.name), tensor.shape[1]
        wanted = Form(8, width) if tensor.expert is None else self.recipe.form_of(tensor.role, width)
        packed = None if grid is None else held(scaled(grid, rows, sizes), self.recipe.signed)
        if packed is not None and tensor.expert is not None and not wanted.holds(packed.form):
            packed = None
        form = wanted if packed is None else packed.form
        self._count(tensor.name, form, packed is not None)
        self._bits += form.bits_per_weight(width) * values.numel()
        self._weights += values.numel()
        return quantize(values * rows[:, None] * sizes, *form) if packed is None else packed

    def bits_per_weight(self) -> float:
        """Of the layers' matrices so far, scales and offsets included."""
        return round(self._bits / self._weights, 4)

    def table(self, name: str, values: torch.Tensor, sizes: torch.Tensor | None = None) -> Packed:
        """The embedding or the head times `sizes` [K], in the recipe's bits."""
        form = self.recipe.form_of(self.checkpoint.config.role(name), values.shape[1])
        packed = self.exactly(name) if sizes is None else None
        same = packed is not None and form.holds(packed.form)
        self._count(name, form, same)
        return packed if packed is not None and same else quantize(values if sizes is None else values * sizes, *form)

    def _count(self, name: str, form: Form, same: bool) -> None:
        bits = f"{form.bits} bit" + (", offsets" if form.offsets else "") + (", its integers" if same else ", rounded again")
        found = self.kinds.setdefault(self.checkpoint.stored_as(name), {})
        found[bits] = found.get(bits, 0) + 1


@torch.no_grad()
def keep_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    recipe: Recipe,
    tokens: torch.Tensor,
    card_tokens: torch.Tensor,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write `folder` (which exists), and measure the quality card against the dequantized weights.

    tokens: int64 [B, T] of calibration text. The card has `kept` besides: which types of the file became what, and how often.
    Raises InputError for weights or hidden states that are not finite.
    """
    config, weights, keeping = checkpoint.config, checkpoint.tensor, Keeping(checkpoint, recipe)
    table = weights(EMBEDDING)
    packed = keeping.table(EMBEDDING, table)
    write_part(folder / "packed-embedding.safetensors", {EMBEDDING: packed})
    card = Card(
        config,
        card_tokens,
        functional.embedding(card_tokens, table),
        QuantizedEmbedding(packed)(card_tokens),
        recipe.activation_group,
    )
    exact = functional.embedding(tokens, table) * config.embedding_multiplier
    for index in range(config.num_hidden_layers):
        progress("keep layers", index, config.num_hidden_layers)
        layer = load_layer(config, index, weights)
        card.through_float(layer, index)
        exact, inputs, _, chosen = run_watched(config, layer, index, exact)
        if chosen is not None:
            card.count_experts(chosen, config)
        part = kept_layer(keeping, layer, index, inputs)
        write_part(folder / f"packed-layer-{index:03}.safetensors", part)
        take_over(layer, index, part, recipe.activation_group)
        card.through_quantized(layer, index)
    head = weights(HEAD)
    end = _end(keeping, head, exact)
    write_part(folder / "packed-end.safetensors", end)
    packed_norm = load_norm(config, partial(vector_of, end))
    bias = None if config.head_bias is None else weights(config.head_bias)
    measured = card.finish(load_norm(config, weights), head, packed_norm, matrix_of(end, HEAD), bias)
    return measured | {"bits_per_weight": keeping.bits_per_weight(), "kept": keeping.kinds}


def kept_layer(keeping: Keeping, layer: Halves, index: int, inputs: dict[str, torch.Tensor]) -> Part:
    """A float layer's parts by name, packed; its norms are divided in place. inputs: what its linears see, [B, T, K]."""
    config = keeping.checkpoint.config
    tensors = [tensor for tensor in config.tensors().values() if tensor.layer == index and tensor.role in LINEARS]
    rows = {tensor.name: torch.ones(tensor.shape[0]) for tensor in tensors}
    sizes = {tensor.name: torch.ones(tensor.shape[1]) for tensor in tensors}
    mixed = config.block(index).routing is not None  # experts share a norm with their router
    for tensor in tensors:
        before, module = tensor.reads, in_layer(tensor)
        passes = before in NORMS or (tensor.role == DOWN and before == GATE_UP)
        if mixed or not passes:
            continue
        linear = layer.get_submodule(module)
        assert isinstance(linear, nn.Linear), tensor.name
        found = _sizes(keeping, tensor, linear.weight, inputs[module])
        sizes[tensor.name] = found
        if before in NORMS:
            divide(layer.get_submodule(in_layer(config.tensor(before or "", index))), found)
        else:
            source = config.tensor(GATE_UP, index)
            rows[source.name][source.rows["up"]] = 1 / found
    part: Part = {}
    for tensor in tensors:
        linear = layer.get_submodule(in_layer(tensor))
        assert isinstance(linear, nn.Linear), tensor.name
        part[tensor.name] = keeping.matrix(tensor, linear.weight, rows[tensor.name], sizes[tensor.name])
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias * rows[tensor.name], requires_grad=False)
    vectors = {name: value for name, value in layer.named_parameters() if f"model.layers.{index}.{name}" not in part}
    return part | {f"model.layers.{index}.{name}": value.data for name, value in vectors.items()}


def _sizes(keeping: Keeping, tensor: Tensor, weight: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Of columns: alike in each group of a 4-bit matrix, one each where it is rounded to 8 bits anyway.

    Where inputs are rounded in groups themselves, nothing is gained by dividing whole ones.
    """
    form, together = keeping.fits(tensor.name), keeping.recipe.activation_group
    if form is None:
        return best_sizes(weight, seen, Form(8, tensor.shape[1]), activation_group=together)
    return group_sizes(weight, seen, form.group) if form.bits == 4 and together is None else torch.ones(tensor.shape[1])


def _end(keeping: Keeping, head: torch.Tensor, exact: torch.Tensor) -> Part:
    """Final norm and head, which sees `exact` [B, T, D] behind the norm. Where a target stores a tied table once, it is one."""
    config, recipe = keeping.checkpoint.config, keeping.recipe
    norm, width = load_norm(config, keeping.checkpoint.tensor), config.hidden_size
    packed, sizes = keeping.exactly(HEAD), None
    kept = packed is not None and recipe.form_of(config.role(HEAD), width).holds(packed.form)
    if not kept and not (config.tie_word_embeddings and target_of(recipe).one_table):
        sizes = best_sizes(
            head[::_HEAD_ROWS], norm(exact), recipe.form_of(config.role(HEAD), width), activation_group=recipe.activation_group
        )
        divide(norm, sizes)
    found: Part = {f"{config.tensor(FINAL_NORM).module}.{key}": value.data for key, value in norm.named_parameters()}
    bias = {} if config.head_bias is None else {config.head_bias: keeping.checkpoint.tensor(config.head_bias)}
    return found | {HEAD: keeping.table(HEAD, head, sizes)} | bias
