"""What a session needs of an image encoder: views in, rows of the decoder's embeddings out."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Tower(Protocol):
    """An image encoder with its projector, loaded."""

    name: str  # the same for the same weights and arithmetic: names features that are kept
    num_crops: int  # of a picture, where nobody asks for another number
    hidden: int  # of the decoder
    separators: tuple[np.ndarray, np.ndarray]  # float32 [4 C] each: after a row of tokens, before the global view

    def encode(self, view: np.ndarray) -> np.ndarray:
        """Patches float32 [576, C] of one view float32 [3, 336, 336]."""
        ...

    def project(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings float32 [T, hidden] of merged rows float32 [T, 4 C]."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...
