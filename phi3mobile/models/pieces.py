"""What a decoder is made of, by name: a target that lacks one of these pieces refuses the model by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phi3mobile.models.blocksparse import Pattern
from phi3mobile.models.routing import Routing
from phi3mobile.models.tensors import GATE_UP, QKV

if TYPE_CHECKING:
    from phi3mobile.models.config import DecoderConfig


@dataclass(frozen=True)
class Block:
    """One layer: norm, attention, norm, MLP. A piece that a target lacks is refused by its name."""

    norm: str = "rmsnorm"  # or "layernorm", with a bias
    activation: str = "swiglu"  # or "gegelu"
    limit: float = 0.0  # of gegelu
    bias: bool = False  # of the linears
    window: int | None = None  # a query at q sees keys k with q - window < k <= q
    pattern: Pattern | None = None  # block-sparse attention
    routing: Routing | None = None  # the MLP is a mixture of experts


def pieces(config: DecoderConfig) -> dict[str, str]:
    """Name of each piece -> where it stands first ("every layer", "layer 0", ...).

    Norms: rmsnorm, layernorm. Activations: swiglu, gegelu. Attention: window, blocksparse. Elsewhere: bias (of linears),
    row_order (fused rows are not [q | k | v] or [gate | up]), longrope (a switch of rope factors), multiplier (of embeddings
    or logits), masked_ids, head_bias. A mixture: experts, and the kind of routing, sparsemixer or softmax_topk. vision: a tower
    for pictures, and a decoder that takes its rows.
    """
    found: dict[str, list[int]] = {}
    for layer in range(config.num_hidden_layers):
        block = config.block(layer)
        has = {
            "bias": block.bias,
            "window": block.window is not None,
            "blocksparse": block.pattern is not None,
            "row_order": not all(config.tensor(role, layer).stacked for role in (QKV, GATE_UP)),
            "experts": block.routing is not None,
        }
        if block.routing is not None:
            has[block.routing.kind] = True
        for name in (block.norm, block.activation, *(name for name, there in has.items() if there)):
            found.setdefault(name, []).append(layer)
    everywhere = range(config.num_hidden_layers)
    placed = {name: "every layer" if len(at) == len(everywhere) else f"layer {at[0]}" for name, at in found.items()}
    if config.original_context is not None:
        placed["longrope"] = "every layer"
    if (config.embedding_multiplier, config.logit_divisor) != (1.0, 1.0):
        placed["multiplier"] = "embedding and head"
    if config.masked_ids:
        placed["masked_ids"] = "head"
    if config.head_bias is not None:
        placed["head_bias"] = "head"
    if config.vision is not None:
        placed["vision"] = "pictures"
    return placed
