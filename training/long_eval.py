"""How well a model uses long contexts: perplexity by length, needles in a haystack, and their plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import torch

from phi3mobile import extras
from phi3mobile.errors import InputError
from phi3mobile.models.finite import require_finite
from phi3mobile.text.tokenizer import Tokenizer
from phi3mobile.training.batches import IGNORED, Rows, stream_rows
from phi3mobile.training.data.shards import Shards, open_shards
from phi3mobile.training.loop import mean_loss, token_losses

PLACES = ("Paris", "the north", "Rome", "the river", "the house", "the old mill", "London", "the island")


def long_rows(shards: Shards | str | Path, length: int, samples: int) -> Rows:
    """The first `samples` documents with more than `length` tokens, cut to that. InputError if there are fewer."""
    shards = open_shards(shards) if not isinstance(shards, Shards) else shards
    found: list[torch.Tensor] = []
    for index in range(shards.documents):
        tokens = shards.document(index)
        for start in range(0, len(tokens) - length - 1, length + 1):
            found.append(torch.from_numpy(tokens[start : start + length + 1]))
            if len(found) == samples:
                rows = torch.stack(found)
                return stream_rows(rows, torch.zeros_like(rows))
    raise InputError(f"{shards.folder} has {len(found)} stretches of {length + 1} tokens in a document; {samples} are needed")


def tail_rows(rows: Rows, tail: int) -> Rows:
    """The same rows with labels only on the last `tail` tokens."""
    labels = rows.labels.clone()
    labels[:, : max(0, labels.shape[1] - tail)] = IGNORED
    return Rows(rows.tokens, labels, rows.positions, rows.documents)


def perplexity_by_length(model: torch.nn.Module, rows: Rows, lengths: Sequence[int], tail: int) -> dict[int, float]:
    """Perplexity of the same last `tail` tokens, seen with `length` tokens of context in all, for each length."""
    found = {}
    for length in lengths:
        cut = Rows(rows.tokens[:, -length:], rows.labels[:, -length:], rows.positions[:, :length], rows.documents[:, -length:])
        found[length] = math.exp(mean_loss(model, tail_rows(cut, min(tail, length // 2)), micro=1))
    return found


def needle_rows(
    tokenizer: Tokenizer, filler: Rows, length: int, depths: Sequence[float], seed: int = 0, needles: int = 1
) -> Rows:
    """Filler text with a short fact at each depth (0: start, 1: end) and the fact's beginning once more at the very end; the
    only labels are the rest of the fact. One row per depth and needle."""
    rng, tokens, labels = Random(seed), [], []
    for _ in range(needles):
        for depth in depths:
            number = str(rng.randrange(10**4, 10**5))
            stem = f"\n\nThe secret number of {rng.choice(PLACES)} is"
            ahead, whole = tokenizer.encode(stem), tokenizer.encode(f"{stem} {number}.")
            same = next((i for i, (a, b) in enumerate(zip(ahead, whole, strict=False)) if a != b), len(ahead))
            asked, answer = whole[:same], whole[same:]
            room = length - len(whole) - len(asked) - len(answer)
            if room < 1:
                raise InputError(f"a needle needs {length - room} tokens; test at a longer length")
            text = filler.tokens[rng.randrange(len(filler)), :room].tolist()
            at = round(depth * len(text))
            row = text[:at] + whole + text[at:] + asked + answer
            target = [IGNORED] * (length - len(answer) - 1) + answer
            tokens.append(row)
            labels.append([*target, IGNORED])
    rows = torch.tensor(tokens)
    positions = torch.arange(length).expand_as(rows).contiguous()
    return Rows(rows, torch.tensor(labels), positions, torch.zeros_like(rows))


@torch.no_grad()
def needle_losses(model: torch.nn.Module, rows: Rows) -> torch.Tensor:
    """Mean loss of the answer's tokens in each row, float32 [B]: 0 is perfect recall. InputError if one is not finite."""
    model.eval()
    found = [token_losses(model, part).sum(1) / (part.labels != IGNORED).sum(1) for part in rows.micro(1)]
    model.train()
    require_finite("the loss of the needles", losses := torch.cat(found), "the model")
    return losses


def plot_lines(
    path: Path, curves: Mapping[str, Mapping[int, float]], title: str, x: str, y: str, marks: Sequence[int] = ()
) -> None:
    """Curves over lengths, both axes logarithmic, as SVG; dotted lines at `marks`."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", label=name)
    for mark in marks:
        axes.axvline(mark, linestyle=":", color="grey")
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=title)
    axes.legend(fontsize=8)
    ticks = sorted({tick for curve in curves.values() for tick in curve})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    _save(plt, figure, path)


def plot_needles(path: Path, grid: Mapping[int, Mapping[float, float]], title: str) -> None:
    """Loss of the needle's answer by context length and depth, as an SVG heat map."""
    plt = _pyplot()
    lengths, depths = list(grid), list(next(iter(grid.values())))
    figure, axes = plt.subplots(figsize=(6, 3))
    values = [[grid[length][depth] for length in lengths] for depth in depths]
    image = axes.imshow(values, aspect="auto", cmap="RdYlGn_r", vmin=0)
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set(xlabel="context, tokens", ylabel="depth of the needle", title=title)
    figure.colorbar(image, label="loss of the answer's tokens")
    _save(plt, figure, path)


def _pyplot():
    try:
        import matplotlib
    except ImportError:
        raise InputError(f"plots need the package matplotlib; run: {extras.command('train')}") from None
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    return plt


def _save(plt, figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
