"""Plots as inline SVG: no script, no file beside the page. Colours are the page's CSS variables --c0 to --c5."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

COLORS = 6
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 42


@dataclass(frozen=True)
class Line:
    """points: x, y; band: x, low, high, drawn behind the line."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    color: int = 0
    dashed: bool = False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span low..high: steps of 1, 2 or 5 times a power of ten."""
    size = max(abs(low), abs(high), 1e-300)  # below: floats too small to divide
    if not high - low > 1e-9 * size:  # one value, up to rounding
        high = low + (size if size > 1e-300 else 1.0)
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= count)
    first, last = math.floor(low / step), math.ceil(high / step)
    first, last = first - (step * first > low), last + (step * last < high)  # the divisions round
    return [step * number for number in range(first, last + 1)]


def number(value: float) -> str:
    """Short: 1.2k, 0.05, 12."""
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k"
    return f"{value:.4g}"


def plot(title: str, lines: Sequence[Line], x: str, y: str, from_zero: bool = True) -> str:
    """A figure with axes, grid and legend; "" without points. x, y: axis titles."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [point[0] for line in lines for point in line.points]
    ys = [point[1] for line in lines for point in line.points] + [v for line in lines for _, *pair in line.band for v in pair]
    x_ticks = ticks(0 if min(xs) >= 0 else min(xs), max(xs), count=7)
    y_ticks = ticks(0 if from_zero else min(ys), max(ys))
    to_x = _scale(x_ticks, LEFT, WIDTH - RIGHT)
    to_y = _scale(y_ticks, HEIGHT - BOTTOM, TOP)
    parts = [_axis(x_ticks, y_ticks, to_x, to_y, x, y)]
    for line in lines:
        color = f"var(--c{line.color % COLORS})"
        if line.band:
            edge = [(t, high) for t, _, high in line.band] + [(t, low) for t, low, _ in reversed(line.band)]
            parts.append(f'<polygon points="{_path(edge, to_x, to_y)}" fill="{color}" opacity=".18"/>')
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        if len(line.points) > 1:
            stroke = f'fill="none" stroke="{color}" stroke-width="2"{dash}'
            parts.append(f'<polyline points="{_path(line.points, to_x, to_y)}" {stroke}/>')
        if len(line.points) <= 24:
            parts += [
                f'<circle cx="{to_x(a):.1f}" cy="{to_y(b):.1f}" r="3.5" fill="{color}"><title>{escape(line.name)}: '
                f"{number(a)}, {number(b)}</title></circle>"
                for a, b in line.points
            ]
    legend = "".join(f"<span>{_key(line)}{escape(line.name)}</span>" for line in lines)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg><div class="legend">{legend}</div></figure>'
    )


def _key(line: Line) -> str:
    color = f"var(--c{line.color % COLORS})"
    return f'<i style="border-top:3px {"dashed" if line.dashed else "solid"} {color}"></i>'


def bars(title: str, values: Sequence[tuple[str, float, float, int]], unit: str) -> str:
    """Horizontal bars: name, value, relative error, colour; "" without any."""
    if not values:
        return ""
    row, height = 44, 44 * len(values) + 8
    most = max(value * (1 + error) for _, value, error, _ in values) or 1.0
    parts = []
    for at, (name, value, error, color) in enumerate(values):
        y, length = at * row + 4, (WIDTH - 130) * value / most
        low, high = ((WIDTH - 130) * value * (1 + sign * error) / most for sign in (-1, 1))
        parts.append(
            f'<text x="0" y="{y + 12}">{escape(name)}</text>'
            f'<rect x="0" y="{y + 18}" width="{length:.1f}" height="16" rx="2" fill="var(--c{color % COLORS})"/>'
            f'<path d="M{low:.1f} {y + 26}H{high:.1f}" stroke="currentColor" stroke-width="1.5"/>'
            f'<text x="{max(length, high) + 8:.1f}" y="{y + 31}">{number(value)} {escape(unit)}</text>'
        )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def _scale(marks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    span = (marks[-1] - marks[0]) or 1.0
    return lambda value: start + (end - start) * (value - marks[0]) / span


def _path(points: Sequence[tuple[float, float]], to_x: Callable[[float], float], to_y: Callable[[float], float]) -> str:
    return " ".join(f"{to_x(a):.1f},{to_y(b):.1f}" for a, b in points)


def _axis(x_ticks: Sequence[float], y_ticks: Sequence[float], to_x, to_y, x: str, y: str) -> str:
    grid = "".join(
        f'<path class="grid" d="M{LEFT} {to_y(tick):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 6}" y="{to_y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        for tick in y_ticks
    )
    anchors = ["middle"] * (len(x_ticks) - 1) + ["end"]
    below = "".join(
        f'<text x="{to_x(tick):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="{anchor}">{number(tick)}</text>'
        for tick, anchor in zip(x_ticks, anchors, strict=True)
    )
    titles = (
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end" class="axis">{escape(x)}</text>'
        f'<text x="{LEFT + 6}" y="{TOP + 10}" class="axis">{escape(y)}</text>'
    )
    return grid + below + titles
