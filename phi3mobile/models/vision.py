"""From a picture to phi-3-vision's views, and from their features to rows for the projector. numpy only: this runs on phones.

After the released checkpoints' image processor, rounding included (docs/vision.md). A picture is enlarged or reduced to fill as
many squares of 336 pixels as num_crops allows, padded with white to whole squares, and cut into them; one more view shows the
whole. An encoder makes 24 × 24 patches of each view; 2 × 2 of them make one token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from phi3mobile.errors import InputError
from phi3mobile.models.resample import resize

SIDE = 336  # pixels of a view's side
PATCHES = 24  # of a view's side
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of red, green, blue
STD = (0.26862954, 0.26130258, 0.27577711)
_MAX_CROPS = 1024  # 148k tokens: more than any context
_TILE = PATCHES // 2  # tokens of a view's side


@dataclass(frozen=True)
class CropPlan:
    """How a picture is shown to the model. resized, padded: (width, height) in pixels; grid: crops (across, down)."""

    resized: tuple[int, int]
    padded: tuple[int, int]
    grid: tuple[int, int]
    num_crops: int

    @property
    def views(self) -> int:
        """The whole picture and its crops."""
        return 1 + self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Positions that the picture takes in the prompt, with a separator after each row and one before the whole."""
        return rows_of(self.grid)


def rows_of(grid: tuple[int, int]) -> int:
    """Positions that a picture of `grid` crops (across, down) takes."""
    across, down = grid
    return _TILE * down * (_TILE * across + 1) + 1 + _TILE * (_TILE + 1)


