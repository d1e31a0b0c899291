"""Known models by name, from all families: released shapes, and tiny configs that cover every feature of a graph for tests.

Sources: config.json of the released checkpoints. Rope factor lists and stop ids always come from a checkpoint, so the
long-context models are shapes only, to be completed by `preset(name, rope_scaling)`.
"""

from __future__ import annotations

from dataclasses import replace

from phi3mobile.errors import InputError
from phi3mobile.models.config import DecoderConfig, RopeScaling
from phi3mobile.models.registry import families

PRESETS: dict[str, DecoderConfig] = {name: config for family in families().values() for name, config in family.PRESETS.items()}
# Whose function needs the checkpoint's factor lists: right for sizes and memory, not for logits.
SHAPES: dict[str, DecoderConfig] = {name: config for family in families().values() for name, config in family.SHAPES.items()}


def preset(name: str, rope_scaling: RopeScaling | None = None) -> DecoderConfig:
    """The config called `name`; a long-context model needs its checkpoint's `rope_scaling`. Raises InputError."""
    if name in PRESETS and rope_scaling is None:
        return PRESETS[name]
    if name in PRESETS:
        raise InputError(f"preset {name} takes no rope_scaling; those that do are {', '.join(SHAPES)}")
    if name not in SHAPES:
        raise InputError(f"unknown preset {name!r}; known are {', '.join((*PRESETS, *SHAPES))}")
    if rope_scaling is None:
        raise InputError(f"preset {name} has no rope factors of its own: read a checkpoint's config.json or pass them")
    return replace(SHAPES[name], rope_scaling=rope_scaling)
