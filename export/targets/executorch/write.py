"""Packed weights -> .pte for ExecuTorch, as one straight pipeline.

    segments lowered once for XNNPACK and stamped per layer (stamp.py), or told to our own delegate (tiled.py)
    -> joined by attention -> ExecuTorch program -> file

The program: forward(tokens int64 [1, T], input_pos int64 [1]) -> logits float32 [1, T, V], T in [1, chunk], and the constant
methods that ExecuTorch's own LLM runners read. A model that sees pictures has two methods instead, by the names that its
multimodal runner knows: token_embedding(tokens) -> rows float32 [1, T, hidden], text_decoder(rows, input_pos) -> logits. The
cache and all weights are the second one's, the table of embeddings the first one's. Of a model with a LongRoPE switch,
input_pos may carry LONG_REGIME: then the long factors apply even if this chunk ends below the switch. Where get_last_row is
true, it may carry LAST_ROW: then of the logits only the last row is computed, the others are not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from executorch.exir.schema import ExecutionPlan
from torch import nn
from torch.export import ExportedProgram

from phi3mobile.engines.base import LAST_ROW, LONG_REGIME
from phi3mobile.errors import InputError
from phi3mobile.export.packed import EMBEDDING, PackedModel
from phi3mobile.export.target import Written
from phi3mobile.export.targets.executorch import stamp, tiled
from phi3mobile.export.targets.executorch.attention import (
    Place,
    ShiftedMasks,
    attention_of,
    eviction_of,
    pattern_of,
    window_mask,
)
from phi3mobile.export.targets.executorch.embedding import GivenRows, PackedEmbedding, TokenEmbedding
from phi3mobile.export.targets.executorch.experts import FILE as EXPERTS_FILE
from phi3mobile.export.targets.executorch.experts import SparseMoe, is_mixture, write_experts
from phi3mobile.export.targets.executorch.options import ExecutorchRecipe, recipe_of
from phi3mobile.export.targets.executorch.segments import segment_kinds, segment_vectors
from phi3mobile.models.coarse_rows import GROUP, RING
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.rope import rope_rows, rope_tables
from phi3mobile.progress import Progress, silent


@dataclass(frozen=True)
class TraceSpec:
    """Example inputs and declared shapes of `forward`, from one place."""

    context: int
    chunk: int

    @property
    def example(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1, min(3, self.chunk), dtype=torch.int64), torch.zeros(1, dtype=torch.int64)

    @property
    def dynamic(self) -> tuple:
        return ({1: torch.export.Dim("T", min=1, max=self.chunk)}, None)


class ExportedDecoder(nn.Module):
    """The whole program: embedding, rope rows, lowered segments with attention between them."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(
        self,
        config: DecoderConfig,
        recipe: ExecutorchRecipe,
        context: int,
        embedding: nn.Module,
        segments: list[nn.Module],
        mixtures: list[nn.Module],
    ) -> None:
        """mixtures: of each layer, or none; then segments are segment_kinds' of a mixture."""
        super().__init__()
        self.config, self.context, self.stock = config, context, recipe.attention == "stock"
        self.embedding = embedding
        self.segments, self.mixtures = nn.ModuleList(segments), nn.ModuleList(mixtures)
        layers = range(config.num_hidden_layers)
        self.attention = nn.ModuleList(attention_of(config, recipe, layer, context) for layer in layers)
        cos, sin = rope_tables(config, context)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        window = config.sliding_window
        self.window = window if self.stock and window is not None and window < context else None
        patterns = {pattern for layer in layers if self.stock and (pattern := pattern_of(config, layer, context)) is not None}
        self.masks = ShiftedMasks(patterns.pop(), context) if patterns else None

    def forward(self, tokens: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:
        """tokens: what `embedding` takes, [1, T] or [1, T, hidden]."""
        length = tokens.shape[1]
        place, wanted = self._place(input_pos, length), () if self.stock else (input_pos,)
        rope = (place.cos.unsqueeze(1), place.sin.unsqueeze(1)) if self.stock else ()
        x = self.embedding(tokens)
        projected = self.segments[0]((x,), rope)
        if len(self.mixtures):
            for layer, (attention, mixture) in enumerate(zip(self.attention, self.mixtures, strict=True)):
                x, h = self.segments[1 + 2 * layer]((x, attention(place, *projected)))
                if layer + 1 < len(self.mixtures):
                    x, *projected = self.segments[2 + 2 * layer]((x, mixture(h)), rope)
            (logits,) = self.segments[-1]((x, mixture(h)), wanted)
            return logits.view(1, length, self.config.vocab_size)
        for attention, segment in zip(self.attention[:-1], self.segments[1:-1], strict=True):
            x, *projected = segment((x, attention(place, *projected)), rope)
        (logits,) = self.segments[-1]((x, self.attention[-1](place, *projected)), wanted)
        return logits.view(1, length, self.config.vocab_size)

    def _place(self, input_pos: torch.Tensor, length: int) -> Place:
        steps, original = torch.arange(length), self.config.original_context
        if not self.stock:
            input_pos = input_pos - (input_pos >= LAST_ROW).to(torch.int64) * LAST_ROW
        if original is None:
            rows = input_pos + steps
        else:
            marked = input_pos >= LONG_REGIME
            input_pos = input_pos - marked.to(torch.int64) * LONG_REGIME
            long = torch.logical_or(marked, input_pos + length > original)
            rows = rope_rows(self.config, self.context, input_pos + steps, long)
        position: int | None = None
        if self.stock:
            position = cast("int", input_pos[0].item())  # a symbol while the program is traced
            torch._check(position >= 0)
            torch._check(position + length <= self.context)
        # With a mask, custom_sdpa goes over the whole cache.
        window = None if self.window is None else window_mask(self.window, self.context, input_pos + steps)
        shifted = [] if self.masks is None else self.masks(input_pos + steps)
        return Place(input_pos, position, self.cos[rows], self.sin[rows], window, shifted)


class LoweredSegment(nn.Module):
    """A segment with its vectors (norm weights, ...), called with the other inputs of `Segment.forward`."""

    def __init__(self, lowered: nn.Module, order: tuple[int, ...] | None, vectors: list[torch.Tensor]) -> None:
        """order: in which the delegate takes its inputs; None: as they are given."""
        super().__init__()
        self.lowered, self.order = lowered, order
        self.vectors = nn.ParameterList(nn.Parameter(vector, requires_grad=False) for vector in vectors)

    def forward(self, tokens: tuple[torch.Tensor, ...], others: tuple[torch.Tensor, ...] = ()):
        """tokens: x, or x and attended. others: cos and sin, where it turns; input_pos, where it makes logits."""
        inputs = (*tokens, *self.vectors, *others)
        return self.lowered(*(inputs if self.order is None else (inputs[index] for index in self.order)))


def lowered_segments(packed: PackedModel, chunk: int, scratch: Path, progress: Progress) -> list[nn.Module]:
    """Every segment of the model in order: our delegate's, or XNNPACK's, graph work done once per structure."""
    config, kinds, native = packed.config, segment_kinds(packed.config), recipe_of(packed).attention == "native"
    templates: dict[tuple, stamp.Template] = {}
    modules: list[nn.Module] = []
    for index, (kind, layer) in enumerate(kinds):
        progress("lower layers", index, len(kinds))
        vectors = segment_vectors(packed, kind, layer)
        if native:
            modules.append(LoweredSegment(tiled.delegate(packed, kind, layer, scratch), None, vectors))
            continue
        if (structure := stamp.structure(packed, kind, layer)) not in templates:
            templates[structure] = stamp.lower(packed, kind, chunk, layer)
        template, matrices = templates[structure], stamp.segment_matrices(packed, kind, layer)
        shapes = stamp.output_shapes(config, kind, template.attention)
        lowered = stamp.stamp(template, shapes, matrices, scratch)
        modules.append(LoweredSegment(lowered, template.order, vectors))
    progress("lower layers", len(kinds), len(kinds))
    return modules


def runner_metadata(config: DecoderConfig, spec: TraceSpec, eos_ids: list[int], back: int | None) -> dict[str, object]:
    """Constant methods that ExecuTorch's LLM runners read, and ours: get_max_back where positions can't go back freely."""
    return {
        "get_max_seq_len": spec.chunk,
        "get_max_context_len": spec.context,
        "get_bos_id": -1 if config.bos_token_id is None else config.bos_token_id,
        "get_eos_ids": eos_ids,
        "get_vocab_size": config.vocab_size,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
        **({} if back is None else {"get_max_back": back}),
    }


def own_metadata(recipe: ExecutorchRecipe) -> dict[str, object]:
    """get_last_row where input_pos may carry LAST_ROW."""
    return {"get_last_row": True} if recipe.attention == "native" else {}


def register_operators(recipe: ExecutorchRecipe) -> None:
    """Make the recipe's attention operators known to torch."""
    if recipe.attention == "stock":
        from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  llama::*
    else:
        from phi3mobile.models import ops  # noqa: F401  phi3mobile::*


def kv_row_bytes(config: DecoderConfig, bits: int) -> int:
    """Bytes of one position's row in one layer's caches; int8 rows have a float32 scale each, 4-bit groups a bfloat16 one."""
    scales = {32: 0, 8: 4, 4: config.head_dim // GROUP * 2}[bits]
    return 2 * config.num_key_value_heads * (config.head_dim * bits // 8 + scales)


def _methods(
    config: DecoderConfig, spec: TraceSpec, decoder: nn.Module, embedding: PackedEmbedding
) -> dict[str, torch.export.ExportedProgram]:
    """The program's methods by name: the decoder alone, or behind its embedding."""
    tokens, input_pos = spec.example
    dynamic, _ = spec.dynamic
    if config.vision is None:
        return {"forward": torch.export.export(decoder, (tokens, input_pos), dynamic_shapes=(dynamic, None), strict=False)}
    rows = torch.zeros(*tokens.shape, config.hidden_size)
    embed = TokenEmbedding(embedding, config.hidden_size).eval()
    return {
        "token_embedding": torch.export.export(embed, (tokens,), dynamic_shapes=(dynamic,), strict=False),
        "text_decoder": torch.export.export(decoder, (rows, input_pos), dynamic_shapes=(dynamic, None), strict=False),
    }


def operators_of(plans: list[ExecutionPlan]) -> list[str]:
    """What the methods of a program call, as runtimes name it."""
    found = (operator for plan in plans for operator in plan.operators)
    return sorted({f"{one.name}.{one.overload}" if one.overload else one.name for one in found})


def to_executorch(
    packed: PackedModel,
    path: Path,
    context: int,
    chunk: int,
    eos_ids: list[int],
    progress: Progress = silent,
    more: Callable[[Path], dict[str, ExportedProgram]] | None = None,
) -> Written:
    """Write the .pte for a KV cache of `context` positions, prefilled at most `chunk` tokens at a time.

    more: makes further methods by their names, given a folder for weights that is there until the program is written.
    """
    if not 1 <= chunk <= context:
        raise InputError(f"chunk {chunk}: tokens of one prefill step must be from 1 to the context, {context}")
    recipe = recipe_of(packed)
    register_operators(recipe)
    spec = TraceSpec(context, chunk)
    caches = [eviction_of(packed.config, recipe, layer, context) for layer in range(packed.config.num_hidden_layers)]
    back = min((cache.back for cache in caches if cache), default=None)
    with TemporaryDirectory(dir=path.parent, prefix=".packed-") as scratch, torch.no_grad():
        segments = lowered_segments(packed, chunk, Path(scratch), progress)
        embedding = PackedEmbedding(packed.matrix(EMBEDDING), packed.config.embedding_multiplier)
        layers = range(packed.config.num_hidden_layers) if is_mixture(packed.config) else ()
        mixtures: list[nn.Module] = [SparseMoe(packed, layer) for layer in layers]
        progress("graph", 0, 1)
        rows = embedding if packed.config.vision is None else GivenRows()
        decoder = ExportedDecoder(packed.config, recipe, context, rows, segments, mixtures).eval()
        methods = _methods(packed.config, spec, decoder, embedding) | ({} if more is None else more(Path(scratch)))
        program = to_edge(
            methods,
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods=runner_metadata(packed.config, spec, eos_ids, back) | own_metadata(recipe),
        ).to_executorch(
            ExecutorchBackendConfig(
                extract_delegate_segments=True,
                sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
                memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            )
        )
        progress("write", 0, 1)
        with path.open("wb") as file:
            program.write_to_file(file)
    plans = [plan for plan in program.executorch_program.execution_plan if plan.inputs]  # the others are constants
    experts: dict[str, object] = {}
    if is_mixture(packed.config):
        routing = packed.config.block(0).routing
        assert routing is not None
        shape, used = write_experts(packed, path.with_name(EXPERTS_FILE), progress), routing.used
        experts = {"experts": {"file": EXPERTS_FILE, "used": used, "bytes": shape.size, **vars(shape)}}
    row = kv_row_bytes(packed.config, recipe.kv_bits)
    ring = kv_row_bytes(packed.config, 8) * len(caches) if recipe.kv_bits == 4 else 0
    planned = row * sum(cache.rows if cache else context for cache in caches) + ring * RING

    def kv_held(tokens: int) -> int:
        return row * sum(cache.rows_for(tokens) if cache else tokens for cache in caches) + ring * min(tokens, RING)

    activations = sum(sum(plan.non_const_buffer_sizes) for plan in plans) - planned
    about: dict[str, object] = {
        "name": "ExecuTorch",
        "version": version("executorch"),
        "program": path.name,
        "operators": operators_of(plans),
        "packs": recipe.attention == "stock",  # XNNPACK packs weights when they are loaded
    }
    about |= experts
    per_token = -(-kv_held(context) // context) if ring else row * len(caches)
    return Written(about, activations, per_token, back, kv_held)
