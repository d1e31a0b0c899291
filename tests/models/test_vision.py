"""phi-3-vision's views and rows: sizes of the reference, its values by PIL and torch, its order by a plain loop."""

import subprocess
import sys
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from phi3mobile.errors import InputError
from phi3mobile.models import resample
from phi3mobile.models.vision import MEAN, STD, grid_of, merge, plan_crops, rows_of, views

# width, height, num_crops, resized, padded, grid (across, down), tokens
REFERENCE = [
    (336, 336, 16, (1344, 1344), (1344, 1344), (4, 4), 2509),
    (336, 336, 4, (672, 672), (672, 672), (2, 2), 757),
    (336, 336, 1, (336, 336), (336, 336), (1, 1), 313),
    (1920, 1080, 16, (1680, 945), (1680, 1008), (5, 3), 2353),
    (1080, 1920, 16, (945, 1680), (1008, 1680), (3, 5), 2377),
    (4032, 3024, 16, (1344, 1008), (1344, 1008), (4, 3), 1921),
    (4032, 3024, 4, (672, 504), (672, 672), (2, 2), 757),
    (640, 480, 4, (672, 504), (672, 672), (2, 2), 757),
    (1170, 2532, 16, (776, 1680), (1008, 1680), (3, 5), 2377),
    (1000, 667, 16, (1344, 896), (1344, 1008), (4, 3), 1921),
    (1023, 1024, 16, (1342, 1344), (1344, 1344), (4, 4), 2509),
    (1025, 1024, 16, (1344, 1342), (1344, 1344), (4, 4), 2509),
    (8000, 50, 16, (5376, 33), (5376, 336), (16, 1), 2473),
    (50, 8000, 16, (33, 5376), (336, 5376), (1, 16), 2653),
    (2100, 300, 9, (2352, 336), (2352, 336), (7, 1), 1177),
    (280, 250, 16, (1344, 1199), (1344, 1344), (4, 4), 2509),
]


@pytest.mark.parametrize(("width", "height", "num_crops", "resized", "padded", "grid", "tokens"), REFERENCE)
def test_the_plans_of_the_reference(width, height, num_crops, resized, padded, grid, tokens):
    plan = plan_crops(width, height, num_crops)
    assert (plan.resized, plan.padded, plan.grid, plan.tokens) == (resized, padded, grid, tokens)
    assert plan.views == 1 + grid[0] * grid[1] and plan.num_crops == num_crops


@pytest.mark.parametrize(("grid", "tokens"), [(row[5], row[6]) for row in REFERENCE])
def test_a_grid_is_found_by_its_tokens(grid, tokens):
    assert rows_of(grid_of(tokens)) == tokens and grid_of(tokens) == grid
    with pytest.raises(InputError, match=rf"no picture takes {tokens - 1} tokens; the nearest sizes are .*{tokens}"):
        grid_of(tokens - 1)


@pytest.mark.parametrize("tokens", [-5, 0, 312, 10**9])
def test_no_picture_is_so_small_or_so_large(tokens):
    with pytest.raises(InputError, match=f"no picture takes {tokens} tokens"):
        grid_of(tokens)


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 64))
def test_a_plan_keeps_to_its_crops(width, height, num_crops):
    if max(width, height) > 336 * num_crops * min(width, height):
        with pytest.raises(InputError, match="too narrow"):
            plan_crops(width, height, num_crops)
        return
    plan = plan_crops(width, height, num_crops)
    across, down = plan.grid
    assert 1 <= across * down <= num_crops and plan.padded == (336 * across, 336 * down)
    assert max(plan.resized) == max(plan.padded)
    assert all(0 <= pad - size < 336 for pad, size in zip(plan.padded, plan.resized, strict=True))
    assert plan.tokens == (across * down + 1) * 144 + 1 + (down + 1) * 12
    turned = plan_crops(height, width, num_crops)
    assert turned.grid == (down, across) and turned.resized == plan.resized[::-1]


