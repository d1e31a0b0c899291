"""A mixture of experts in place of an MLP: its weights in every layout that is read, and the float32 reference.

Names are the hub's, `block_sparse_moe.gate` and `.experts.E`; an expert's w1 (gate) and w3 (up) are one matrix w13 here.
transformers 5 may store all experts of a layer stacked, as `mlp.experts.gate_up_proj` [E, 2F, D], and GGUF files do.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from phi3mobile.errors import InputError
from phi3mobile.models.config import DecoderConfig, RopeScaling  # noqa: F401  RopeScaling: of an inherited annotation
from phi3mobile.models.gguf import Metadata, gguf_shape
from phi3mobile.models.modules import Attention, Halves, norm
from phi3mobile.models.routing import Routing
from phi3mobile.models.tensors import (
    ATTENTION_NORM,
    DOWN,
    EMBED,
    FINAL_NORM,
    GATE_UP,
    HEAD,
    MLP_NORM,
    QKV,
    ROUTER,
    O,
    Tensor,
    bias_of,
    table,
)

FUSED = "-fused"  # behind a layout's name: experts are stacked, as transformers 5 keeps them in memory


@dataclass(frozen=True)
class MixtureConfig(DecoderConfig):
    """A decoder whose MLPs are mixtures of `num_local_experts` SwiGLU experts; a token goes to `num_experts_per_tok` of them.

    A family adds its norms, biases and routing.
    """

    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    attention_bias: bool = False
    lm_head_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_local_experts", "num_experts_per_tok"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"config: {name} is {value!r}; it must be a whole number above 0")
        if self.num_experts_per_tok > self.num_local_experts:
            raise InputError(
                f"config: num_experts_per_tok {self.num_experts_per_tok} is more than "
                f"num_local_experts {self.num_local_experts}"
            )
        for name in ("attention_bias", "lm_head_bias"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"config: {name} is {getattr(self, name)!r}; it must be true or false")

    @property
    def norm_bias(self) -> bool:
        """Whether norms have a bias."""
        return self.block(0).norm == "layernorm"

    def tensors(self) -> dict[str, Tensor]:
        return _tensors(self)


@lru_cache(maxsize=16)
def _tensors(config: MixtureConfig) -> dict[str, Tensor]:
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * dim, config.num_key_value_heads * dim
    q_k_v = {"q": slice(0, queries), "k": slice(queries, queries + keys), "v": slice(queries + keys, None)}
    gate_up = {"gate": slice(0, inner), "up": slice(inner, None)}

    def with_bias(tensor: Tensor, there: bool) -> list[Tensor]:
        return [tensor, bias_of(tensor)] if there else [tensor]

    found = [Tensor("model.embed_tokens.weight", (config.vocab_size, hidden), EMBED)]
    for layer in range(config.num_hidden_layers):
        base = f"model.layers.{layer}."
        attention, experts = f"{base}self_attn.", f"{base}block_sparse_moe.experts."
        found += with_bias(Tensor(f"{base}input_layernorm.weight", (hidden,), ATTENTION_NORM, layer), config.norm_bias)
        qkv = Tensor(f"{attention}qkv_proj.weight", (queries + 2 * keys, hidden), QKV, layer, ATTENTION_NORM, rows=q_k_v)
        found += with_bias(qkv, config.attention_bias)
        through = None if config.attention_bias else QKV  # a factor would have to pass through v's bias
        found += with_bias(Tensor(f"{attention}o_proj.weight", (hidden, queries), O, layer, through), config.attention_bias)
        found += with_bias(Tensor(f"{base}post_attention_layernorm.weight", (hidden,), MLP_NORM, layer), config.norm_bias)
        gate = f"{base}block_sparse_moe.gate.weight"
        found.append(Tensor(gate, (config.num_local_experts, hidden), ROUTER, layer, MLP_NORM))
        for expert in range(config.num_local_experts):
            w13, w2 = f"{experts}{expert}.w13.weight", f"{experts}{expert}.w2.weight"
            found.append(Tensor(w13, (2 * inner, hidden), GATE_UP, layer, MLP_NORM, expert=expert, rows=gate_up))
            found.append(Tensor(w2, (hidden, inner), DOWN, layer, GATE_UP, expert=expert))
    found += with_bias(Tensor("model.norm.weight", (hidden,), FINAL_NORM), config.norm_bias)
    head = Tensor("lm_head.weight", (config.vocab_size, hidden), HEAD, reads=FINAL_NORM)
    if not config.tie_word_embeddings:
        found.append(head)
    if config.lm_head_bias:
        found.append(bias_of(head))
    return table(found)


def layout_in(config: MixtureConfig, names: Container[str]) -> str:
    """The layout of a folder that holds these tensors: the config's own, or the one with stacked experts."""
    plain = config.source_model_type.removesuffix(FUSED)
    return plain + FUSED if "model.layers.0.mlp.experts.gate_up_proj" in names else plain


