"""The choices that are compared, and what each weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.models.config import DecoderConfig

FLOAT = 16  # bits that mean: not quantized
METHODS = {
    "absmax": "nearest code, the scale from the largest weight of the group",
    "clipped": "the same with a float16 scale: Core AI's own recipes, coreai-opt's symmetric_with_clipping",
    "rtn": "nearest code, the scale with the least squared error of the weights",
    "gptq": "rounded for the least squared error of the outputs on calibration text",
}
ALLOWED: dict[str, tuple] = {
    "bits": (16, 8, 6, 5, 4, 3, 2),
    "group": (0, 32, 64, 128),
    "method": tuple(METHODS),
    "activations": ("float", "int8"),
    "kv": (32, 16, 8),
    "tables": (16, 8, 4),
}
SCALE_BITS = 16


@dataclass(frozen=True)
class Setting:
    """One way to quantize. group 0: one scale a row. tables: bits of embedding and head, one scale a row at 8, groups at 4."""

    bits: int = 4
    group: int = 32
    method: str = "rtn"
    activations: str = "float"
    kv: int = 32
    tables: int = FLOAT

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value not in ALLOWED[name]:
                raise InputError(f"{name} {value}: known are {', '.join(map(str, ALLOWED[name]))}")

    @property
    def label(self) -> str:
        grid = f"{self.bits} bit, {f'groups of {self.group}' if self.group else 'a scale per row'}, {self.method}"
        parts = [grid if self.bits != FLOAT else "float weights"]
        parts += ["int8 activations"] if self.activations == "int8" else []
        parts += [f"{self.kv}-bit KV cache"] if self.kv != 32 else []
        parts += [f"{self.tables}-bit embedding and head"] if self.tables != FLOAT else []
        return ", ".join(parts)


def default_settings() -> list[Setting]:
    """One choice at a time around 4 bit in groups of 32; then all together as the phone has them."""
    base = Setting()
    plain = replace(base, bits=FLOAT)
    widths = [replace(base, bits=bits, method=method) for method in ("absmax", "rtn", "gptq") for bits in (8, 6, 5, 4, 3, 2)]
    groups = [replace(base, group=group, method=method) for method in ("rtn", "gptq") for group in (64, 128, 0)]
    others = [
        replace(plain, activations="int8"),
        replace(plain, kv=16),
        replace(plain, kv=8),
        replace(plain, tables=8),
        replace(plain, tables=4),
    ]
    phone = [replace(base, method=method, activations="int8", kv=8, tables=8) for method in ("rtn", "gptq")]
    return [*widths, *groups, *others, *phone]


def grid_settings(**axes: Sequence[Any]) -> list[Setting]:
    """Every combination of the values given; what is not given stays as in Setting(). InputError for values not known."""
    names = [name for name in ALLOWED if axes.get(name)]
    chosen = [Setting(**dict(zip(names, values, strict=True))) for values in product(*(axes[name] for name in names))]
    # Unquantized weights have neither group nor method.
    one = {replace(s, group=32, method="rtn") if s.bits == FLOAT else s: None for s in chosen}
    return list(one)


def weigh(setting: Setting, config: DecoderConfig, matrices: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Bytes of all weights, and bits per weight of the decoder's `matrices` ([N, K] each) and of all, scales included."""
    decoder = sum(rows * width for rows, width in matrices)
    bits = sum(rows * _row_bits(width, setting.bits, setting.group) for rows, width in matrices)
    count = 1 if config.tie_word_embeddings else 2
    tables = count * config.vocab_size * config.hidden_size
    group = 32 if setting.tables == 4 else 0
    table_bits = count * config.vocab_size * _row_bits(config.hidden_size, setting.tables, group)
    total = bits + table_bits
    return {
        "bits_per_weight": round(bits / decoder, 3),
        "bits_per_weight_all": round(total / (decoder + tables), 3),
        "bytes": total // 8,
    }


def _row_bits(width: int, bits: int, group: int) -> int:
    return width * bits if bits == FLOAT else width * bits + SCALE_BITS * (width // (group or width))
