"""Recipes: what the binary on the phone contains, and how the weights are stored for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phi3mobile.errors import InputError
from phi3mobile.models.form import Form

if TYPE_CHECKING:
    from phi3mobile.models.config import DecoderConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SMALLEST_GROUP = 32


@dataclass(frozen=True)
class Recipe:
    """How one kind of bundle is made.

    attention: "stock" = ExecuTorch's llama::* operators; "native" = our phi3mobile::* kernels (phi3mobile/core), which the
    phone's binary must contain. In Core ML: "states" = KV cache in the model's states; "read-only" = it goes in, new rows
    come out; "delegate" = states, inside a .pte. In LiteRT: "in-out" = KV cache goes in and comes out, updated in place.
    kv_bits: 32, 8 = int8 per token and head (native only), 16 (Core ML).
    """

    name: str
    about: str
    attention: str
    bits: int = 4  # of the decoder's linears
    group: int = 32  # columns per 4-bit scale; 0: the whole row; fewer where a matrix's width asks for it
    down_group: int | None = None  # of the MLPs' second matrices, the widest ones; None: as the others
    embedding_bits: int = 8
    head_bits: int = 8
    kv_bits: int = 32
    target: str = "executorch"  # or "coreml", "litert"
    max_context: int | None = None  # None: as much as the model takes
    method: str = "gptq"  # how the integers are chosen: "gptq" or "rtn", see export/solve
    chunk: int = 128  # tokens of one prefill step: enough to be compute bound, small enough for 16 MB of mini's logits

    def bits_of(self, name: str, width: int) -> Form:
        """Of the matrix `name` with rows of `width`. The group of 8 bit is the whole row."""
        bits = {EMBEDDING: self.embedding_bits, HEAD: self.head_bits}.get(name, self.bits)
        group = self.down_group if self.down_group is not None and name.endswith("down_proj.weight") else self.group
        while group > SMALLEST_GROUP and width % group:
            group //= 2
        return Form(bits, width if bits == 8 or not group else group)

    def check(self, config: DecoderConfig) -> None:
        """InputError if no group of columns divides a matrix, or the target can't express its layers."""
        sparse = [layer for layer in range(config.num_hidden_layers) if config.blocksparse(layer)]
        if self.target == "litert" and (sparse or config.source_model_type == "phi3small"):
            raise InputError(
                f"recipe {self.name} has no operator for block-sparse attention (phi3small, layer {min(sparse, default=0)}); "
                "take host, android-cpu or ios-gpu"
            )
        if self.name in ("ios-ane", "ios-executorch") and config.source_model_type == "phi3small":
            raise InputError(f"recipe {self.name} takes models of type phi3; for phi3small take ios-gpu")
        widths = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
        step = SMALLEST_GROUP if self.group else 2
        if uneven := [width for width in widths if self.bits == 4 and width % step]:
            raise InputError(f"recipe {self.name} takes {step} columns a scale: {uneven[0]} columns don't divide so")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("android-cpu", "4 bit, XNNPACK, only operators of the prebuilt ExecuTorch packages", "stock"),
        Recipe(
            "android-small",
            "android-cpu with fewer scales, 4-bit embedding and head: smaller, less exact",
            "stock",
            group=128,
            down_group=256,
            embedding_bits=4,
            head_bits=4,
        ),
        Recipe(
            "host",
            "4 bit, XNNPACK, our attention kernels, int8 KV cache: this machine, or an app that links them",
            "native",
            kv_bits=8,
        ),
        Recipe("host-small", "host with 4-bit embedding and head", "native", embedding_bits=4, head_bits=4, kv_bits=8),
        Recipe("host-fp32-kv", "host with a float32 KV cache", "native"),
        Recipe(
            "ios-gpu",
            "4 bit, Core ML package for iOS 18, float16 KV cache in states, for GPU and CPU",
            "states",
            embedding_bits=4,
            kv_bits=16,
            target="coreml",
            max_context=16384,
        ),
        Recipe(
            "ios-ane",
            "experimental: Core ML packages for the Neural Engine, 4 bit per channel, KV cache in and out",
            "read-only",
            group=0,
            kv_bits=16,
            target="coreml",
            max_context=4096,
            chunk=64,
        ),
        Recipe(
            "ios-executorch",
            "4 bit .pte for ExecuTorch's Core ML delegate; its XNNPACK fallback is ios-cpu",
            "delegate",
            embedding_bits=4,
            kv_bits=16,
            target="coreml",
            max_context=4096,
        ),
        Recipe(
            "litert",
            "4 bit .tflite for Google's LiteRT, and a .litertlm package for LiteRT-LM, float32 KV cache",
            "in-out",
            target="litert",
        ),
        Recipe("ios-cpu", "android-cpu's program, for ExecuTorch with XNNPACK on the CPU of an iPhone", "stock"),
    )
}
DEFAULT_RECIPE = "android-cpu"


def find_recipe(name: str) -> Recipe:
    """The recipe of that name; InputError lists the known ones."""
    if name not in RECIPES:
        raise InputError(f"recipe {name!r} is not known; take one of: {', '.join(RECIPES)}")
    return RECIPES[name]
