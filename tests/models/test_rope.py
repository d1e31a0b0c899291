"""RoPE tables against a direct evaluation, and the row choice of the branch-free graph."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny

from phi3mobile.models.config import RopeScaling
from phi3mobile.models.presets import SHAPES, preset
from phi3mobile.models.rope import apply_rope, rope_rows, rope_tables, short_rows

FACTORS = Path(__file__).parents[3] / "shared" / "facts" / "longrope-factors.json"


def angle(config, factors, position, index):
    return position / (factors[index] * config.rope_theta ** (2 * index / config.rotary_dim))


def test_plain_table_is_cos_and_sin():
    config = tiny("tiny-mha")
    cos, sin = rope_tables(config, 50)
    assert cos.shape == sin.shape == (50, 8) and cos.dtype == torch.float32
    for position, index in ((0, 0), (49, 0), (49, 7), (17, 3)):
        expected = angle(config, [1.0] * 8, position, index)
        assert cos[position, index].item() == pytest.approx(math.cos(expected), abs=1e-7)
        assert sin[position, index].item() == pytest.approx(math.sin(expected), abs=1e-7)


def test_table_is_short_rows_then_long_rows():
    config = tiny("tiny-longrope")
    cos, sin = rope_tables(config, 100)
    assert cos.shape == (32 + 100, 8)
    mscale = math.sqrt(1 + math.log(8) / math.log(32))
    short, long = config.rope_scaling.short_factor, config.rope_scaling.long_factor
    assert cos[31, 2].item() == pytest.approx(mscale * math.cos(angle(config, short, 31, 2)), abs=1e-6)
    assert sin[32 + 90, 5].item() == pytest.approx(mscale * math.sin(angle(config, long, 90, 5)), abs=1e-6)
    assert cos[0, 0].item() == cos[32, 0].item() == pytest.approx(mscale)  # at every length


def test_contexts_below_the_switch_still_hold_both_regimes():
    config = tiny("tiny-longrope")
    assert rope_tables(config, 20)[0].shape == (40, 8)
    assert rope_rows(config, 20, torch.arange(3), True).tolist() == [20, 21, 22]


def test_equal_lists_make_one_table():
    factors = tuple(float(i + 1) for i in range(8))
    config = tiny("tiny-longrope", rope_scaling=RopeScaling(factors, factors))
    assert config.original_context is None
    assert rope_tables(config, 100)[0].shape == (100, 8)
    assert rope_rows(config, 100, torch.arange(90, 100)).tolist() == list(range(90, 100))


def test_released_mini_128k_numbers():
    if not FACTORS.exists():
        pytest.skip(f"{FACTORS} is not there")
    for name, key in (
        ("phi-3-mini-128k", "Phi-3-mini-128k-instruct (Jul-2024 revision, current main)"),
        ("phi-3.5-mini", "Phi-3.5-mini-instruct"),
        ("phi-4-mini", "Phi-4-mini-instruct"),
    ):
        table = json.loads(FACTORS.read_text())[key]
        config = preset(name, RopeScaling(tuple(table["short_factor"]), tuple(table["long_factor"])))
        assert config.mscales == pytest.approx((1.1902380714238083, 1.1902380714238083), abs=1e-15)
        cos, _ = rope_tables(config, 5000)
        assert cos.shape == (4096 + 5000, 48)
        expected = config.mscales[1] * math.cos(angle(config, table["long_factor"], 4999, 40))
        assert cos[4096 + 4999, 40].item() == pytest.approx(expected, abs=1e-6)
    assert SHAPES["phi-4-mini"].rotary_dim == 96


@given(start=st.integers(0, 99), length=st.integers(1, 100))
def test_rows_switch_with_the_end_of_the_sequence(start, length):
    config = tiny("tiny-longrope")
    end = min(start + length, 100)
    positions = torch.arange(start, end)
    rows = rope_rows(config, 100, positions)
    offset = 32 if end > 32 else 0
    assert rows.tolist() == [p + offset for p in range(start, end)]
    assert torch.equal(rows, rope_rows(config, 100, positions, torch.tensor([end > 32])))
    assert short_rows(config, 100) == 32


def test_row_choice_traces_without_a_branch():
    config = tiny("tiny-longrope")

    class Rows(torch.nn.Module):
        def forward(self, positions):
            return rope_rows(config, 100, positions)

    length = torch.export.Dim("length", min=2, max=100)
    program = torch.export.export(Rows(), (torch.arange(4),), dynamic_shapes=({0: length},)).module()
    for start, end in ((0, 5), (20, 32), (20, 33), (40, 60)):
        positions = torch.arange(start, end)
        assert torch.equal(program(positions), rope_rows(config, 100, positions))


@settings(deadline=None)
@given(heads=st.integers(1, 3), half=st.sampled_from([2, 4, 6]), rest=st.sampled_from([0, 4]), seed=st.integers(0, 99))
def test_rotation_is_complex_multiplication_and_leaves_the_rest(heads, half, rest, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 5, heads, 2 * half + rest, generator=generator)
    theta = torch.randn(5, half, generator=generator)
    out = apply_rope(x, theta.cos(), theta.sin())
    z = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.polar(torch.ones(5, half), theta)[:, None]
    assert torch.allclose(out[..., : 2 * half], torch.cat([z.real, z.imag], -1), atol=1e-6)
    assert torch.equal(out[..., 2 * half :], x[..., 2 * half :])
