"""Packed checkpoints as the hub's tools write them, in plain loops from the formats' own documentation.

Each maker takes a weight's shape and gives the stored tensors by their endings, and the float32 values that they stand for.
"""

from __future__ import annotations

import json

import numpy as np
import torch

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
FP4 = (0.0, 0.0052, 0.6667, 1.0, 0.3333, 0.5, 0.1667, 0.25, 0.0, -0.0052, -0.6667, -1.0, -0.3333, -0.5, -0.1667, -0.25)
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # which of 8 columns nibble i of a word holds


def word(codes: list[int], bits: int) -> int:
    """Codes, the first in the lowest bits, as a signed int32."""
    value = sum(code << (bits * place) for place, code in enumerate(codes))
    return value - (1 << 32) if value >= 1 << 31 else value


def along_rows(codes: np.ndarray, bits: int) -> torch.Tensor:
    """[K, N] -> int32 [K * bits / 32, N]: words run down."""
    return along_columns(codes.T, bits).t().contiguous()


def along_columns(codes: np.ndarray, bits: int) -> torch.Tensor:
    """[N, K] -> int32 [N, K * bits / 32], the last word filled up with zeros."""
    count = 32 // bits
    rows = [[word([int(code) for code in row[at : at + count]], bits) for at in range(0, len(row), count)] for row in codes]
    return torch.tensor(rows, dtype=torch.int32)


