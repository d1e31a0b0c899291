"""Pictures that a tower is measured on: two that are drawn here, or a folder's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from phi3mobile.models.vision import views
from phi3mobile.pictures import open_picture

MOST = 4  # pictures: each view is computed twice, in float and in integers
_EACH = 2  # views of a picture: the whole one, and its first crop
_CROPS = 4


def measured_views(pictures: Sequence[Path] = ()) -> torch.Tensor:
    """float32 [B, 3, 336, 336]: two views of each of the first pictures; of none, of drawn ones. InputError: unreadable."""
    shown = [open_picture(path) for path in pictures[:MOST]] or [_scene(), _page()]
    found = [view for picture in shown for view in islice(views(picture, _CROPS)[1], _EACH)]
    return torch.from_numpy(np.stack(found))


def _scene() -> np.ndarray:
    """Sky, a sun, hills and grain, uint8 [480, 640, 3]: smooth areas, round edges, texture; white bars above and below."""
    y, x = np.mgrid[0:480, 0:640].astype(np.float64)
    picture = np.stack([120 + y / 6, 160 + y / 8, 235 - y / 12], -1)
    picture[(x - 480) ** 2 + (y - 110) ** 2 < 50**2] = 250, 220, 90
    hills = y > 300 + 40 * np.sin(x / 60) + 15 * np.sin(x / 17)
    picture[hills] = np.stack([60 + x / 20, 130 - y / 12, 50 + 0 * x], -1)[hills]
    picture += np.random.default_rng(0).normal(0, 8, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def _page() -> np.ndarray:
    """Lines of marks as of print on white, uint8 [900, 640, 3]: what suffers first."""
    marks = np.random.default_rng(1).random((52, 180)) < 0.55
    page = np.full((900, 640, 3), 255, np.uint8)
    for row, line in enumerate(marks):
        ink = np.repeat(np.repeat(line[None], 9, 0), 3, 1)
        page[30 + 16 * row : 39 + 16 * row, 50:590][ink] = 20
    return page