def stored_parts(config: MixtureConfig, tensor: Tensor, fused_router: str) -> dict[str, tuple[int, ...]]:
    """The parts of one tensor in the config's source layout, in row order, with shapes.

    fused_router: what the router's module is called beside stacked experts.
    """
    fused, inner, hidden = config.source_model_type.endswith(FUSED), config.intermediate_size, config.hidden_size
    if "qkv_proj" in tensor.name:
        rows = {name: range(config.tensor(QKV, tensor.layer).shape[0])[part] for name, part in _slices(config, tensor)}
        return {tensor.name.replace("qkv_proj", f"{name}_proj"): (len(own), *tensor.shape[1:]) for name, own in rows.items()}
    if tensor.expert is not None and fused:
        stack = "gate_up_proj" if tensor.role == GATE_UP else "down_proj"
        return {f"model.layers.{tensor.layer}.mlp.experts.{stack}[{tensor.expert}]": tensor.shape}
    if tensor.role == GATE_UP:
        return {tensor.name.replace("w13", part): (inner, hidden) for part in ("w1", "w3")}
    if tensor.role == ROUTER and fused:
        return {f"model.layers.{tensor.layer}.mlp.{fused_router}.weight": tensor.shape}
    return {tensor.name: tensor.shape}


def _slices(config: MixtureConfig, tensor: Tensor) -> Iterable[tuple[str, slice]]:
    rows = config.tensor(QKV, tensor.layer).rows
    return ((name, part) for name, part in rows.items() if isinstance(part, slice))


class Router(nn.Module):
    """x [T, D] -> logits [T, E], always in float32. No nn.Linear: nothing may quantize it."""

    def __init__(self, hidden: int, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, hidden))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x.float(), self.weight.float())