def test_sizes_are_truncated_in_float64_as_the_reference_does():
    """Where exact arithmetic would give one pixel more; the grid is the same."""
    traps = 0
    for num_crops in (4, 16):
        for width in range(200, 500, 5):
            for height in range(width - width // 3, width + 1):
                plan = plan_crops(width, height, num_crops)
                across = plan.grid[0]
                exact = int(Fraction(336 * across * height, width))
                reference = int(336 * across / (width / height))
                assert plan.resized == (336 * across, reference) and 0 <= exact - reference <= 1
                assert plan.grid[1] == -(-exact // 336)
                traps += exact != reference
    assert traps >= 15


@pytest.mark.parametrize(
    ("width", "height", "num_crops", "message"),
    [
        (0, 5, 4, "0 × 5 pixels"),
        (5, 0, 4, "at least one pixel"),
        (-3, 5, 4, "-3 × 5"),
        (5, 5, 0, "num_crops 0: give 1 to 1024"),
        (5, 5, -1, "num_crops -1"),
        (5, 5, 5000, "num_crops 5000"),
        (5377, 1, 16, "5377 × 1 pixels is too narrow: with num_crops 16 the long side may be 5376 times the short one"),
        (1, 1345, 4, "1344 times"),
    ],
)
def test_a_plan_that_cannot_be(width, height, num_crops, message):
    with pytest.raises(InputError, match=message) as error:
        plan_crops(width, height, num_crops)
    assert "\n" not in str(error.value)


@cache
def sizes_of_all_grids():
    """(num_crops, grid) -> (width, height): every grid that occurs with 1, 4 and 16 crops, each by one small picture."""
    found = {}
    sizes = [(width, height) for width in range(6, 100, 3) for height in range(5, 30, 2)]
    for num_crops in (1, 4, 16):
        for width, height in [*sizes, *((height, width) for width, height in sizes)]:
            found.setdefault((num_crops, plan_crops(width, height, num_crops).grid), (width, height))
    return found


def test_all_grids_are_there():
    grids = {num_crops: {grid for crops, grid in sizes_of_all_grids() if crops == num_crops} for num_crops in (1, 4, 16)}
    assert grids[1] == {(1, 1)}
    assert grids[4] == {(2, 2), (2, 1), (3, 1), (4, 1), (1, 2), (1, 3), (1, 4)}
    assert {(4, 4), (5, 3), (6, 2), (8, 2), (9, 1), (16, 1), (1, 16)} <= grids[16]


def reference_views(picture, num_crops):
    """Steps of the released processor with PIL and torch: float32 [views, 3, 336, 336], and the padded picture."""
    image = Image.fromarray(picture)
    tall = image.width < image.height
    if tall:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    plan = plan_crops(image.width, image.height, num_crops)
    image = image.resize(plan.resized, Image.Resampling.BILINEAR)
    white = Image.new("RGB", plan.padded, (255, 255, 255))
    white.paste(image, (0, (plan.padded[1] - image.height) // 2))
    if tall:
        white = white.transpose(Image.Transpose.TRANSPOSE)
    padded = np.array(white)
    values = torch.from_numpy(padded).permute(2, 0, 1).float().div(255)
    values = values.sub(torch.tensor(MEAN)[:, None, None]).div(torch.tensor(STD)[:, None, None])
    whole = torch.nn.functional.interpolate(values[None], size=(336, 336), mode="bicubic", align_corners=False)
    down, across = padded.shape[0] // 336, padded.shape[1] // 336
    crops = values.reshape(3, down, 336, across, 336).permute(1, 3, 0, 2, 4).reshape(-1, 3, 336, 336)
    return torch.cat([whole, crops]).numpy(), padded


@pytest.mark.parametrize(("num_crops", "grid"), sorted(sizes_of_all_grids()))
def test_views_of_every_grid(num_crops, grid):
    width, height = sizes_of_all_grids()[num_crops, grid]
    picture = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    plan, found = views(picture, num_crops)
    assert plan == plan_crops(width, height, num_crops)
    shown = list(found)
    expected, _ = reference_views(picture, num_crops)
    assert len(shown) == plan.views == len(expected)
    assert all(view.shape == (3, 336, 336) and view.dtype == np.float32 and view.flags.c_contiguous for view in shown)
    assert np.abs(shown[0] - expected[0]).max() < 1e-5
    assert np.array_equal(shown[1:], expected[1:])  # bit by bit


@pytest.mark.parametrize(("width", "height"), [(280, 250), (250, 280), (1000, 667), (667, 1000)])
def test_padding_is_white_above_and_below_or_at_the_sides(width, height):
    picture = np.zeros((height, width, 3), np.uint8)
    plan, found = views(picture, 16)
    across, down = plan.grid
    crops = np.stack(list(found)[1:]).reshape(down, across, 3, 336, 336)
    padded = crops.transpose(2, 0, 3, 1, 4).reshape(3, *plan.padded[::-1])
    white, black = ((np.float32(level) - np.float32(MEAN)) / np.float32(STD) for level in (1, 0))
    top, left = ((pad - size) // 2 for pad, size in zip(plan.padded[::-1], plan.resized[::-1], strict=True))
    shown = np.zeros(plan.padded[::-1], bool)
    shown[top : top + plan.resized[1], left : left + plan.resized[0]] = True
    assert shown.sum() < shown.size and (left == 0) == (width > height)
    assert (padded[:, shown] == black[:, None]).all() and (padded[:, ~shown] == white[:, None]).all()


def test_views_without_pillow_have_the_same_bits(monkeypatch):
    picture = np.random.default_rng(0).integers(0, 256, (333, 211, 3), np.uint8)
    expected = list(views(picture, 4)[1])
    monkeypatch.setattr(resample, "has_pillow", lambda: False)
    assert np.array_equal(list(views(picture, 4)[1]), expected)


def test_views_take_any_strides():
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    turned = picture[::-1].transpose(1, 0, 2)
    assert np.array_equal(list(views(turned, 4)[1]), list(views(turned.copy(), 4)[1]))


@pytest.mark.parametrize(
    "picture", [np.zeros((5, 5, 3)), np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8)]
)
def test_views_of_another_array(picture):
    with pytest.raises(InputError, match=r"uint8 \[height, width, 3\]|at least one pixel"):
        views(picture, 4)


def plain_rows(features, grid, sub_separator, global_separator):
    """Tokens one by one, by the patch's place in the whole picture."""
    across, down = grid

    def block(first, across, down):
        rows = []
        for y in range(12 * down):
            for x in range(12 * across):
                token = []
                for patch_y, patch_x in ((2 * y, 2 * x), (2 * y, 2 * x + 1), (2 * y + 1, 2 * x), (2 * y + 1, 2 * x + 1)):
                    view = first + patch_y // 24 * across + patch_x // 24
                    token.append(features[view, patch_y % 24 * 24 + patch_x % 24])
                rows.append(np.concatenate(token))
            rows.append(sub_separator)
        return rows

    return np.stack([*block(1, across, down), global_separator, *block(0, 1, 1)])


@pytest.mark.parametrize("grid", [(1, 1), (2, 1), (1, 2), (3, 2), (2, 3)])
def test_merging_is_that_of_a_plain_loop(grid):
    random = np.random.default_rng(0)
    features = random.standard_normal((1 + grid[0] * grid[1], 576, 8), np.float32)
    separators = random.standard_normal((2, 32), np.float32)
    rows = merge(features, grid, *separators)
    assert rows.dtype == np.float32 and np.array_equal(rows, plain_rows(features, grid, *separators))


def test_merging_at_the_models_width():
    plan = plan_crops(640, 480, 4)
    features = np.arange(plan.views * 576, dtype=np.float32).repeat(1024).reshape(plan.views, 576, 1024)
    rows = merge(features, plan.grid, np.full(4096, -1, np.float32), np.full(4096, -2, np.float32))
    assert rows.shape == (plan.tokens, 4096) == (757, 4096)
    assert (rows[:, 0] == -1).sum() == 24 + 12 and np.flatnonzero(rows[:, 0] == -2).tolist() == [24 * 25]
    assert rows[0, ::1024].tolist() == [576, 577, 600, 601] and rows[-2, ::1024].tolist() == [550, 551, 574, 575]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4))
def test_rows_are_as_many_as_planned(across, down):
    features = np.zeros((1 + across * down, 576, 1), np.float32)
    size = (336 * across, 336 * down)
    plan = plan_crops(*size, across * down)
    rows = merge(features, (across, down), np.ones(4, np.float32), np.ones(4, np.float32))
    assert plan.grid == (across, down) and len(rows) == plan.tokens


@pytest.mark.parametrize(
    ("shape", "grid", "separators", "message"),
    [
        ((4, 576, 8), (2, 2), (32, 32), r"features \[4, 576, 8\] for 2 × 2 crops: give \[5, 576, 'channels'\]"),
        ((5, 577, 8), (2, 2), (32, 32), "features"),
        ((5, 576), (2, 2), (32, 32), "features"),
        ((5, 576, 8), (2, 2), (32, 8), r"separators \[32\] and \[8\]: give \[32\] each"),
    ],
)
def test_shapes_that_do_not_fit(shape, grid, separators, message):
    with pytest.raises(InputError, match=message):
        merge(np.zeros(shape, np.float32), grid, *(np.zeros(size, np.float32) for size in separators))


def test_it_needs_numpy_only():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'PIL')))\n"
        "import numpy as np; from phi3mobile.models import vision\n"
        "plan, found = vision.views(np.zeros((30, 50, 3), np.uint8), 4)\n"
        "print(plan.tokens, sum(1 for _ in found), 'torch' in vision.__dict__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["757", "5", "False"]
