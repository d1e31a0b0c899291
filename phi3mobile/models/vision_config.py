"""What a family with pictures has beside its decoder: the shapes of a CLIP tower and a projector, and their tensors.

`config.vision` of a decoder's config is a VisionConfig, or None for a family without pictures.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from phi3mobile.errors import InputError
from phi3mobile.files import read_object

PREFIX = "model.vision_embed_tokens."
TOWER = f"{PREFIX}img_processor.vision_model."
PROJECTOR = f"{PREFIX}img_projection."
SUB_SEPARATOR, GLOBAL_SEPARATOR = f"{PREFIX}sub_GN", f"{PREFIX}glb_GN"  # at the end of a row of patches; before the global view
LAYER_MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")

DEFAULT_CROPS = 4  # where nothing says how many: a picture of 757 tokens, what a phone has patience for
_PREPROCESSOR: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "num_img_tokens": 144,
    "do_convert_rgb": True,
}


@dataclass(frozen=True)
class VisionConfig:
    """CLIP's vision tower up to its last layer but one, and two linears to the decoder's width. Defaults: ViT-L/14 at 336.

    A view [3, 336, 336] becomes 576 patches of hidden_size; 2 x 2 patches side by side, and separators, are what is projected.
    """

    image_size: ClassVar[int] = 336
    patch_size: ClassVar[int] = 14
    placeholder: ClassVar[str] = r"<\|image_(\d+)\|>"  # where a prompt has a picture: a regular expression, numbers from 1

    projection_size: int  # the decoder's hidden_size
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24  # as CLIP counts: the last one is never computed
    num_attention_heads: int = 16
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        least = {"num_hidden_layers": 2}
        for name in ("projection_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            value = getattr(self, name)
            if type(value) is not int or value < least.get(name, 1):
                raise InputError(f"config: {name} of the vision tower is {value!r}; it must be {least.get(name, 1)} or more")
        eps = self.layer_norm_eps
        if type(eps) not in (int, float) or not 0 < eps < math.inf:
            raise InputError(f"config: layer_norm_eps of the vision tower is {eps!r}; it must be a number above 0")
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"config: num_attention_heads {self.num_attention_heads} of the vision tower does not divide its hidden_size "
                f"{self.hidden_size}"
            )

    @property
    def layers(self) -> int:
        """Layers that are computed."""
        return self.num_hidden_layers - 1

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def patches(self) -> int:
        """Of one view: what the tower gives."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def positions(self) -> int:
        """Of one view, the class token's first: what the layers compute."""
        return self.patches + 1

    @property
    def merged_size(self) -> int:
        """Of a row that is projected, and of a separator: 2 x 2 patches."""
        return 4 * self.hidden_size

    @property
    def view_operations(self) -> int:
        """Multiplications and additions that encoding one view takes, in products of matrices."""
        linears = self.positions * (4 * self.hidden_size + 2 * self.intermediate_size)
        layer = 2 * self.hidden_size * (linears + 2 * self.positions**2)
        return self.layers * layer + 2 * self.patches * 3 * self.patch_size**2 * self.hidden_size

    @property
    def row_operations(self) -> int:
        """The same of projecting one row."""
        return 2 * self.projection_size * (self.merged_size + self.projection_size)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that is used, by its name in a checkpoint, in the order of computing -> its shape there."""
        return _tensors(self)

    def matrices(self) -> list[str]:
        """The weights of linears among them, which are packed; all others stay float32."""
        layers = [f"{layer_prefix(layer)}{matrix}.weight" for layer in range(self.layers) for matrix in LAYER_MATRICES]
        return [*layers, f"{PROJECTOR}0.weight", f"{PROJECTOR}2.weight"]

    def parameters(self) -> int:
        """Exact number of weights that are used."""
        return sum(map(math.prod, self.tensors().values()))

    def is_dropped(self, name: str) -> bool:
        """Whether a checkpoint's tensor is never used: the last layer, the norm behind it, a second embedding, positions."""
        last = re.escape(layer_prefix(self.layers))
        spare = rf"{re.escape(TOWER)}(post_layernorm\.(weight|bias)|embeddings\.position_ids)|{re.escape(PREFIX)}wte\.weight"
        return bool(re.fullmatch(rf"{last}.+|{spare}", name))


def layer_prefix(layer: int) -> str:
    """What the names of a tower layer's tensors begin with."""
    return f"{TOWER}encoder.layers.{layer}."


@lru_cache(maxsize=16)
def _tensors(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner, wide, out = config.hidden_size, config.intermediate_size, config.merged_size, config.projection_size
    patch = config.patch_size
    found: dict[str, tuple[int, ...]] = {
        f"{TOWER}embeddings.class_embedding": (hidden,),
        f"{TOWER}embeddings.patch_embedding.weight": (hidden, 3, patch, patch),
        f"{TOWER}embeddings.position_embedding.weight": (config.positions, hidden),
    }

    def with_bias(module: str, *shape: int) -> None:
        found.update({f"{module}.weight": shape, f"{module}.bias": shape[:1]})

    with_bias(f"{TOWER}pre_layrnorm", hidden)  # spelled so
    for layer in range(config.layers):
        base = layer_prefix(layer)
        with_bias(f"{base}layer_norm1", hidden)
        for name in "q", "k", "v", "out":
            with_bias(f"{base}self_attn.{name}_proj", hidden, hidden)
        with_bias(f"{base}layer_norm2", hidden)
        with_bias(f"{base}mlp.fc1", inner, hidden)
        with_bias(f"{base}mlp.fc2", hidden, inner)
    found |= {SUB_SEPARATOR: (1, 1, 1, wide), GLOBAL_SEPARATOR: (1, 1, wide)}
    with_bias(f"{PROJECTOR}0", out, wide)
    with_bias(f"{PROJECTOR}2", out, out)
    return found


def num_crops(folder: Path) -> int:
    """Crops that a picture is cut into at most, by the folder's preprocessor_config.json; 4 where there is none.

    InputError for a file that asks for another picture than `phi3mobile.models.vision` makes.
    """
    path = folder / "preprocessor_config.json"
    given = read_object(path)
    for key, wanted in _PREPROCESSOR.items():
        if (value := given.get(key)) is not None and not _equal(value, wanted):
            raise InputError(f"{path}: {key} is {value!r}; this graph's pictures have {wanted!r}")
    crops = given.get("num_crops", DEFAULT_CROPS)
    if type(crops) is not int or crops < 1:
        raise InputError(f"{path}: num_crops is {crops!r}; it must be a whole number above 0")
    return crops


def _equal(value: Any, wanted: Any) -> bool:
    """Numbers of a list up to the digits that files give."""
    if isinstance(value, list) and isinstance(wanted, list):
        numbers = len(value) == len(wanted) and all(type(one) in (int, float) for one in value)
        return numbers and all(math.isclose(one, other, abs_tol=1e-6) for one, other in zip(value, wanted, strict=True))
    return type(value) is type(wanted) and value == wanted
