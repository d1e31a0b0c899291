"""Perplexity of any engine on the text that ships."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from phi3mobile.engines import Engine
from phi3mobile.errors import InputError

TEXT = Path(__file__).parent / "text" / "jargon.txt"


def perplexity(
    engine: Engine,
    tokens: list[int],
    window: int = 1024,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> float:
    """exp of the mean negative log likelihood of tokens[1:] in windows of `window` that do not overlap, at most exp(700).

    Every token but the first of a window is predicted from the window's tokens before it. InputError if the engine's logits are
    not finite.
    """
    total, count = 0.0, 0
    window = min(window, engine.info.max_context)
    for start in range(0, len(tokens) - 1, window):
        part = np.asarray(tokens[start : start + window], dtype=np.int64)
        for at in range(0, len(part) - 1, engine.info.max_chunk):
            chunk = part[at : min(at + engine.info.max_chunk, len(part) - 1)]
            logits = engine.forward(chunk, at).astype(np.float64)
            following = part[at + 1 : at + 1 + len(chunk)]
            peak = logits.max(-1, keepdims=True)
            with np.errstate(invalid="ignore"):  # where the peak is infinite: told below
                log_sum = np.log(np.exp(logits - peak).sum(-1)) + peak[:, 0]
            total += float((log_sum - logits[np.arange(len(chunk)), following]).sum())
            count += len(chunk)
        progress("text", min(start + window, len(tokens)), len(tokens))
        if not math.isfinite(total):
            raise InputError(f"the log likelihood of the text is {total}: the model's logits are not finite (NaN or infinity)")
    return math.exp(min(total / count, 700))
