"""The comparison as a table (page and Markdown) and as plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from phi3mobile.bench.ablate.settings import FLOAT, METHODS, Setting
from phi3mobile.bench.report_page import STYLE, table_html, table_markdown
from phi3mobile.bench.report_svg import Line, plot
from phi3mobile.bench.report_tables import Cell, Table
from phi3mobile.screen import size

Found = tuple[Setting, dict[str, float]]
_LEAST = 1e-6  # KL below it is drawn as it


def ablation_table(found: Sequence[tuple[str, dict[str, float]]], title: str, perplexity: float) -> Table:
    """A row per label, in the order given; perplexity: the float model's."""
    rows = []
    for label, one in found:
        perplexities = [_short(one["perplexity"]), f"{one['ratio']:.4g}"]
        texts = [label, f"{one['bits_per_weight']:.2f}", size(one["bytes"]), *perplexities, f"{one['kl']:.2e}"]
        rows.append([Cell(text) for text in (*texts, f"{one['top1']:.1%}")])
    head = ["setting", "bits per weight", "all weights", "perplexity", "ratio", "KL, nats", "same top token"]
    note = f"Float model: perplexity {perplexity:.2f}. Bits per weight: the decoder's matrices, scales included."
    return Table(title, head, rows, note)


def ablation_plots(found: Sequence[Found]) -> list[str]:
    """KL and perplexity ratio by bits per weight, a line per method; and KL of each group size."""
    widths, groups = _by_method(found, "bits"), _by_method(found, "group")
    y, x = "log10 of KL, nats", "bits per weight of the decoder's matrices"
    return [
        figure
        for figure in (
            plot("Width, groups of 32", _lines(widths, _log_kl), x, y, from_zero=False),
            plot("Perplexity over the float model's, to 2x", _lines(widths, _ratio, 2.0), x, "ratio", from_zero=False),
            plot("Group size at 4 bit", _lines(groups, _log_kl), x, y, from_zero=False),
        )
        if figure
    ]


def _by_method(found: Sequence[Found], name: str) -> dict[str, list[Found]]:
    """Of each method, the settings that differ from the plain 4-bit one in nothing but `name`."""
    plain, by_method = asdict(Setting()), {method: [] for method in METHODS}
    for setting, figures in found:
        differs = {key for key, value in asdict(setting).items() if value != plain[key]}
        if differs <= {name, "method"} and setting.bits != FLOAT:
            by_method[setting.method].append((setting, figures))
    return by_method


def _lines(named: dict[str, list[Found]], value, most: float = math.inf) -> list[Line]:
    lines = []
    for color, (method, found) in enumerate(named.items()):
        points = sorted((one["bits_per_weight"], value(one)) for _, one in found)
        lines.append(Line(method, [point for point in points if point[1] <= most], color=color))
    return lines


def _log_kl(one: dict[str, float]) -> float:
    return math.log10(max(one["kl"], _LEAST))


def _ratio(one: dict[str, float]) -> float:
    return one["ratio"]


def _short(perplexity: float) -> str:
    return f"{perplexity:.2f}" if perplexity < 1e4 else f"{perplexity:.1e}"


def ablation_page(table: Table, plots: Sequence[str], about: str) -> str:
    """One HTML page: no script, nothing fetched."""
    drawn = f'<div class="plots">{"".join(plots)}</div>' if plots else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{escape(table.title)}</title><style>{STYLE}</style></head><body>'
        f'<h1>{escape(table.title)}</h1><p class="soft">{escape(about)}</p>{drawn}{table_html(table)}</body></html>\n'
    )


def ablation_markdown(table: Table, about: str) -> str:
    return f"{about}\n\n{table_markdown(table)}\n"


def document(found: Sequence[tuple[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """For the last line of the verb."""
    return [{"setting": label} | {name: float(f"{value:.6g}") for name, value in one.items()} for label, one in found]
