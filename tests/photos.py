"""Pictures that tests draw, and messages that show them."""

from __future__ import annotations

from typing import Any

import numpy as np


def drawn(seed: int, width: int = 40, height: int = 30, channels: int = 3) -> np.ndarray:
    """uint8 [height, width, channels], the same for the same seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def say(*parts: Any, role: str = "user") -> dict[str, Any]:
    """A message of texts and of whatever stands for a picture."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts]
    return {"role": role, "content": content}
