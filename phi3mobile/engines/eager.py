"""Engine over the torch model: slow, exact, the reference for the others."""

from __future__ import annotations

import numpy as np
import torch

from phi3mobile.engines.base import BaseEngine
from phi3mobile.info import EngineInfo
from phi3mobile.models.clip import Vision
from phi3mobile.models.decoder import Decoder


class EagerEngine(BaseEngine):
    """Runs `Decoder` (float or quantized weights), `chunk` tokens at most per forward."""

    def __init__(self, model: Decoder, chunk: int = 128) -> None:
        config = model.config
        hidden = config.hidden_size
        super().__init__(EngineInfo(config.vocab_size, model.context, chunk, config.original_context, hidden=hidden))
        self.model = model

    def reset(self) -> None:
        self.model.reset()

    def _run(self, tokens: np.ndarray, position: int, long: bool) -> np.ndarray:
        return self.model(torch.from_numpy(tokens)[None], position, long)[0].numpy()

    def _run_embeddings(self, rows: np.ndarray, position: int, long: bool) -> np.ndarray:
        """The rows take the place of what the embedding gives: nothing multiplies them."""
        given = torch.from_numpy(rows)[None]
        handle = self.model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: given)
        try:
            return self._run(np.zeros(len(rows), np.int64), position, long)
        finally:
            handle.remove()

    def _embed(self, tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            rows = self.model.model.embed_tokens(torch.from_numpy(tokens)) * self.model.config.embedding_multiplier
        return rows.numpy()

    def _run_hidden(self, tokens: np.ndarray, position: int, long: bool) -> tuple[np.ndarray, np.ndarray]:
        read: list[torch.Tensor] = []
        handle = self.model.lm_head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
        try:
            return self._run(tokens, position, long), read[0][0].numpy()
        finally:
            handle.remove()

    def _release(self) -> None:
        del self.model


class EagerTower:
    """A Tower (engines/tower.py) over the torch model: slow, exact, the reference for the others."""

    def __init__(self, vision: Vision, num_crops: int, name: str = "eager") -> None:
        self.name, self.num_crops, self.hidden = name, num_crops, vision.config.projection_size
        self._vision = vision
        sub, whole = vision.separators
        self.separators = sub.numpy(), whole.numpy()

    def encode(self, view: np.ndarray) -> np.ndarray:
        return self._vision.encode(torch.from_numpy(view)[None])[0].numpy()

    def project(self, rows: np.ndarray) -> np.ndarray:
        return self._vision.project(torch.from_numpy(rows)).numpy()

    def close(self) -> None:
        del self._vision
