"""What a decoder is made of, by name: a target that lacks one of these pieces refuses the model by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phi3mobile.models.config import Phi3Config


def pieces(config: Phi3Config) -> dict[str, str]:
    """Name of each piece -> where it stands first ("every layer", "layer 0", ...).

    Norms: rmsnorm, layernorm. Activations: swiglu, gegelu. Attention: window, blocksparse. Elsewhere: bias (of linears),
    longrope (a switch of rope factors), multiplier (of embeddings or logits), masked_ids.
    """
    from phi3mobile.models.config import Phi3SmallConfig

    small = isinstance(config, Phi3SmallConfig)
    sparse = next((layer for layer in range(config.num_hidden_layers) if config.blocksparse(layer)), None)
    found = {("layernorm" if small else "rmsnorm"): "every layer", ("gegelu" if small else "swiglu"): "every layer"}
    if small:
        found |= {"bias": "every layer", "multiplier": "embedding and head"}
    if sparse is not None:
        found["blocksparse"] = f"layer {sparse}"
    if config.sliding_window is not None:
        found["window"] = "every layer"
    if config.original_context is not None:
        found["longrope"] = "every layer"
    if config.masked_ids:
        found["masked_ids"] = "head"
    return found