def random_grid(rows: int, width: int, group: int, bits: int, seed: int):
    """codes [K, N], zeros and scales [K/group, N]."""
    random = np.random.default_rng(seed)
    codes, zeros = (random.integers(0, 2**bits, (size, rows)) for size in (width, width // group))
    return codes, np.maximum(zeros, 1), random.uniform(0.01, 0.05, (width // group, rows)).astype(np.float16)


def meant(codes, zeros, scales, index) -> torch.Tensor:
    """codes [K, N], zeros and scales [groups, N], the group of each column -> float32 [N, K]."""
    columns = [zip(codes[k], zeros[group], scales[group], strict=True) for k, group in enumerate(index)]
    return torch.tensor([[(int(code) - int(zero)) * float(scale) for code, zero, scale in column] for column in columns]).t()


def awq(rows: int, width: int, group: int = 32, seed: int = 0):
    codes, zeros, scales = random_grid(rows, width, group, 4, seed)

    def packed(values: np.ndarray) -> torch.Tensor:
        blocks = [[row[at : at + 8] for at in range(0, rows, 8)] for row in values]
        words = [[word([int(block[column]) for column in AWQ_COLUMNS], 4) for block in row] for row in blocks]
        return torch.tensor(words, dtype=torch.int32)

    values = meant(codes, zeros, scales, np.arange(width) // group)
    return {"qweight": packed(codes), "qzeros": packed(zeros), "scales": torch.from_numpy(scales)}, values


def gptq(rows: int, width: int, group: int = 32, bits: int = 4, seed: int = 0, desc_act: bool = False, version: int = 1):
    codes, zeros, scales = random_grid(rows, width, group, bits, seed)
    index = np.arange(width) // group
    if desc_act:
        index = np.random.default_rng(seed + 1).permutation(index)
    values = meant(codes, zeros, scales, index)
    stored = {
        "qweight": along_rows(codes, bits),
        "qzeros": along_columns(zeros - (version == 1), bits),
        "scales": torch.from_numpy(scales),
        "g_idx": torch.from_numpy(index.astype(np.int32)),
    }
    return stored, values


def compressed(rows: int, width: int, group: int = 32, bits: int = 4, seed: int = 0, symmetric: bool = True):
    """pack-quantized: signed integers are stored with half their range added, zero points packed down the rows."""
    codes, zeros, scales = (part.T for part in random_grid(rows, width, group, bits, seed))
    half = 2 ** (bits - 1)
    zeros = np.full_like(zeros, half) if symmetric else zeros
    values = meant(codes.T, zeros.T, scales.T, np.arange(width) // group)
    stored = {
        "weight_packed": along_columns(codes, bits),
        "weight_scale": torch.from_numpy(scales.copy()),
        "weight_shape": torch.tensor([rows, width]),
    }
    if not symmetric:
        stored["weight_zero_point"] = along_rows(zeros, bits)
    return stored, values


def int_quantized(rows: int, width: int, seed: int = 0):
    random = np.random.default_rng(seed)
    codes = random.integers(-128, 128, (rows, width)).astype(np.int8)
    scales = random.uniform(1e-3, 5e-3, (rows, 1)).astype(np.float32)
    stored = {"weight": torch.from_numpy(codes), "weight_scale": torch.from_numpy(scales)}
    return stored, torch.from_numpy(codes.astype(np.float32) * scales)


def bitsandbytes(rows: int, width: int, kind: str = "nf4", nested: bool = False, seed: int = 0):
    """Blocks of 64 values of the flat matrix; the first of a pair in the high nibble."""
    random, levels = np.random.default_rng(seed), np.array(NF4 if kind == "nf4" else FP4, np.float32)
    codes = random.integers(0, 16, rows * width)
    blocks = rows * width // 64
    largest = random.uniform(0.02, 0.2, blocks).astype(np.float32)
    told = {"quant_type": kind, "blocksize": 64, "dtype": "float16", "shape": [rows, width]}
    stored = {}
    if nested:
        table = np.linspace(-1, 1, 256, dtype=np.float32)
        bytes_, outer = (
            random.integers(0, 256, blocks).astype(np.uint8),
            random.uniform(0.01, 0.05, -(-blocks // 256)).astype(np.float32),
        )
        largest = np.array([table[byte] * outer[at // 256] + np.float32(0.1) for at, byte in enumerate(bytes_)], np.float32)
        told |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.1}
        stored = {"weight.nested_absmax": torch.from_numpy(outer), "weight.nested_quant_map": torch.from_numpy(table)}
    values = [float(levels[code] * largest[at // 64]) for at, code in enumerate(codes)]
    pairs = [(int(codes[at]) << 4) | int(codes[at + 1]) for at in range(0, len(codes), 2)]
    state = np.frombuffer(json.dumps(told).encode(), np.uint8).copy()
    stored |= {
        "weight": torch.tensor(pairs, dtype=torch.uint8)[:, None],
        "weight.absmax": torch.from_numpy(bytes_ if nested else largest),
        "weight.quant_map": torch.from_numpy(levels),
        f"weight.quant_state.bitsandbytes__{kind}": torch.from_numpy(state),
    }
    return stored, torch.tensor(values).view(rows, width)


def int8_rows(rows: int, width: int, seed: int = 0):
    """LLM.int8."""
    random = np.random.default_rng(seed)
    codes, largest = (
        random.integers(-127, 128, (rows, width)).astype(np.int8),
        random.uniform(0.1, 0.2, rows).astype(np.float32),
    )
    stored = {
        "weight": torch.from_numpy(codes),
        "SCB": torch.from_numpy(largest),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return stored, torch.from_numpy(codes.astype(np.float32) * (largest[:, None] / np.float32(127)))


def group_of(**weights) -> dict:
    """compressed-tensors' config_groups."""
    return {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": True, **weights}}}


# name -> settings of config.json, maker
FORMATS = {
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}, awq),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}, gptq),
    "gptq, 8 bit": ({"quant_method": "gptq", "bits": 8, "group_size": 32}, lambda *size, seed: gptq(*size, bits=8, seed=seed)),
    "gptq, desc_act": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
        lambda *size, seed: gptq(*size, desc_act=True, seed=seed),
    ),
    "gptq_v2": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"},
        lambda *size, seed: gptq(*size, version=2, seed=seed),
    ),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": group_of()},
        compressed,
    ),
    "compressed-tensors, asymmetric": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": group_of(symmetric=False)},
        lambda *size, seed: compressed(*size, symmetric=False, seed=seed),
    ),
    "compressed-tensors, 8 bit packed": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": group_of(num_bits=8)},
        lambda *size, seed: compressed(*size, bits=8, seed=seed),
    ),
    "compressed-tensors, int8": (
        {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": group_of(num_bits=8)},
        int_quantized,
    ),
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, bitsandbytes),
    "nf4, nested": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        lambda *size, seed: bitsandbytes(*size, nested=True, seed=seed),
    ),
    "fp4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        lambda *size, seed: bitsandbytes(*size, kind="fp4", seed=seed),
    ),
    "LLM.int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, int8_rows),
}


def packed_folder(tensors: dict[str, torch.Tensor], make) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors of a checkpoint with its layers' matrices packed, and what they stand for by name."""
    stored, values = {}, {}
    for seed, (name, tensor) in enumerate(tensors.items()):
        if not name.startswith("model.layers.") or tensor.dim() != 2:
            stored[name] = values[name] = tensor
            continue
        parts, values[name] = make(*tensor.shape, seed=seed)
        module = name.removesuffix(".weight")
        stored |= {f"{module}.{end}": part.contiguous() for end, part in parts.items()}
    return stored, values