def grid_of(tokens: int) -> tuple[int, int]:
    """The grid (across, down), the most square one, of pictures that take so many positions. InputError: none does."""
    most = min(max(tokens // _TILE**2, 0) + 1, _MAX_CROPS)
    grids = [(across, down) for across in range(1, most + 1) for down in range(1, most // across + 1)]
    if found := [grid for grid in grids if rows_of(grid) == tokens]:
        return min(found, key=lambda grid: abs(grid[0] - grid[1]))
    near = sorted({rows_of(grid) for grid in grids}, key=lambda size: abs(size - tokens))[:2]
    raise InputError(f"no picture takes {tokens} tokens; the nearest sizes are {' and '.join(map(str, sorted(near)))}")


def plan_crops(width: int, height: int, num_crops: int) -> CropPlan:
    """What becomes of a picture of width × height pixels with at most `num_crops` crops: 16 in phi-3-vision, 4 in 3.5.

    Both divisions are in float64 and truncated as the reference does: 280 × 250 pixels become 1344 × 1199, not 1200.
    InputError for a size or num_crops below 1 and for a picture that would be less than a pixel narrow.
    """
    if not 1 <= num_crops <= _MAX_CROPS:
        raise InputError(f"num_crops {num_crops}: give 1 to {_MAX_CROPS} (4 is enough for most photos, 16 for small print)")
    if min(width, height) < 1:
        raise InputError(f"a picture of {width} × {height} pixels: it must have at least one pixel each way")
    ratio = max(width, height) / min(width, height)
    across = 1
    while (across + 1) * math.ceil((across + 1) / ratio) <= num_crops:
        across += 1
    long = SIDE * across
    short = int(long / ratio)
    if short < 1:
        raise InputError(
            f"a picture of {width} × {height} pixels is too narrow: with num_crops {num_crops} the long side may be "
            f"{SIDE * num_crops} times the short one; cut it into parts"
        )
    down = math.ceil(short / SIDE)
    sizes = (long, short), (long, SIDE * down), (across, down)
    if width < height:
        sizes = (short, long), (SIDE * down, long), (down, across)
    return CropPlan(*sizes, num_crops=num_crops)


def views(picture: np.ndarray, num_crops: int) -> tuple[CropPlan, Iterator[np.ndarray]]:
    """picture uint8 [H, W, 3] -> its plan, and float32 [3, 336, 336] one by one: the whole, then the crops row by row.

    Values are normalised with CLIP's mean and deviation. InputError for another array, or as `plan_crops`.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise InputError(f"a picture is uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}: use open_picture")
    height, width = picture.shape[:2]
    plan = plan_crops(width, height, num_crops)
    return plan, cut(fit(picture, plan), plan.grid)


def fit(picture: np.ndarray, plan: CropPlan) -> np.ndarray:
    """The resized picture in the middle of a white one: uint8 [H, W, 3] of plan.padded.

    A tall one is resized on its side: values are rounded after the first axis, which in the reference is the longer one.
    """
    turn = (1, 0, 2) if picture.shape[0] > picture.shape[1] else (0, 1, 2)
    (width, height), canvas = plan.resized, np.full((plan.padded[1], plan.padded[0], 3), 255, np.uint8)
    top, left = (plan.padded[1] - height) // 2, (plan.padded[0] - width) // 2
    shown = resize(picture.transpose(turn), (max(plan.resized), min(plan.resized)))
    canvas[top : top + height, left : left + width] = shown.transpose(turn)
    return canvas


def cut(picture: np.ndarray, grid: tuple[int, int]) -> Iterator[np.ndarray]:
    """The views float32 [3, 336, 336] of a fitted picture: the whole, then its crops row by row."""
    across, down = grid
    yield _whole(picture)
    for row in range(down):
        for column in range(across):
            yield _normalised(picture[SIDE * row :, SIDE * column :][:SIDE, :SIDE])


def _whole(picture: np.ndarray) -> np.ndarray:
    """A padded picture as one view: torch's bicubic interpolation without antialiasing, which the model was trained on.

    The factors are whole numbers, so each pixel is one of the picture's (odd) or a sum of four an axis (even).
    """
    height, width = picture.shape[:2]
    view = np.zeros((3, SIDE, SIDE), np.float32)
    for y, y_weight in taps(height // SIDE):
        rows = np.clip(np.arange(y, height + y, height // SIDE), 0, height - 1)
        for x, x_weight in taps(width // SIDE):
            columns = np.clip(np.arange(x, width + x, width // SIDE), 0, width - 1)
            view += np.float32(y_weight * x_weight) * _normalised(picture[rows[:, None], columns])
    return view


def taps(factor: int) -> list[tuple[int, float]]:
    """Offsets and weights of the pixels that one pixel of the whole view is made of, along one axis."""
    middle = factor // 2
    if factor % 2:
        return [(middle, 1.0)]
    return [(middle - 2, -3 / 32), (middle - 1, 19 / 32), (middle, 19 / 32), (middle + 1, -3 / 32)]


# float32 in the reference's order of operations: [3 channels, 256 values].
_MEAN, _STD = (np.array(values, np.float32)[:, None] for values in (MEAN, STD))
_LEVELS = (np.arange(256, dtype=np.float32) / np.float32(255) - _MEAN) / _STD


def _normalised(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [3, H, W]."""
    return np.stack([levels[pixels[..., channel]] for channel, levels in enumerate(_LEVELS)])


def merge(features: np.ndarray, grid: tuple[int, int], sub_separator: np.ndarray, global_separator: np.ndarray) -> np.ndarray:
    """The encoder's patches float32 [views, 576, C] as rows for the projector, float32 [tokens, 4 C].

    features: the whole's first, then the crops' row by row; grid: crops (across, down); separators: [4 C] (C is 1024).
    Order: the crops' tokens as one picture, row by row with sub_separator after each; global_separator; the whole's tokens
    likewise. InputError for shapes that do not fit.
    """
    across, down = grid
    wanted = (1 + across * down, PATCHES**2)
    if features.ndim != 3 or features.shape[:2] != wanted:
        raise InputError(f"features {list(features.shape)} for {across} × {down} crops: give {[*wanted, 'channels']}")
    width = 4 * features.shape[2]
    if sub_separator.shape != (width,) or global_separator.shape != (width,):
        shapes = [list(separator.shape) for separator in (sub_separator, global_separator)]
        raise InputError(f"separators {shapes[0]} and {shapes[1]}: give [{width}] each")
    crops = _tokens(features[1:], across, down, sub_separator)
    return np.concatenate([crops, global_separator[None].astype(np.float32), _tokens(features[:1], 1, 1, sub_separator)])


def _tokens(features: np.ndarray, across: int, down: int, separator: np.ndarray) -> np.ndarray:
    """Patches [across · down, 576, C] -> float32 [12 down · (12 across + 1), 4 C], tokens by rows."""
    channels = features.shape[2]
    tiles = features.reshape(down, across, _TILE, 2, _TILE, 2, channels)  # crop's row, column; token's row, y; column, x
    rows = np.empty((_TILE * down, _TILE * across + 1, 4 * channels), np.float32)
    rows[:, -1] = separator
    rows[:, :-1] = tiles.transpose(0, 2, 1, 4, 3, 5, 6).reshape(_TILE * down, _TILE * across, 4 * channels)
    return rows.reshape(-1, 4 * channels)
