"""Packed weights -> .pte for ExecuTorch with XNNPACK, as one straight pipeline.

    segments lowered once -> stamped per layer -> joined by attention -> ExecuTorch program -> file

The program: forward(tokens int64 [1, T], input_pos int64 [1]) -> logits float32 [1, T, V], T in [1, chunk], and the constant
methods that ExecuTorch's own LLM runners read. Of a model with a LongRoPE switch, input_pos may carry LONG_REGIME: then the
long factors apply even if this chunk ends below the switch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from torch import nn

from phi3mobile.errors import InputError
from phi3mobile.models.config import Phi3Config
from phi3mobile.models.quantized import Packed, pack_nibbles
from phi3mobile.models.rope import rope_rows, rope_tables

from . import stamp
from .packed import EMBEDDING, PackedModel
from .segments import segment_parts

LONG_REGIME = 1 << 30  # added to input_pos; engines/executorch.py adds it


@dataclass(frozen=True)
class Program:
    """What was written: operators that the phone's binary must contain, bytes of planned activations (no KV cache)."""

    operators: list[str]
    activations: int


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


class PackedEmbedding(nn.Module):
    """Rows of a packed table by ExecuTorch's embedding kernels: int64 [T] -> float32 [T, hidden]."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.bits = packed.bits
        # ExecuTorch keeps the even column in the high nibble.
        codes = packed.codes if packed.bits == 8 else pack_nibbles(packed.unpacked().unflatten(1, (-1, 2)).flip(-1).flatten(1))
        self.register_buffer("codes", codes)
        self.register_buffer("scales", packed.scales.float())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        operators = torch.ops.quantized_decomposed
        operator, low = (operators.embedding_byte, -128) if self.bits == 8 else (operators.embedding_4bit, -8)
        return operator.dtype(self.codes, self.scales, None, low, -low - 1, tokens, dtype=torch.float32)


class StockAttention(nn.Module):
    """KV cache and attention by ExecuTorch's llama::* operators: q [T, H, D], k [T, Hkv, D], v [T, Hkv*D] -> [T, H*D]."""

    def __init__(self, config: Phi3Config, context: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        shape = (1, context, self.kv_heads, self.dim)
        self.register_buffer("k_cache", torch.zeros(shape))
        self.register_buffer("v_cache", torch.zeros(shape))

    def forward(self, q, k, v, position: int, mask: torch.Tensor | None) -> torch.Tensor:
        length = q.shape[0]
        torch.ops.llama.update_cache(k.view(1, length, self.kv_heads, self.dim), self.k_cache, position)
        torch.ops.llama.update_cache(v.view(1, length, self.kv_heads, self.dim), self.v_cache, position)
        q = q.view(1, length, self.heads, self.dim)
        attended = torch.ops.llama.custom_sdpa(q, self.k_cache, self.v_cache, position, mask, 0.0, mask is None)
        return attended.view(length, self.heads * self.dim)


class Decoder(nn.Module):
    """The whole program: embedding, rope rows, lowered segments with attention between them."""

    def __init__(self, config: Phi3Config, context: int, embedding: nn.Module, segments: list[nn.Module]) -> None:
        super().__init__()
        self.config, self.context = config, context
        self.embedding = embedding
        self.segments = nn.ModuleList(segments)
        self.attention = nn.ModuleList(StockAttention(config, context) for _ in range(config.num_hidden_layers))
        cos, sin = rope_tables(config, context)
        self.register_buffer("cos", cos[:, None])
        self.register_buffer("sin", sin[:, None])
        window = config.sliding_window
        self.window = window if window is not None and window < context else None

    def forward(self, tokens: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        input_pos, rows = self._rows(input_pos, length)
        cos, sin = self.cos[rows], self.sin[rows]
        position = input_pos[0].item()
        torch._check(position >= 0)
        torch._check(position + length <= self.context)
        mask = None if self.window is None else self._mask(input_pos, length)
        x = self.embedding(tokens.view(length))
        q, k, v = self.segments[0](x, cos, sin)
        for index, attention in enumerate(self.attention):
            attended = attention(q, k, v, position, mask)
            if index + 1 < len(self.attention):
                x, q, k, v = self.segments[index + 1](x, attended, cos, sin)
        (logits,) = self.segments[-1](x, attended)
        return logits.view(1, length, self.config.vocab_size)

    def _rows(self, input_pos: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The position [1] without LONG_REGIME, and the rope table's rows [T]."""
        if self.config.original_context is None:
            return input_pos, input_pos + torch.arange(length)
        marked = input_pos >= LONG_REGIME
        input_pos = input_pos - marked.to(torch.int64) * LONG_REGIME
        ends_past = input_pos + length > self.config.original_context
        positions = input_pos + torch.arange(length)
        return input_pos, rope_rows(self.config, self.context, positions, torch.logical_or(marked, ends_past))

    def _mask(self, input_pos: torch.Tensor, length: int) -> torch.Tensor:
        """Sliding window as float [T, context], 0 where visible: with a mask, custom_sdpa goes over the whole cache."""
        behind = (input_pos + torch.arange(length))[:, None] - torch.arange(self.context)[None, :]
        return torch.logical_or(behind < 0, behind >= self.window).to(torch.float32) * -1e30


class _InOrder(nn.Module):
    """A stamped segment called with the inputs of `Segment.forward`."""

    def __init__(self, lowered: nn.Module, order: tuple[int, ...]) -> None:
        super().__init__()
        self.lowered, self.order = lowered, order

    def forward(self, *inputs: torch.Tensor):
        return self.lowered(*(inputs[index] for index in self.order))


def lowered_segments(packed: PackedModel, chunk: int, scratch: Path, progress: Callable[[str, int, int], None]):
    """Every segment of the model in order, graph work done once per kind."""
    config, layers = packed.config, packed.config.num_hidden_layers
    kinds = ["start"] + ["middle"] * (layers - 1) + ["end"]
    templates: dict[str, stamp.Template] = {}
    modules = []
    for index, kind in enumerate(kinds):
        layer = max(index - 1, 0)
        progress("layers", index, len(kinds))
        if kind not in templates:
            constants = stamp.stand_ins(config, segment_parts(config, kind), packed.shape, packed.bits_of)
            templates[kind] = stamp.lower(config, kind, constants, chunk)
        constants = stamp.segment_constants(packed, config, kind, layer)
        modules.append(_InOrder(stamp.stamp(templates[kind], config, constants, scratch), templates[kind].order))
    progress("layers", len(kinds), len(kinds))
    return modules


def runner_metadata(config: Phi3Config, spec: TraceSpec, eos_ids: list[int]) -> dict[str, object]:
    """Constant methods that ExecuTorch's LLM runners read."""
    return {
        "get_max_seq_len": spec.chunk,
        "get_max_context_len": spec.context,
        "get_bos_id": -1 if config.bos_token_id is None else config.bos_token_id,
        "get_eos_ids": eos_ids,
        "get_vocab_size": config.vocab_size,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }


def to_executorch(
    packed: PackedModel,
    path: Path,
    context: int,
    chunk: int,
    eos_ids: list[int],
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Program:
    """Write the .pte for a KV cache of `context` positions, prefilled at most `chunk` tokens at a time."""
    if not 1 <= chunk <= context:
        raise InputError(f"chunk {chunk}: tokens of one prefill step must be from 1 to the context, {context}")
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers llama::*

    spec = TraceSpec(context, chunk)
    with TemporaryDirectory(dir=path.parent, prefix=".packed-") as scratch, torch.no_grad():
        segments = lowered_segments(packed, chunk, Path(scratch), progress)
        decoder = Decoder(packed.config, context, PackedEmbedding(packed.tensor(EMBEDDING)), segments).eval()
        progress("graph", 0, 1)
        exported = torch.export.export(decoder, spec.example, dynamic_shapes=spec.dynamic, strict=False)
        program = to_edge(
            exported,
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods=runner_metadata(packed.config, spec, eos_ids),
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
    plan = next(plan for plan in program.executorch_program.execution_plan if plan.name == "forward")
    caches = packed.config.kv_bytes_per_token(4) * context
    return Program(
        sorted({f"{op.name}.{op.overload}" if op.overload else op.name for op in plan.operators}),
        sum(plan.non_const_buffer_sizes) - caches,
    )
