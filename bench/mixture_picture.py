"""Experts found in memory against the memory that they get, as an SVG that is legible on light and dark pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from phi3mobile.bench.report_svg import HEIGHT, WIDTH, Line, plot

STYLE = """
svg { --c0: #2563eb; --c1: #8c959f; color: #24292f }
text { font: 12px system-ui, sans-serif; fill: #24292f }
.grid { stroke: #d0d7de; fill: none }
@media (prefers-color-scheme: dark) {
  svg { --c0: #7aa7ff; --c1: #6e7681; color: #e6edf3 } text { fill: #e6edf3 } .grid { stroke: #30363d }
}"""


def draw(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """rows: what `mixture decode` measured, one for each budget of memory that slots were made of."""
    shares = [(row["slots"] * row["bytes_of_one"] / row["bytes"], row) for row in rows if not row["mapped"]]
    points = sorted((100 * share, 100 * row["hits"] / max(1, row["hits"] + row["misses"])) for share, row in shares)
    lines = [Line("measured", points), Line("if every expert were as likely", [(0, 0), (100, 100)], color=1, dashed=True)]
    figure = plot(title, lines, "memory for experts, % of all of them", "found in memory, %")
    (inner,) = re.findall(r"<svg[^>]*>(.*)</svg>", figure, re.DOTALL)
    names = (("--c0", "measured"), ("--c1", "if every expert were as likely"))
    legend = "".join(
        f'<rect x="{60 + 110 * at}" y="28" width="14" height="4" fill="var({color})"/>'
        f'<text x="{80 + 110 * at}" y="34">{name}</text>'
        for at, (color, name) in enumerate(names)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 44}" width="{WIDTH}" role="img">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
        f'<text x="56" y="16">{escape(title)}</text>{legend}<g transform="translate(0 44)">{inner}</g></svg>\n'
    )
