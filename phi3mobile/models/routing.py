"""Which experts a token goes to, and with what weights: float32, exactly as the models were trained.

sparsemixer (arXiv 2409.12136) has two rounds, each a softmax over the experts within a relative band below the best one that is
left. The two weights are independent of each other and sum to nearly 2; normalised to 1 they would halve the layer. The other
kind is a softmax over the best k logits alone. Ties go to the lowest number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SPARSEMIXER, SOFTMAX = "sparsemixer", "softmax_topk"


@dataclass(frozen=True)
class Routing:
    """How one layer chooses `used` of its `experts`. kind: SPARSEMIXER with its jitter, or SOFTMAX."""

    kind: str
    experts: int
    used: int
    jitter: float = 0.0

    def __call__(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Router logits float32 [T, E] -> experts int64 [T, used], weights float32 [T, used]."""
        return sparsemixer(logits, self.jitter) if self.kind == SPARSEMIXER else softmax_topk(logits, self.used)


def sparsemixer(logits: torch.Tensor, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 [T, E] -> the two experts int64 [T, 2] and their weights float32 [T, 2], each in (1/E, 1].

    A round takes the largest logit m and gives it the softmax over those with (m - s) / max(|s|, m) <= 2 jitter; the second
    round goes without the first one's expert. Reference: transformers' function of the same name, in inference. Raises
    ValueError for logits that are not finite: nothing sensible follows from them.
    """
    if not torch.isfinite(logits).all():
        raise ValueError("router logits are not finite (NaN or infinity): the router or the hidden states are damaged")
    left, experts, weights = logits, [], []
    for _ in range(2):
        most, best = left.max(-1, keepdim=True)
        outside = (most - logits) / torch.maximum(logits.abs(), most) > 2 * jitter  # 0/0, all zeros, is inside
        shares = left.masked_fill(outside, -torch.inf).softmax(-1)
        experts.append(best)
        weights.append(shares.gather(-1, best))
        left = left.scatter(-1, best, -torch.inf)
    return torch.cat(experts, -1), torch.cat(weights, -1)


def softmax_topk(logits: torch.Tensor, used: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 [T, E] -> the best `used` experts int64 [T, used] and the softmax of their logits float32 [T, used].

    Equal to a softmax over all experts whose chosen values are divided by their sum. ValueError as sparsemixer's.
    """
    if not torch.isfinite(logits).all():
        raise ValueError("router logits are not finite (NaN or infinity): the router or the hidden states are damaged")
    values, experts = torch.sort(logits, dim=-1, descending=True, stable=True)
    return experts[..., :used], values[..., :used].softmax(-1)
