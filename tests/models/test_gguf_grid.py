"""The integers of GGUF's blocks are what gguf's own dequantizing computes with."""

import gguf
import numpy as np
import pytest
import torch

from phi3mobile.models.gguf_grid import gguf_grid
from phi3mobile.models.grid import Grid, stacked_grids

KIND = gguf.GGMLQuantizationType


def random_blocks(kind: KIND, rows: int = 5, width: int = 512) -> np.ndarray:
    """Any bytes are blocks, but for float16 scales that are NaN or infinite."""
    columns, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(3).integers(0, 256, (rows, width // columns, size), dtype=np.uint8)
    halves = 1 if kind == KIND.Q4_0 else 2
    blocks[..., : 2 * halves] = (
        np.random.default_rng(4).normal(0, 0.01, (*blocks.shape[:2], halves)).astype(np.float16).view(np.uint8)
    )
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("kind", [KIND.Q4_0, KIND.Q4_1, KIND.Q4_K])
def test_the_integers_give_what_gguf_dequantizes(kind):
    data = random_blocks(kind)
    grid = gguf_grid(kind, data)
    assert grid.group == 32 and grid.codes.dtype == torch.int8 and grid.codes.shape == (5, 512)
    assert int(grid.codes.max()) - int(grid.codes.min()) == 15
    expected = torch.from_numpy(gguf.dequantize(data, kind))
    assert torch.allclose(grid.values(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", [KIND.Q5_K, KIND.Q6_K, KIND.Q8_0, KIND.IQ4_NL, KIND.Q2_K, KIND.F16])
def test_other_types_are_no_such_grid(kind):
    assert gguf_grid(kind, np.zeros((1, 4), np.uint8)) is None


def test_grids_of_other_groups_are_stacked_by_the_finer_one():
    generator = torch.Generator().manual_seed(0)

    def grid(rows: int, group: int) -> Grid:
        codes = torch.randint(-8, 8, (rows, 128), generator=generator, dtype=torch.int8)
        return Grid(codes, *(torch.randn(rows, 128 // group, generator=generator) for _ in range(2)))

    parts = [grid(2, 64), grid(3, 32)]
    whole = stacked_grids(parts)
    assert whole.group == 32 and torch.equal(whole.values(), torch.cat([part.values() for part in parts]))
    assert torch.equal(whole.rows(torch.tensor([4, 0])).values(), whole.values()[[4, 0]])
    assert stacked_grids([Grid(torch.zeros(1, 96, dtype=torch.int8), *torch.ones(2, 1, 2)), parts[0].rows(slice(1))]) is None
