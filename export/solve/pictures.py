"""Pictures among the calibration text: their rows as the float decoder sees them, and as the phone's does.

What a picture becomes has other norms than embedded tokens, and a decoder of a model that sees is asked about pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from phi3mobile.export.packed_vision import PackedVision, encoded_by_both, projected_by_both
from phi3mobile.models.checkpoint import Checkpoint
from phi3mobile.models.vision import merge, views
from phi3mobile.pictures import open_picture

if TYPE_CHECKING:
    from phi3mobile.export.solve.rotate import Rotated

MOST = 8  # pictures: a tenth of all rows
CROPS = 1  # of each: the whole twice, 313 rows, so that text follows them in a window


def picture_rows(
    source: Checkpoint | Rotated, packed: PackedVision, pictures: Sequence[Path]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Rows float32 [P, 313, hidden] of the first pictures, by the float tower and by the packed one; of none (None, None).

    InputError: unreadable, or too narrow.
    """
    if not pictures:
        return None, None
    shown = [views(open_picture(path), CROPS) for path in pictures[:MOST]]
    plans, seen = [plan for plan, _ in shown], torch.from_numpy(np.stack([view for _, each in shown for view in each]))
    separators = [separator.numpy() for separator in packed.separators()]

    def merged(features: torch.Tensor) -> torch.Tensor:
        each = features.numpy().reshape(len(plans), -1, *features.shape[1:])
        rows = [merge(own, plan.grid, *separators) for own, plan in zip(each, plans, strict=True)]
        return torch.from_numpy(np.stack(rows))

    exact, values = encoded_by_both(source, packed, seen)
    return projected_by_both(source, packed, merged(exact), merged(values))


def beside(text: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Windows of embedded text [B, T, D], and one for each picture: its rows of [P, R, D], then text; [B + P, T, D]."""
    if rows is None:
        return text
    length = text.shape[1]
    own = rows[:, :length]
    after = text[torch.arange(len(own)) % len(text), : length - own.shape[1]]
    return torch.cat([text, torch.cat([own, after], 1)])