class Expert(nn.Module):
    """SwiGLU, x [n, D] -> [n, D]; rows of w13 are [gate | up]."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.w13 = nn.Linear(hidden, 2 * inner, bias=False)
        self.w2 = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.w13(x).chunk(2, dim=-1)
        return self.w2(functional.silu(gate) * up)


class Mixture(nn.Module):
    """x [..., D] -> [..., D]: every expert computes its own tokens, and their results are added in the experts' order."""

    def __init__(self, config: MixtureConfig, routing: Routing) -> None:
        super().__init__()
        self.routing: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = routing
        self.gate = Router(config.hidden_size, routing.experts)
        self.experts = nn.ModuleList(Expert(config.hidden_size, config.intermediate_size) for _ in range(routing.experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, -2)
        chosen, weights = self.routing(self.gate(tokens))
        total = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, slots = torch.where(chosen == number)
            if rows.numel():
                total.index_add_(0, rows, expert(tokens[rows]) * weights[rows, slots, None].to(x.dtype))
        return total.view_as(x)


class MixtureLayer(Halves):
    """One block; what lies between its two halves is attention."""

    def __init__(self, config: MixtureConfig, index: int) -> None:
        super().__init__()
        routing = config.block(index).routing
        assert routing is not None, f"layer {index} has no experts"
        self.self_attn = Attention(config, config.attention_bias)
        self.block_sparse_moe = Mixture(config, routing)
        self.input_layernorm = norm(config, index)
        self.post_attention_layernorm = norm(config, index)

    def attention_inputs(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.self_attn.rotated(self.input_layernorm(x), cos, sin)

    def attention_output(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn.o_proj(attended)
        return x + self.block_sparse_moe(self.post_attention_layernorm(x))


_GGUF_TOP = {EMBED: "token_embd", FINAL_NORM: "output_norm", HEAD: "output"}
_GGUF_LAYER: dict[str, tuple[str, ...]] = {
    ATTENTION_NORM: ("attn_norm",),
    QKV: ("attn_q", "attn_k", "attn_v"),
    O: ("attn_output",),
    MLP_NORM: ("ffn_norm",),
    ROUTER: ("ffn_gate_inp",),
    GATE_UP: ("ffn_gate", "ffn_up"),
    DOWN: ("ffn_down",),
}
GGUF_KEYS = frozenset(
    """block_count context_length embedding_length feed_forward_length expert_feed_forward_length vocab_size
    attention.head_count attention.head_count_kv attention.key_length attention.value_length attention.layer_norm_rms_epsilon
    attention.sliding_window rope.freq_base rope.dimension_count rope.scaling.type rope.scaling.factor
    rope.scaling.attn_factor rope.scaling.original_context_length rope.scaling.finetuned expert_count
    expert_used_count""".split()  # noqa: SIM905
)


def gguf_parts(tensor: Tensor, present: Container[str]) -> list[str]:
    """The tensors of a GGUF file that one of ours is stored as, in row order; experts stacked, or one by one as before 2024."""
    role, part = tensor.of or tensor.role, tensor.name.rpartition(".")[2]
    if tensor.layer is None:
        return [f"{_GGUF_TOP[role]}.{part}"]
    base, names = f"blk.{tensor.layer}.", _GGUF_LAYER[role]
    if tensor.expert is not None:
        if f"{base}{names[0]}.{tensor.expert}.weight" in present:
            return [f"{base}{name}.{tensor.expert}.weight" for name in names]
        return [f"{base}{name}_exps.weight[{tensor.expert}]" for name in names]
    if role == QKV and f"{base}attn_qkv.weight" in present:
        names = ("attn_qkv",)
    return [f"{base}{name}.{part}" for name in names]


# Metadata that says of other mixtures what none of ours does: only these values are the graph's.
_GGUF_FIXED: dict[str, tuple[Any, ...]] = {
    "leading_dense_block_count": (None, 0),
    "interleave_moe_layer_step": (None, 0, 1),
    "moe_every_n_layers": (None, 0, 1),
    "expert_group_count": (None, 0, 1),
    "expert_group_used_count": (None, 0, 1),
    "expert_weights_scale": (None, 0.0, 1.0),
    "expert_gating_func": (None, 0, 1),  # not said, or a softmax
}


def refuse_other_mixtures(given: Metadata) -> None:
    """InputError for a file whose metadata makes another mixture of its experts."""
    for key, allowed in _GGUF_FIXED.items():
        if (value := given.values.get(key)) not in allowed:
            raise InputError(f"{given.path}: metadata {given.architecture}.{key} is {value!r}; this graph has no such mixture")


def gguf_mixture(given: Metadata) -> dict[str, Any]:
    """The fields of a MixtureConfig in a file's metadata. InputError: another mixture, or one that turns a part of a head."""
    refuse_other_mixtures(given)
    shape = gguf_shape(given)
    if (rotary := given.whole("rope.dimension_count", shape["head_dim"])) != shape["head_dim"]:
        raise InputError(
            f"{given.path}: rope.dimension_count is {rotary}; this family turns whole heads, of {shape['head_dim']}"
        )
    return shape | {
        "intermediate_size": given.whole("expert_feed_forward_length", given.values.get("feed_forward_length")),
        "num_local_experts": given.whole("expert_count"),
        "num_experts_per_tok": given.whole("expert_used_count"),
    }


def mixture_values(values: dict[str, Any], keys: Iterable[str], kind: str) -> None:
    """InputError if one of the keys that a mixture's config.json must state is not there."""
    if missing := [key for key in keys if values.get(key) is None]:
        raise InputError(f"config: {', '.join(missing)} missing; a {kind} config must give them")
