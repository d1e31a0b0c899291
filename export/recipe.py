"""Recipes: what the binary on the phone contains, and how the weights are stored for it."""

from __future__ import annotations

from dataclasses import dataclass

from phi3mobile.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """How one kind of bundle is made.

    attention: "stock" = ExecuTorch's llama::* operators; "native" = our phi3mobile::* kernels (export/kernels), which the
    phone's binary must contain. kv_bits: 32, or 8 = int8 per token and head (native only).
    """

    name: str
    about: str
    attention: str
    bits: int = 4  # of the decoder's linears
    group: int = 32  # columns per 4-bit scale
    embedding_bits: int = 8
    head_bits: int = 8
    kv_bits: int = 32


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
    )
}  # fmt: skip
DEFAULT_RECIPE = "android-cpu"


def find_recipe(name: str) -> Recipe:
    """The recipe of that name; InputError lists the known ones."""
    if name not in RECIPES:
        raise InputError(f"recipe {name!r} is not known; take one of: {', '.join(RECIPES)}")
    return RECIPES[name]
