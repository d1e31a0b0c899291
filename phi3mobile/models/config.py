"""What every decoder's config has, under HF field names: shapes, constants, contradictions, derived numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from phi3mobile.errors import InputError
from phi3mobile.models.blocksparse import Pattern
from phi3mobile.models.pieces import Block
from phi3mobile.models.tensors import BIAS, HEAD, Tensor
from phi3mobile.models.vision_config import VisionConfig

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
class DecoderConfig:
    """Shapes and constants of one decoder, under their HF names. Contradictions raise InputError when it is made.

    A family's config (models/families) adds its own fields, and says what its blocks and tensors are and how its
    config.json is written.
    """

    family: ClassVar[str]  # the family's file
    layouts: ClassVar[tuple[str, ...]]  # model types whose weight names the family reads

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
    source_model_type: str = ""  # whose weight names the checkpoint uses; default: the family's own

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
        if not self.source_model_type:
            object.__setattr__(self, "source_model_type", self.family)
        if self.source_model_type not in self.layouts:
            raise InputError(f"config: model_type is {self.source_model_type!r}; known are {', '.join(self.layouts)}")
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
    def logit_divisor(self) -> float:
        """What logits are divided by."""
        return 1.0

    @property
    def masked_ids(self) -> tuple[int, ...]:
        """Ids whose logit is the least float32 whatever the weights say."""
        return ()

    @property
    def head_bias(self) -> str | None:
        """The name of the head's bias, if it has one."""
        return next((tensor.name for tensor in self.tensors().values() if (tensor.role, tensor.of) == (BIAS, HEAD)), None)

    @property
    def vision(self) -> VisionConfig | None:
        """The tower whose rows may take the place of embedded tokens; None where the model takes no pictures."""
        return None

    def vision_tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the tower by its name, with shape; {} without one. They have no roles and are not among `tensors`."""
        return {} if self.vision is None else self.vision.tensors()

    def blocksparse(self, layer: int) -> Pattern | None:
        """The pattern of a block-sparse layer; None where attention is dense."""
        return self.block(layer).pattern

    def parameters(self) -> int:
        """Exact number of the decoder's weights; a tied embedding counts once."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors().values())

    def all_parameters(self) -> int:
        """Exact number of weights that a checkpoint must hold: the decoder's, and the vision tower's if there is one."""
        return self.parameters() + (0 if self.vision is None else self.vision.parameters())

    def kv_bytes_per_token(self, bytes_per_value: float) -> float:
        """Bytes of K and V that one token adds to the cache."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * bytes_per_value

    def tensors(self) -> dict[str, Tensor]:
        """Every weight by its name, in model order, with shape and role. A tied head has no tensor of its own."""
        raise NotImplementedError

    def role(self, name: str) -> str:
        """What a weight is for. A tied head is asked for by its name and has no tensor of its own."""
        found = self.tensors().get(name)
        return HEAD if found is None else found.role

    def tensor(self, role: str, layer: int | None = None, expert: int | None = None) -> Tensor:
        """The weight of that role, of one layer or of none; of a mixture's experts the first one's, if not said which."""
        found = _by_role(self)
        return found[role, layer, expert] if (role, layer, expert) in found else found[role, layer, 0]

    def block(self, layer: int) -> Block:
        """What the block `layer` is made of."""
        raise NotImplementedError

    def to_hf(self) -> dict[str, Any]:
        """The config.json of the same function under the family's own model_type, in the layout of transformers 4 and 5."""
        raise NotImplementedError


@lru_cache(maxsize=16)
def _by_role(config: DecoderConfig) -> dict[tuple[str, int | None, int | None], Tensor]:
    return {(tensor.role, tensor.layer, tensor.expert): tensor for tensor in config.tensors().values() if tensor.role != BIAS}


def derived_mscale(ratio: float, original: int) -> float:
    """LongRoPE's factor on cos and sin where the config gives none: sqrt(1 + ln(ratio) / ln(original)), at least 1."""
    return 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original))


def ramp(count: int, top: float) -> RopeScaling:
    """Made-up non-decreasing factors, for tiny test models only."""
    long = tuple(round(top ** (i / (count - 1)), 6) for i in range(count))
    return RopeScaling(tuple(round(1 + (f - 1) / 8, 6) for f in long), long)
