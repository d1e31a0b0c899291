"""The families, found by scanning their folder: who reads a config.json, a preset or a GGUF architecture."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from phi3mobile.errors import InputError
from phi3mobile.models import families as rooms
from phi3mobile.models.config import DecoderConfig

if TYPE_CHECKING:
    from phi3mobile.models.gguf import GgufLayout
    from phi3mobile.models.modules import Halves
    from phi3mobile.models.tensors import Tensor


class Family(Protocol):
    """What a file in models/families states; docs/adding-a-family.md."""

    MODEL_TYPES: tuple[str, ...]  # of config.json: its own and the layouts that it reads as well
    GGUF: dict[str, GgufLayout]  # architecture -> how its files hold the model
    PRESETS: dict[str, Any]  # released models, and tiny ones that cover every feature of the graph
    SHAPES: dict[str, Any]  # the same without their rope factors
    read: Callable[[dict[str, Any]], Any]  # config.json -> config; InputError for a key that means another function
    stored: Callable[[Any, Tensor], dict[str, tuple[int, ...]]]  # the parts of one tensor in the config's source layout
    reference: Callable[[], tuple[Any, Any] | None]  # transformers' config and model, if it has them
    Layer: Callable[[Any, int], Halves]  # the halves around attention
    # Optional, where one model_type is stored in several layouts: source_layout(config, names of the tensors) -> which one.


@cache
def families() -> dict[str, Family]:
    """By the name of the file; the one that a shape without a model_type is of comes first."""
    found: dict[str, ModuleType] = {}
    for module in sorted(pkgutil.iter_modules(rooms.__path__), key=lambda module: (module.name != rooms.DEFAULT, module.name)):
        found[module.name] = importlib.import_module(f"{rooms.__name__}.{module.name}")
    return cast("dict[str, Family]", found)


def family_of(config: DecoderConfig) -> Family:
    """The family whose config this is."""
    return families()[config.family]


def model_types() -> dict[str, Family]:
    """Every model_type that is read."""
    return {name: family for family in families().values() for name in family.MODEL_TYPES}


def gguf_layouts() -> dict[str, GgufLayout]:
    """Every GGUF architecture that is read."""
    return {name: layout for family in families().values() for name, layout in family.GGUF.items()}


def read_config(hf: dict[str, Any]) -> DecoderConfig:
    """A config.json in the layout of transformers 4 or 5.

    Raises InputError for an unknown model_type, an unknown key, or a value that means another function.
    """
    known, model_type = model_types(), hf.get("model_type")
    if not isinstance(model_type, str) or model_type not in known:
        raise InputError(f"config: model_type is {model_type!r}; known are {', '.join(known)}")
    return known[model_type].read(hf)


def as_stored(config: DecoderConfig, names: Collection[str]) -> DecoderConfig:
    """The config with the layout of a folder that holds these tensors, where the family tells layouts by them."""
    tell = getattr(family_of(config), "source_layout", None)
    return config if tell is None else replace(config, source_model_type=tell(config, names))


def stored_parts(config: DecoderConfig, name: str) -> dict[str, tuple[int, ...]]:
    """The tensors that `name` is stored as in a folder of the config's source layout, in row order, with shapes."""
    if (shape := config.vision_tensors().get(name)) is not None:
        return {name: shape}
    return family_of(config).stored(config, config.tensors()[name])
