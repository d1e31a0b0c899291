"""phi3_v: Phi-3-vision and Phi-3.5-vision. The decoder is phi3's; rows of pictures take the place of embedded tokens.

CLIP ViT-L/14 at 336 pixels without its last layer, 2 x 2 patches merged, a separator after each row and one before the global
view, two linears (models/clip.py). Parity with transformers' CLIPVisionModel and Phi3ForCausalLM: features to 1e-5, logits to
1e-4; transformers has no class of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from phi3mobile.errors import InputError
from phi3mobile.models.config import ramp
from phi3mobile.models.families import phi3
from phi3mobile.models.families.phi3 import Phi3Config
from phi3mobile.models.gguf import GgufLayout
from phi3mobile.models.hf import eos_value
from phi3mobile.models.tensors import Tensor
from phi3mobile.models.vision_config import VisionConfig

MODEL_TYPES = ("phi3_v",)
Layer = phi3.Layer
GGUF: dict[str, GgufLayout] = {}

STOPS = (32007, 32001, 32000)  # <|end|>, <|assistant|>, <|endoftext|>: what ends an answer
_UNSAID = 2  # </s>, the released configs' eos, which no answer ends with

_EMBED = {  # of embd_layer, all needed: other values are other functions
    "embedding_cls": "image",
    "hd_transform_order": "sub_glb",
    "projection_cls": "mlp",
    "use_hd_transform": True,
    "with_learnable_separator": True,
}
_PICTURE = {"name": "clip_vision_model", "model_name": "openai/clip-vit-large-patch14-336", "num_img_tokens": 144}
_OPTIONAL = {"layer_idx": -2, "type_feature": "patch"}
# Ours, in img_processor: a tower of other sizes, for tests. The released code knows one size.
_SIZES = tuple(field.name for field in fields(VisionConfig) if field.name != "projection_size")
_CLIP = {"image_size": VisionConfig.image_size, "patch_size": VisionConfig.patch_size, "hidden_act": "quick_gelu"}


_RELEASED = VisionConfig(3072)


@dataclass(frozen=True)
class Phi3VConfig(Phi3Config):
    """phi3's decoder and `vision`, the tower whose rows it takes."""

    family: ClassVar[str] = "phi3_v"
    layouts: ClassVar[tuple[str, ...]] = MODEL_TYPES

    vision: VisionConfig = _RELEASED

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vision.projection_size != self.hidden_size:
            raise InputError(
                f"config: the vision tower is projected to {self.vision.projection_size}, the decoder has hidden_size "
                f"{self.hidden_size}; they must agree"
            )

    def to_hf(self) -> dict[str, Any]:
        return write(self)


def read(hf: dict[str, Any]) -> Phi3VConfig:
    """A config.json of model_type phi3_v: phi3's keys, embd_layer and img_processor."""
    plain = {key: value for key, value in hf.items() if key not in ("embd_layer", "img_processor")}
    text = phi3.read({**plain, "model_type": "phi3"})
    _require("embd_layer", hf.get("embd_layer"), _EMBED)
    vision, processor = VisionConfig(text.hidden_size), hf.get("img_processor")
    if isinstance(processor, dict) and "vision_config" in processor:
        vision = _tower(processor["vision_config"], text.hidden_size)
        processor = {key: value for key, value in processor.items() if key != "vision_config"}
    _require("img_processor", processor, {**_PICTURE, "image_dim_out": vision.hidden_size}, _OPTIONAL)
    eos = text.eos_token_ids
    if eos == (_UNSAID,) and text.vocab_size > max(STOPS):
        eos = STOPS
    return Phi3VConfig(**vars(text) | {"source_model_type": "phi3_v", "eos_token_ids": eos, "vision": vision})


def _tower(sizes: Any, projection: int) -> VisionConfig:
    where = "img_processor.vision_config"
    if not isinstance(sizes, dict):
        raise InputError(f"config: {where} is {sizes!r}; it must be an object")
    _require(where, {key: value for key, value in sizes.items() if key not in _SIZES}, {}, _CLIP)
    return VisionConfig(projection, **{key: value for key, value in sizes.items() if key in _SIZES})


def _require(where: str, given: Any, needed: dict[str, Any], optional: dict[str, Any] | None = None) -> None:
    """InputError, by name, for what is missing, unknown or of another value than the graph's."""
    if not isinstance(given, dict):
        raise InputError(f"config: {where} is {given!r}; a phi3_v config must give it as an object")
    allowed = needed | (optional or {})
    for key, value in given.items():
        if key not in allowed:
            raise InputError(f"config: unknown key {key!r} ({value!r}) in {where}; remove it if it does not change the model")
        if type(value) is not type(allowed[key]) or value != allowed[key]:
            raise InputError(f"config: {where}.{key} is {value!r}; this graph allows {allowed[key]!r} only")
    if missing := [key for key in needed if key not in given]:
        raise InputError(f"config: {where} lacks {', '.join(missing)}; a phi3_v config must give them")


def write(config: Phi3VConfig) -> dict[str, Any]:
    """The config.json that `read` and the released code read back as `config`."""
    values = {field.name: getattr(config, field.name) for field in fields(Phi3Config)}
    hf = Phi3Config(**values | {"source_model_type": "phi3"}).to_hf()
    hf |= {"architectures": ["Phi3VForCausalLM"], "model_type": "phi3_v", "eos_token_id": eos_value(config.eos_token_ids)}
    if hf["rope_scaling"] is not None:
        hf["rope_scaling"]["type"] = "su"  # longrope's first name, the only one that the released code knows
    vision, released = config.vision, VisionConfig(config.hidden_size)
    processor = {**_PICTURE, "image_dim_out": vision.hidden_size}
    if vision != released:
        processor["vision_config"] = {name: getattr(vision, name) for name in _SIZES} | _CLIP
    return hf | {"embd_layer": dict(_EMBED), "img_processor": processor}


def stored(config: Phi3VConfig, tensor: Tensor) -> dict[str, tuple[int, ...]]:
    """The tensors that one of the decoder's is stored as: itself."""
    return {tensor.name: tensor.shape}


def reference() -> None:
    """transformers has none: tests/reference_phi3_v.py puts two of its classes together."""


_VISION = Phi3VConfig(
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=96,
    vocab_size=32064,
    max_position_embeddings=131072,
    sliding_window=131072,
    bos_token_id=1,
    eos_token_ids=STOPS,
    pad_token_id=32000,
)
PRESETS: dict[str, Phi3VConfig] = {
    "vision-tiny": Phi3VConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        vocab_size=256,
        rope_scaling=ramp(8, 9.0),
        original_max_position_embeddings=1024,  # a picture of 757 tokens fits before the switch, two do not
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=2,
        vision=VisionConfig(64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2),
    )
}

# Their function needs the checkpoint's factor lists: right for sizes and memory, not for logits.
SHAPES: dict[str, Phi3VConfig] = {"phi-3-vision": _VISION, "phi-3.5-vision": replace(_VISION, sliding_window=262144)}
