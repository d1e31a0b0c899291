"""Rows of packed documents: tokens, next-token labels, and positions that begin again at 0 with each document.

transformers reads the document borders from the positions: attention never crosses one (tests/training/test_train_batches.py).
No padding mask exists anywhere: what is left of a row is one more document of pad tokens without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch

from phi3mobile.errors import InputError

IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """int64 [B, T] each. labels[t] is the token that follows tokens[t], or IGNORED; documents counts a row's documents.

    reference: float32 [B, T], the log-probability that a reference model gives to each label (DPO), or None.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    documents: torch.Tensor
    reference: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Rows:
        """Every tensor changed alike: a choice of rows, a move to a device."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return Rows(*(None if tensor is None else change(tensor) for tensor in tensors))

    def to(self, device: torch.device | str) -> Rows:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def micro(self, size: int) -> Iterator[Rows]:
        """The rows, `size` at a time; 0: all at once."""
        for start in range(0, len(self), size or len(self)):
            yield self.map(lambda tensor, start=start: tensor[start : start + (size or len(self))])

    @property
    def targets(self) -> int:
        """Tokens that the loss counts."""
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True)
class Document:
    """Tokens, and which of them are to be learned (all, or only the assistant's)."""

    tokens: Sequence[int]
    learned: Sequence[bool] | None = None


def pack(units: Iterable[Sequence[Document]], length: int, pad: int) -> Rows:
    """First-fit packing into rows of `length`. A unit is one conversation, or the two sides of a preference, which stay
    side by side. InputError for a longer one."""
    rows: list[list[Document]] = []
    room: list[int] = []
    for unit in units:
        size = sum(len(document.tokens) for document in unit)
        if size > length:
            raise InputError(f"an example has {size} tokens, a row {length}; raise batch.length or leave it out")
        row = next((i for i, free in enumerate(room) if free >= size), None)
        if row is None:
            rows.append([])
            room.append(length)
            row = len(rows) - 1
        rows[row] += unit
        room[row] -= size
    return stack([_row(row, length, pad) for row in rows])


def stream_rows(tokens: torch.Tensor, segments: torch.Tensor) -> Rows:
    """Rows of a token stream: tokens and document numbers, both [B, T + 1] -> [B, T]."""
    inputs, labels = tokens[:, :-1].long(), tokens[:, 1:].long()
    documents, following = segments[:, :-1].long(), segments[:, 1:].long()
    labels = torch.where(documents == following, labels, IGNORED)  # nobody can know how the next document begins
    index = torch.arange(inputs.shape[1]).expand_as(inputs)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return Rows(inputs, labels, index - torch.where(begins, index, 0).cummax(1).values, documents)


def stack(rows: Sequence[Rows]) -> Rows:
    if not rows:
        raise InputError("the data has no row to train on; give more data or shorter rows")
    names = ("tokens", "labels", "positions", "documents")
    return Rows(*(torch.cat([getattr(row, name) for row in rows]) for name in names))


def _row(documents: list[Document], length: int, pad: int) -> Rows:
    tokens, labels, positions, numbers = [], [], [], []
    for index, document in enumerate(documents):
        ids = list(document.tokens)
        learned = [True] * len(ids) if document.learned is None else list(document.learned)
        tokens += ids
        labels += [token if learn else IGNORED for token, learn in zip(ids[1:], learned[1:], strict=True)] + [IGNORED]
        positions += range(len(ids))
        numbers += [index] * len(ids)
    rest = length - len(tokens)
    return Rows(
        *(
            torch.tensor([values + list(fill)], dtype=torch.int64)
            for values, fill in (
                (tokens, [pad] * rest),
                (labels, [IGNORED] * rest),
                (positions, range(rest)),
                (numbers, [-1] * rest),
            )
        )
    )
