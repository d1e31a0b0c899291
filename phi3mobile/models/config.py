"""Configurations of the Phi-3 decoders, under HF field names: shapes, constants, contradictions, derived numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.models.blocksparse import Pattern

MODEL_TYPES = ("phi3", "llama", "mistral", "phi3small")
SHAPE_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class RopeScaling:
    """LongRoPE: per-dimension divisors of the RoPE frequencies, for sequences up to and past the original context.

    An explicit mscale (the factor on cos and sin) replaces the one derived from the context lengths.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    short_mscale: float | None = None
    long_mscale: float | None = None


@dataclass(frozen=True)
class Phi3Config:
    """Shapes and constants of one decoder, under their HF names. Contradictions raise InputError when it is made."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 1.0
    rope_scaling: RopeScaling | None = None
    original_max_position_embeddings: int = 4096
    max_position_embeddings: int = 4096
    sliding_window: int | None = None  # a query at q sees keys k with q - window < k <= q
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_ids: tuple[int, ...] = (32000,)
    pad_token_id: int | None = None
    source_model_type: str = "phi3"  # whose weight names the checkpoint uses

    def __post_init__(self) -> None:
        for name in (
            *SHAPE_KEYS,
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "original_max_position_embeddings",
            "sliding_window",
        ):
            value = getattr(self, name)
            if not (name == "sliding_window" and value is None) and (type(value) is not int or value < 1):
                raise InputError(f"config: {name} is {value!r}; it must be a whole number above 0")
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not (0 < value < math.inf):
                raise InputError(f"config: {name} is {value!r}; it must be a number above 0")
        for name in ("bos_token_id", "pad_token_id", "eos_token_ids"):
            value = getattr(self, name)
            for token in value if isinstance(value, tuple) else (value,):
                if token is not None and (type(token) is not int or not 0 <= token < self.vocab_size):
                    raise InputError(f"config: {name} has {token!r}; token ids run from 0 to {self.vocab_size - 1}")
        if type(self.tie_word_embeddings) is not bool:
            raise InputError(f"config: tie_word_embeddings is {self.tie_word_embeddings!r}; it must be true or false")
        if self.source_model_type not in MODEL_TYPES:
            raise InputError(f"config: model_type is {self.source_model_type!r}; known are {', '.join(MODEL_TYPES)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"config: num_key_value_heads {self.num_key_value_heads} does not divide num_attention_heads "
                f"{self.num_attention_heads}"
            )
        partial = self.partial_rotary_factor
        if type(partial) not in (int, float) or not 0 < partial <= 1:
            raise InputError(f"config: partial_rotary_factor is {partial!r}; it must be above 0 and at most 1")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise InputError(
                f"config: head_dim {self.head_dim} x partial_rotary_factor {partial} gives {self.rotary_dim} rotary "
                "dimensions; they must be even and at least 2"
            )
        if self.rope_scaling is not None:
            self._check_scaling(self.rope_scaling)

    def _check_scaling(self, scaling: RopeScaling) -> None:
        for name in ("short_factor", "long_factor"):
            factors = getattr(scaling, name)
            if len(factors) != self.rotary_dim // 2:
                raise InputError(
                    f"config: rope_scaling.{name} has {len(factors)} values; {self.rotary_dim} rotary dimensions need "
                    f"{self.rotary_dim // 2}"
                )
            if not all(type(f) in (int, float) and 0 < f < math.inf for f in factors):
                raise InputError(f"config: rope_scaling.{name} must hold numbers above 0 only")
        for name in ("short_mscale", "long_mscale"):
            value = getattr(scaling, name)
            if value is not None and (type(value) not in (int, float) or not 0 < value < math.inf):
                raise InputError(f"config: rope_scaling.{name} is {value!r}; it must be a number above 0")
        if self.max_position_embeddings < self.original_max_position_embeddings:
            raise InputError(
                f"config: max_position_embeddings {self.max_position_embeddings} is less than "
                f"original_max_position_embeddings {self.original_max_position_embeddings}"
            )

    @property
    def rotary_dim(self) -> int:
        """Leading dimensions of each head that RoPE turns."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def mscales(self) -> tuple[float, float]:
        """The factors on cos and sin: (short, long)."""
        if self.rope_scaling is None:
            return 1.0, 1.0
        derived = derived_mscale(
            self.max_position_embeddings / self.original_max_position_embeddings, self.original_max_position_embeddings
        )
        short, long = self.rope_scaling.short_mscale, self.rope_scaling.long_mscale
        return (derived if short is None else short), (derived if long is None else long)

    @property
    def original_context(self) -> int | None:
        """Sequences longer than this use the long factors; None where length makes no difference."""
        scaling = self.rope_scaling
        if scaling is None or self.max_position_embeddings <= self.original_max_position_embeddings:
            return None
        same = scaling.short_factor == scaling.long_factor and self.mscales[0] == self.mscales[1]
        return None if same else self.original_max_position_embeddings

    @property
    def attention_scale(self) -> float:
        """What q @ k is multiplied by."""
        return self.head_dim**-0.5

    @property
    def embedding_multiplier(self) -> float:
        """What embedded tokens are multiplied by."""
        return 1.0

    @property
    def masked_ids(self) -> tuple[int, ...]:
        """Ids whose logit is the least float32 whatever the weights say."""
        return ()

    def blocksparse(self, layer: int) -> Pattern | None:
        """The pattern of a block-sparse layer; None where attention is dense."""
        return None

    def parameters(self) -> int:
        """Exact number of weights; a tied embedding counts once."""
        heads = self.num_attention_heads + 2 * self.num_key_value_heads
        attention = self.hidden_size * self.head_dim * (heads + self.num_attention_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + self.hidden_size

    def kv_bytes_per_token(self, bytes_per_value: float) -> float:
        """Bytes of K and V that one token adds to the cache."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * bytes_per_value

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> Phi3Config:
        """Read a config.json of model_type phi3, llama, mistral or phi3small, in the layout of transformers 4 or 5.

        Raises InputError for an unknown model_type, an unknown key, or a value that means another function.
        """
        from phi3mobile.models.hf_config import read_hf

        return read_hf(hf)

    def to_hf(self) -> dict[str, Any]:
        """The config.json of the same function as model_type phi3 (or phi3small), in the layout of transformers 4 and 5."""
        from phi3mobile.models.hf_config import write_hf

        return write_hf(self)


@dataclass(frozen=True)
class Phi3SmallConfig(Phi3Config):
    """phi-3-small: LayerNorm and biases, gegelu, muP multipliers, block-sparse layers. `rms_norm_eps` is the LayerNorms'.

    A tied embedding counts once in `parameters`; the fields below are config.json's own.
    """

    gegelu_limit: float = 20.0
    blocksparse_block_size: int = 64
    blocksparse_num_local_blocks: int = 16
    blocksparse_vert_stride: int = 8
    blocksparse_homo_head_pattern: bool = False
    dense_attention_every_n_layers: int = 2  # 0: none is dense
    mup_use_scaling: bool = True
    mup_attn_multiplier: float = 1.0
    mup_embedding_multiplier: float = 10.0
    mup_width_multiplier: float = 8.0
    dummy_token_indices: tuple[int, ...] = ()  # ids that the model never says

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("block_size", "num_local_blocks", "vert_stride"):
            value = getattr(self, f"blocksparse_{name}")
            if type(value) is not int or value < 1:
                raise InputError(f"config: blocksparse_{name} is {value!r}; it must be a whole number above 0")
        every = self.dense_attention_every_n_layers
        if type(every) is not int or every < 0:
            raise InputError(f"config: dense_attention_every_n_layers is {every!r}; it must be a whole number, 0 for none")
        for name in ("gegelu_limit", "mup_attn_multiplier", "mup_embedding_multiplier", "mup_width_multiplier"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise InputError(f"config: {name} is {value!r}; it must be a number above 0")
        for name in ("blocksparse_homo_head_pattern", "mup_use_scaling"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"config: {name} is {getattr(self, name)!r}; it must be true or false")
        for token in self.dummy_token_indices:
            if type(token) is not int or not 0 <= token < self.vocab_size:
                raise InputError(f"config: dummy_token_indices has {token!r}; ids run from 0 to {self.vocab_size - 1}")
        if len(set(self.dummy_token_indices)) == self.vocab_size:
            raise InputError("config: dummy_token_indices names every id of the vocabulary; one at least must be left")
        if self.head_dim * self.num_attention_heads != self.hidden_size or self.partial_rotary_factor != 1:
            raise InputError(f"config: phi3small has heads of hidden_size / num_attention_heads, not of {self.head_dim}")
        if self.sliding_window is not None or self.source_model_type != "phi3small":
            raise InputError("config: phi3small has no sliding_window and no other layout than its own")

    @property
    def attention_scale(self) -> float:
        return self.mup_attn_multiplier / self.head_dim if self.mup_use_scaling else self.head_dim**-0.5

    @property
    def embedding_multiplier(self) -> float:
        return self.mup_embedding_multiplier

    @property
    def masked_ids(self) -> tuple[int, ...]:
        return self.dummy_token_indices

    def blocksparse(self, layer: int) -> Pattern | None:
        every = self.dense_attention_every_n_layers
        if every and (layer + 1) % every == 0:
            return None
        heads, stride = self.num_attention_heads, self.blocksparse_vert_stride
        head_step = 0 if self.blocksparse_homo_head_pattern else max(1, stride // heads)
        blocks = self.blocksparse_block_size, self.blocksparse_num_local_blocks
        return Pattern(heads, self.num_key_value_heads, *blocks, stride, head_step)

    def parameters(self) -> int:
        hidden, inner = self.hidden_size, self.intermediate_size
        projected = hidden + 2 * self.num_key_value_heads * self.head_dim
        linears = (projected + hidden + 2 * inner) * (hidden + 1) + hidden * (inner + 1)
        embeddings = self.vocab_size * hidden * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * (linears + 4 * hidden) + 2 * hidden


def derived_mscale(ratio: float, original: int) -> float:
    """LongRoPE's factor on cos and sin where the config gives none: sqrt(1 + ln(ratio) / ln(original)), at least 1."""
    return 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original))
