"""Recipes: what the binary on the phone contains, and how the weights are stored for it."""

from __future__ import annotations

from dataclasses import dataclass

from phi3mobile.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """How one kind of bundle is made.

    attention: "stock" = ExecuTorch's llama::* operators; "native" = our phi3mobile::* kernels (export/kernels), which the
    phone's binary must contain. In Core ML: "states" = KV cache in the model's states; "read-only" = it goes in, new rows
    come out; "delegate" = states, inside a .pte. kv_bits: 32, 8 = int8 per token and head (native only), 16 (Core ML).
    """

    name: str
    about: str
    attention: str
    bits: int = 4  # of the decoder's linears
    group: int = 32  # columns per 4-bit scale; 0: the whole row
    embedding_bits: int = 8
    head_bits: int = 8
    kv_bits: int = 32
    target: str = "executorch"  # or "coreml"
    max_context: int | None = None  # None: as much as the model takes
    chunk: int = 128  # tokens of one prefill step: enough to be compute bound, small enough for 16 MB of mini's logits


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("android-cpu", "4 bit, XNNPACK, only operators of the prebuilt ExecuTorch packages", "stock"),
        Recipe(
            "android-small", "android-cpu with 4-bit embedding and head: smaller, a little less exact", "stock",
            embedding_bits=4, head_bits=4,
        ),
        Recipe("host", "4 bit, XNNPACK, our attention kernels, int8 KV cache: this machine, or an app that links them",
               "native", kv_bits=8),
        Recipe("host-small", "host with 4-bit embedding and head", "native", embedding_bits=4, head_bits=4, kv_bits=8),
        Recipe("host-fp32-kv", "host with a float32 KV cache", "native"),
        Recipe("ios-gpu", "4 bit, Core ML package for iOS 18, float16 KV cache in states, for GPU and CPU", "states",
               embedding_bits=4, kv_bits=16, target="coreml", max_context=16384),
        Recipe("ios-ane", "experimental: Core ML packages for the Neural Engine, 4 bit per channel, KV cache in and out",
               "read-only", group=0, kv_bits=16, target="coreml", max_context=4096, chunk=64),
        Recipe("ios-executorch", "4 bit .pte for ExecuTorch's Core ML delegate; its XNNPACK fallback is ios-cpu", "delegate",
               embedding_bits=4, kv_bits=16, target="coreml", max_context=4096),
        Recipe("ios-cpu", "android-cpu's program, for ExecuTorch with XNNPACK on the CPU of an iPhone", "stock"),
    )
}  # fmt: skip
DEFAULT_RECIPE = "android-cpu"


def find_recipe(name: str) -> Recipe:
    """The recipe of that name; InputError lists the known ones."""
    if name not in RECIPES:
        raise InputError(f"recipe {name!r} is not known; take one of: {', '.join(RECIPES)}")
    return RECIPES[name]
