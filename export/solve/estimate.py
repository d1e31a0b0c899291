"""How long a solve will take on this machine: its multiplications, from the shapes, over those that it does in a second."""

from __future__ import annotations

import time

import torch

from phi3mobile.export.solve.calibration import CARD_TOKENS, TOKENS
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.tensors import LINEARS

WORTH_SAYING_S = 60.0


def multiplications(config: DecoderConfig) -> float:
    """Of a solve on TOKENS tokens. For a matrix [N, K]: half its Hessian, sums with what the float model sees or makes, a
    factor, four updates of all columns, and the tokens' way through it in both streams and on the card."""
    total = 0.0
    for tensor in config.tensors().values():
        if tensor.role not in LINEARS:
            continue
        rows, width = tensor.shape
        routing = config.block(tensor.layer or 0).routing
        share = 1.0 if tensor.expert is None or routing is None else routing.used / routing.experts
        tokens = TOKENS * share
        total += tokens * width * (width / 2 + min(rows, width)) + width**3 / 6 + 4 * rows * width**2
        total += 2 * (tokens + CARD_TOKENS * share) * rows * width
    return total


def seconds(config: DecoderConfig) -> float:
    """On this machine, timed for a moment."""
    left, right = torch.randn(512, 2048), torch.randn(2048, 1024)
    torch.mm(left, right)
    start, count = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < 0.3:
        torch.mm(left, right)
        count += 1
    return multiplications(config) / (512 * 2048 * 1024 * count / took)


def told(config: DecoderConfig) -> str:
    """A line for a person, before the work begins; "" if it is soon done."""
    took = seconds(config)
    if took < WORTH_SAYING_S:
        return ""
    about = f"{took / 60:.0f} minutes" if took < 5400 else f"{took / 3600:.1f} hours"
    return f"solving the integers (gptq) takes about {about} on this machine; --method rtn takes minutes and loses more"
