"""Known models by name: released shapes, and tiny configs that cover every feature of the graph for tests.

Sources: config.json of the released checkpoints. Rope factor lists and stop ids always come from a checkpoint, so the
long-context models are shapes only, to be completed by `preset(name, rope_scaling)`.
"""

from __future__ import annotations

from dataclasses import replace

from phi3mobile.errors import InputError
from phi3mobile.models.config import Phi3Config, Phi3SmallConfig, RopeScaling

_MINI = Phi3Config(
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=96,
    vocab_size=32064,
    sliding_window=2047,
    bos_token_id=1,
    eos_token_ids=(32000,),
    pad_token_id=32000,
)
_MEDIUM = replace(
    _MINI,
    hidden_size=5120,
    intermediate_size=17920,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=10,
    head_dim=128,
)
_SMOLLM2 = Phi3Config(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    vocab_size=49152,
    rope_theta=100000.0,
    original_max_position_embeddings=8192,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_ids=(2,),
    pad_token_id=2,
    source_model_type="llama",
)
_SMALL = Phi3SmallConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=100352,
    rope_theta=1000000,
    original_max_position_embeddings=8192,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    bos_token_id=100257,
    eos_token_ids=(100257,),
    dummy_token_indices=(100256, 100258, 100259, 100260, 100264, 100265, *range(100267, 100352)),
    source_model_type="phi3small",
)

_TINY = Phi3Config(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    vocab_size=256,
    original_max_position_embeddings=256,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_ids=(2,),
    pad_token_id=2,
)
_SMALL_TINY = replace(
    _SMALL,
    hidden_size=128,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=16,
    vocab_size=256,
    rope_theta=10000.0,
    original_max_position_embeddings=256,
    max_position_embeddings=256,
    gegelu_limit=1.5,
    blocksparse_block_size=8,
    blocksparse_num_local_blocks=3,
    blocksparse_vert_stride=4,
    bos_token_id=1,
    eos_token_ids=(2,),
    dummy_token_indices=(7, 250, 251),
)
_TINY_LONG = {"original_max_position_embeddings": 32, "max_position_embeddings": 256}


def _ramp(count: int, top: float) -> RopeScaling:
    """Made-up non-decreasing factors, for tiny test models only."""
    long = tuple(round(top ** (i / (count - 1)), 6) for i in range(count))
    return RopeScaling(tuple(round(1 + (f - 1) / 8, 6) for f in long), long)


PRESETS: dict[str, Phi3Config] = {
    "phi-3-mini-4k": _MINI,
    "phi-3-medium-4k": _MEDIUM,
    "phi-3-small-8k": _SMALL,
    "smollm2-135m": _SMOLLM2,
    "tiny-mha": _TINY,
    "tiny-gqa": replace(_TINY, num_key_value_heads=2),
    "tiny-tied": replace(_TINY, num_key_value_heads=1, tie_word_embeddings=True),
    "tiny-partial": replace(
        _TINY,
        hidden_size=128,
        head_dim=32,
        num_key_value_heads=2,
        num_hidden_layers=3,
        partial_rotary_factor=0.75,
        tie_word_embeddings=True,
        rope_scaling=_ramp(12, 9.0),
        **_TINY_LONG,
    ),
    "tiny-window": replace(_TINY, num_key_value_heads=2, sliding_window=12),
    "tiny-longrope": replace(_TINY, rope_scaling=_ramp(8, 9.0), **_TINY_LONG),
    "small-tiny": _SMALL_TINY,
    "small-tiny-longrope": replace(_SMALL_TINY, rope_scaling=_ramp(8, 9.0), **_TINY_LONG),
}

# Shapes whose function needs the checkpoint's factor lists: right for sizes and memory, not for logits.
SHAPES: dict[str, Phi3Config] = {
    "phi-3-mini-128k": replace(_MINI, max_position_embeddings=131072, sliding_window=262144),
    "phi-3.5-mini": replace(_MINI, max_position_embeddings=131072, sliding_window=262144),
    "phi-3-medium-128k": replace(_MEDIUM, max_position_embeddings=131072, sliding_window=131072),
    "phi-3-small-128k": replace(_SMALL, max_position_embeddings=131072),
    "phi-4-mini": replace(
        _MINI,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=200064,
        partial_rotary_factor=0.75,
        max_position_embeddings=131072,
        sliding_window=262144,
        tie_word_embeddings=True,
        bos_token_id=199999,
        eos_token_ids=(199999,),
        pad_token_id=199999,
    ),
}


def preset(name: str, rope_scaling: RopeScaling | None = None) -> Phi3Config:
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
