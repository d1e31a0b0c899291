"""Engine over the torch model: slow, exact, the reference for the others."""

from __future__ import annotations

import numpy as np
import torch

from phi3mobile.engines import EngineInfo
from phi3mobile.models.decoder import Decoder


class EagerEngine:
    """Runs `Decoder` (float or quantized weights), `chunk` tokens at most per forward."""

    def __init__(self, model: Decoder, chunk: int = 128) -> None:
        config = model.config
        self.model = model
        self.info = EngineInfo(config.vocab_size, model.context, chunk, config.original_context)

    def forward(self, tokens: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        """See Engine.forward."""
        return self.model(torch.from_numpy(tokens)[None], position, long)[0].numpy()

    def reset(self) -> None:
        self.model.reset()

    def close(self) -> None:
        self.model = None
