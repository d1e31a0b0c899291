"""Matrices in tiles: every form read back as it was written, and bytes as core/kernels/tiles.h states them."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from phi3mobile.engines.tiles import CODES, Codes, TileForm, from_tiles, to_tiles
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.targets.executorch.tiled import packed_of, tiles_of
from phi3mobile.models.quantized import Packed, pack_nibbles


def matrix_of(form: TileForm, rows: int, random: np.random.Generator) -> Codes:
    if form.bits == 8:
        return Codes(random.integers(-128, 128, (rows, form.width), np.int8), random.random((rows, 1), np.float32))
    scales = random.integers(0x3780, 0x4000, (rows, form.groups), np.uint16)
    codes = random.integers(0, 256, (rows, form.width // 2), np.uint8)
    offsets = random.integers(-127, 128, (rows, form.groups), np.int8), random.random((rows, 1), np.float32)
    return Codes(codes, scales, *(offsets if form.offsets else ()))


@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from([32, 64, 96]), st.sampled_from("458"), st.integers(0, 2**32 - 1))
def test_tiles_hold_every_code_scale_and_offset(rows: int, groups: int, group: int, kind: str, seed: int):
    width = groups * group
    form = TileForm(width, width, 8) if kind == "8" else TileForm(width, group, 4, kind == "5")
    matrix = matrix_of(form, rows, np.random.default_rng(seed))
    data = to_tiles(form, matrix)
    assert data.dtype == np.uint8 and len(data) == form.matrix_bytes(rows) and len(data) % 64 == 0
    found = from_tiles(form, data, rows)
    for name in ("codes", "scales", "offsets", "steps"):
        given_, read = getattr(matrix, name), getattr(found, name)
        assert (given_ is None) == (read is None) and (given_ is None or np.array_equal(given_, read)), name


def test_bytes_lie_where_the_header_says():
    form = TileForm(64, 32, 4, True)
    matrix = matrix_of(form, 17, np.random.default_rng(0))
    tile = to_tiles(form, matrix).reshape(2, -1)[0]
    assert tile[:64].view(np.uint16)[16 + 3] == matrix.scales[3, 1]  # row 3, second group
    assert tile[64:128].view(np.float32)[5] == matrix.steps[5, 0]
    assert tile[128:192].view(np.int8)[16 + 7] == matrix.offsets[7, 1]  # row 7, second group
    codes = tile[192:]
    row, column = 9, 32 + 16 + 4 * 2 + 3  # second block, high half, v = 2, i = 3
    assert codes[256 + 64 * 2 + 4 * row + 3] >> 4 == matrix.codes[row, column // 2] >> 4  # an odd column


def test_packed_matrices_come_back():
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (20, 96), generator=random, dtype=torch.int8)
    scales = (torch.rand(20, 3, generator=random) + 0.1).bfloat16()
    steps = Packed(8, 3, torch.randint(-127, 128, (20, 3), generator=random, dtype=torch.int8), torch.rand(20, 1))
    wide = Packed(8, 96, torch.randint(-128, 128, (20, 96), generator=random, dtype=torch.int8), torch.rand(20, 1))
    for matrix in (Packed(4, 32, pack_nibbles(codes), scales), Packed(4, 32, pack_nibbles(codes), scales, offsets=steps), wide):
        form = TileForm(96, matrix.group, matrix.bits, matrix.offsets is not None)
        found = packed_of(form, tiles_of(matrix), 20)
        assert found.form == matrix.form and torch.equal(found.dequantized(), matrix.dequantized())


def test_inputs_are_rounded_in_the_tiles_columns():
    assert find_recipe("host").activation_group == CODES and find_recipe("android-cpu").activation_group is None
