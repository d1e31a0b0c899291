"""Direct preference optimization (arXiv 2305.18290): the margin of chosen over rejected, against the model's own start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

from phi3mobile.training.batches import IGNORED, Rows
from phi3mobile.training.chats import preferences
from phi3mobile.training.config import Dpo
from phi3mobile.training.loop import Job, token_losses, train
from phi3mobile.training.replica import Place, find_place
from phi3mobile.training.sft import adapted, finish_adapted, prepare
from phi3mobile.training.sources import PackedSource


class Preference:
    """-log sigmoid(beta * margin) of each pair; a row's documents 2i and 2i + 1 are pair i's chosen and rejected side."""

    def __init__(self, beta: float, sft_weight: float = 0.0) -> None:
        self.beta, self.sft_weight = beta, sft_weight

    def count(self, rows: Rows) -> int:
        return int((rows.documents.amax(1) + 1).sum()) // 2

    def loss(self, model: torch.nn.Module, rows: Rows) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        gains = -token_losses(model, rows) - rows.reference  # 0 where there is no label
        sides = per_document(gains, rows)
        margins = self.beta * (sides[0::2] - sides[1::2])
        total = -functional.logsigmoid(margins).sum()
        if self.sft_weight:
            scores = per_document(-(gains + rows.reference), rows) / per_document((rows.labels != IGNORED).float(), rows)
            total = total + self.sft_weight * scores[0::2].sum()
        return total, {"accuracy": (margins > 0).sum(), "margin": margins.detach().sum()}


def per_document(values: torch.Tensor, rows: Rows) -> torch.Tensor:
    """values [B, T] summed over each document -> [documents of all rows], in order."""
    counts = rows.documents.amax(1) + 1
    first = counts.cumsum(0) - counts
    index = torch.where(rows.documents >= 0, first[:, None] + rows.documents, 0)
    inside = torch.where(rows.documents >= 0, values, 0.0)
    return torch.zeros(int(counts.sum()), device=values.device).index_add(0, index.flatten(), inside.flatten())


@torch.no_grad()
def with_reference(model: torch.nn.Module, rows: Rows, micro: int, place: Place) -> Rows:
    """Rows with each label's log-probability under `model` as it is now; processes share the work."""
    model.to(place.device).eval()
    found = torch.zeros(rows.tokens.shape)
    mine = torch.arange(len(rows))[place.rank :: place.world]
    for index in mine.split(micro or 8):
        part = rows.map(lambda tensor, index=index: tensor[index]).to(place.device)
        found[index] = -token_losses(model, part).cpu()
    if place.world > 1:
        total = found.to(place.device)
        dist.all_reduce(total)
        found = total.cpu()
    model.train()
    return Rows(rows.tokens, rows.labels, rows.positions, rows.documents, found)


def dpo(config: Dpo) -> dict[str, Any]:
    """Train to the end (or resume); writes OUT/final. The result has the last step's accuracy and margin."""
    from phi3mobile.training.metrics import read_metrics

    place = find_place(config.run)
    model, shape, rows = prepare(config, preferences)
    rows = with_reference(model, rows, config.batch.micro, place)
    batch = config.batch
    source = PackedSource(rows, batch.rows, config.run.seed, place.rank, place.world)
    job = Job(config, adapted(model, config), shape, source, Preference(config.beta, config.sft_weight), "dpo")
    replica, loss = train(job, place)
    finish_adapted(config, shape, replica, place)
    last = read_metrics(Path(config.out))[-1]
    return {"out": str(Path(config.out) / "final"), "loss": loss, "accuracy": last["accuracy"], "margin": last["margin"]}
