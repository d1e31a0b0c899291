"""Recipe ios-executorch: a .pte whose whole graph is delegated to Core ML.

The decoder in torch, which Core ML computes in float16, with our operators where MIL has a better form than what torch would
decompose to. ExecuTorch's Core ML partitioner must take all of it, or lowering stops and names the operator.

    decode(tokens int64 [1, 1], input_pos int64 [1], long int64 [1]) -> logits [1, 1, V], prefill the same with a chunk of T;
    KV caches are Core ML's states, shared by both. long = 1 takes LongRoPE's long rows; 0 in models without a switch.

Fewer tokens than a chunk are padded: the rows that padding writes are overwritten later; the cache has room for them.
"""

from __future__ import annotations

import re
from pathlib import Path

import coremltools as ct
import torch
from executorch.backends.apple.coreml.compiler import CoreMLBackend, torch_ops  # noqa: F401  lowers torchao's operators
from executorch.backends.apple.coreml.partition import CoreMLPartitioner
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from torch import nn
from torch.nn import functional

from phi3mobile.errors import InputError
from phi3mobile.export.packed import EMBEDDING, HEAD, PackedModel
from phi3mobile.export.targets.coreml import torch_ops as ours  # noqa: F401  registers phi3mobile::*
from phi3mobile.models.quantized import Packed, group_sums
from phi3mobile.models.rope import rope_tables, short_rows
from phi3mobile.models.tensors import ATTENTION_NORM, FINAL_NORM, LINEARS, MLP_NORM


class _Integers(nn.Module):
    """The packed integers and their scales in the graph."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.group, self.limits = packed.group, (-8, 7) if packed.bits == 4 else (-128, 127)
        self.register_buffer("codes", packed.unpacked())
        self.register_buffer("scales", packed.scales.float())
        self.register_buffer("zeros", torch.zeros_like(packed.scales, dtype=torch.int8))

    def dequantized(self) -> torch.Tensor:
        """[N, K]."""
        return torch.ops.torchao.dequantize_affine.default(
            self.codes, [1, self.group], self.scales, self.zeros, torch.int8, *self.limits
        )


class Matrix(_Integers):
    """[N, K] of no input."""

    def forward(self) -> torch.Tensor:
        return self.dequantized()


class Linear(_Integers):
    def __init__(self, packed: Packed) -> None:
        super().__init__(packed)
        self.offsets = Matrix(packed.offsets) if packed.offsets else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.linear(x, self.dequantized())
        return y if self.offsets is None else y + functional.linear(group_sums(x, self.group), self.offsets())


class Norm(nn.Module):
    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight, requires_grad=False), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.phi3mobile.rms_norm(x, self.weight, self.eps)


class Layer(nn.Module):
    """One block over its own cache."""

    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear
    before: Norm
    between: Norm
    k_cache: torch.Tensor
    v_cache: torch.Tensor

    def __init__(self, packed: PackedModel, layer: int, rows: int) -> None:
        super().__init__()
        self.config = packed.config
        for role in LINEARS:  # qkv, o, gate_up, down
            setattr(self, role, Linear(packed.matrix(self.config.tensor(role, layer).name)))
        for name, role in (("before", ATTENTION_NORM), ("between", MLP_NORM)):
            setattr(self, name, Norm(packed.vector(self.config.tensor(role, layer).name), self.config.rms_norm_eps))
        shape = (1, self.config.num_key_value_heads, rows, self.config.head_dim)
        self.register_buffer("k_cache", torch.zeros(shape))
        self.register_buffer("v_cache", torch.zeros(shape))

    def forward(self, x: torch.Tensor, position: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        config, ops = self.config, torch.ops.phi3mobile
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        qkv = self.qkv(self.before(x)).view(1, x.shape[1], -1, config.head_dim).transpose(1, 2)
        q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
        keys = ops.with_rows(self.k_cache, ops.rotated(k, cos, sin), position)
        values = ops.with_rows(self.v_cache, v, position)
        self.k_cache.copy_(keys)
        self.v_cache.copy_(values)
        window, scale = config.sliding_window or 0, config.attention_scale
        x = x + self.o(ops.attended(ops.rotated(q, cos, sin), keys, values, position, window, scale))
        gate, up = self.gate_up(self.between(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


class DelegatedDecoder(nn.Module):
    """Caches of the context and a chunk."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, packed: PackedModel, context: int, chunk: int) -> None:
        super().__init__()
        config = packed.config
        self.context, self.short = context, short_rows(config, context)
        self.embedding, self.head = Matrix(packed.matrix(EMBEDDING)), Linear(packed.matrix(HEAD))
        self.layers = nn.ModuleList(Layer(packed, layer, context + chunk) for layer in range(config.num_hidden_layers))
        self.norm = Norm(packed.vector(config.tensor(FINAL_NORM).name), config.rms_norm_eps)
        cos, sin = rope_tables(config, context)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, tokens: torch.Tensor, input_pos: torch.Tensor, long: torch.Tensor) -> torch.Tensor:
        rows = (input_pos + torch.arange(tokens.shape[1])).clamp(max=self.context - 1) + long * self.short
        cos, sin = functional.embedding(rows, self.cos), functional.embedding(rows, self.sin)
        x = functional.embedding(tokens, self.embedding())
        for layer in self.layers:
            x = layer(x, input_pos, cos, sin)
        return self.head(self.norm(x))


def write_pte(packed: PackedModel, path: Path, context: int, chunk: int) -> dict[str, int]:
    """Lower and write; returns the methods' names and T. Raises InputError with the operator that Core ML does not take."""
    lengths = {"decode": 1, "prefill": chunk} if chunk > 1 else {"decode": 1}
    decoder = DelegatedDecoder(packed, context, chunk).eval()
    number = torch.zeros(1, dtype=torch.int64)
    specs = CoreMLBackend.generate_compile_specs(
        compute_unit=ct.ComputeUnit.CPU_AND_GPU,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        model_type=CoreMLBackend.MODEL_TYPE.MODEL,
    )
    with torch.no_grad():
        programs = {
            name: torch.export.export(
                decoder, (torch.zeros(1, length, dtype=torch.int64), number, number.clone()), strict=False
            )
            for name, length in lengths.items()
        }
        try:
            edge = to_edge_transform_and_lower(
                programs,
                partitioner=[CoreMLPartitioner(compile_specs=specs, lower_full_graph=True)],
                compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            )
        except NotImplementedError as error:
            culprit = _culprit(error, programs["decode"])
            raise InputError(f"Core ML does not take {culprit}; take recipe ios-gpu or ios-cpu") from error
        with path.open("wb") as file:
            edge.to_executorch(ExecutorchBackendConfig(extract_delegate_segments=True)).write_to_file(file)
    return lengths


def _culprit(error: NotImplementedError, program: torch.export.ExportedProgram) -> str:
    """The operator that the partitioner's error names, and the module it comes from."""
    operator = found[1] if (found := re.search(r"the op (\S+),", str(error))) else str(error).strip().splitlines()[0]
    for node in program.graph.nodes:
        if str(node.target) == operator and (stack := node.meta.get("nn_module_stack")):
            return f"the operator {operator} of {list(stack.values())[-1][0]}"
    return f"the operator {operator}"
