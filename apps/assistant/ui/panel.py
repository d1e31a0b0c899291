"""The live panel: tokens per second with a plot, TTFT, memory, context used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kivy.graphics import Color, Line, Mesh
from kivy.metrics import dp
from kivy.uix.boxlayout import BoxLayout
from kivy.uix.widget import Widget

from phi3mobile.assistant.ui import drawn
from phi3mobile.assistant.ui.parts import Bar, Column, Surface
from phi3mobile.assistant.ui.theme import Theme


class Plot(Widget):
    """A line of the last values over a filled area; its top is the largest."""

    def __init__(self, theme: Theme, **kwargs) -> None:
        super().__init__(**kwargs)
        self._values: list[float] = []
        color = theme.color("plot")
        with self.canvas:
            Color(*theme.color("line"))
            self._floor = Line(width=1)
            Color(*color[:3], 0.18)
            self._area = Mesh(mode="triangle_strip")
            Color(*color)
            self._line = Line(width=dp(1.2), joint="round")
        self.bind(pos=self._draw, size=self._draw)

    def show(self, values: Sequence[float]) -> None:
        self._values = list(values)
        self._draw()

    def _draw(self, *_: object) -> None:
        self._floor.points = (self.x, self.y, self.right, self.y)
        top = max(self._values, default=0.0)
        if len(self._values) < 2 or top <= 0:
            self._line.points, self._area.vertices, self._area.indices = [], [], []
            return
        step = self.width / (len(self._values) - 1)
        points = [(self.x + i * step, self.y + value / top * self.height) for i, value in enumerate(self._values)]
        self._line.points = [number for point in points for number in point]
        self._area.vertices = [number for x, y in points for number in (x, self.y, 0, 0, x, y, 0, 0)]
        self._area.indices = list(range(2 * len(points)))


class Panel(Surface):
    def __init__(self, theme: Theme, **kwargs) -> None:
        super().__init__(theme, "surface", line="line", orientation="vertical", size_hint_y=None, **kwargs)
        self._theme = theme
        self.padding, self.spacing = (theme.margin, dp(8)), dp(6)
        self._values: dict[str, drawn.Text] = {}
        numbers = BoxLayout(size_hint_y=None, spacing=dp(8))
        for name in ("tokens/s", "first token", "memory", "context"):
            cell = Column()
            self._values[name] = drawn.Text(theme, "–", bold=True, plain=True)
            cell.add_widget(self._values[name])
            cell.add_widget(drawn.Line(theme, name, size=theme.small * 0.92, color="dim"))
            cell.bind(height=numbers.setter("height"))
            numbers.add_widget(cell)
        self._plot = Plot(theme, size_hint_y=None, height=dp(44 if theme.phone else 56))
        self._bar = Bar(theme)
        for widget in (numbers, self._plot, self._bar):
            self.add_widget(widget)
        self.bind(minimum_height=self.setter("height"))

    def show(self, live: dict[str, Any], history: Sequence[float]) -> None:
        """`live` as State.live gives it."""
        ttft = live["ttft_s"]
        self._values["tokens/s"].show(f"{live['tokens_per_s']:.0f}")
        self._values["first token"].show("–" if ttft is None else f"{ttft * 1e3:.0f} ms" if ttft < 1 else f"{ttft:.1f} s")
        self._values["memory"].show(_size(live["memory"]))
        self._values["context"].show(f"{live['used']}/{live['context']}" if live["context"] else "–")
        self._plot.show(history)
        self._bar.set(live["used"] / live["context"] if live["context"] else 0)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
