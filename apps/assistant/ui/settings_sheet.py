"""Settings: how the model answers, how the app looks."""

from __future__ import annotations

from collections.abc import Callable

from kivy.metrics import dp
from kivy.uix.boxlayout import BoxLayout

from phi3mobile.assistant.settings import TEXT_SCALES, Settings
from phi3mobile.assistant.ui.drawn import Field, Line, Text
from phi3mobile.assistant.ui.parts import Segments, Surface, ValueSlider
from phi3mobile.assistant.ui.sheets import Sheet
from phi3mobile.assistant.ui.theme import Theme

# name, what it says, from, to, step
SLIDERS = (
    ("temperature", "Temperature: 0 is the same answer every time", 0.0, 2.0, 0.05),
    ("top_p", "Top-p: keep the likeliest words that sum to this share", 0.05, 1.0, 0.05),
    ("min_p", "Min-p: drop words much less likely than the likeliest", 0.0, 0.5, 0.01),
    ("repetition_penalty", "Repetition penalty: above 1 repeats less", 1.0, 2.0, 0.05),
    ("top_k", "Top-k: keep this many words; 0 keeps all", 0, 100, 1),
    ("max_tokens", "Longest answer, in tokens", 32, 4096, 32),
)


class SettingsSheet(Sheet):
    """`change(name=value)` keeps a setting and, where it is one of looks, draws the window anew."""

    def __init__(self, theme: Theme, settings: Settings, change: Callable[..., None], close: Callable[[], None]) -> None:
        super().__init__(theme, "Settings", close)
        self._change = change
        self._heading("Appearance")
        self._segments("theme", [("Light", "light"), ("Dark", "dark"), ("System", "system")], settings.theme)
        self._label("Text size")
        self._segments("text_scale", [(f"{scale:.0%}", scale) for scale in TEXT_SCALES], settings.text_scale)
        self._heading("Instructions for the model")
        box = Surface(theme, "code", radius=dp(10), size_hint_y=None, height=theme.text * 6, padding=dp(6))
        self.prompt = Field(theme, text=settings.system_prompt, hint_text="For example: Answer in one sentence.")
        self.prompt.bind(focus=lambda field, focused: None if focused else change(system_prompt=field.text))
        box.add_widget(self.prompt)
        self.column.add_widget(box)
        self._heading("Answers")
        for name, about, low, high, step in SLIDERS:
            self._slider(name, about, low, high, step, getattr(settings, name))

    def keep(self) -> None:
        """What is still being typed, before the sheet closes."""
        self._change(system_prompt=self.prompt.text)

    def _heading(self, text: str) -> None:
        self.column.add_widget(Text(self.theme, text, bold=True, color="accent", plain=True))

    def _label(self, text: str) -> None:
        self.column.add_widget(Text(self.theme, text, size=self.theme.small, color="dim", plain=True))

    def _segments(self, name: str, values: list[tuple[str, object]], chosen: object) -> None:
        self.column.add_widget(Segments(self.theme, values, chosen, lambda value: self._change(**{name: value})))

    def _slider(self, name: str, about: str, low: float, high: float, step: float, value: float) -> None:
        words = Text(self.theme, about, size=self.theme.small, color="dim", plain=True)
        number = Line(self.theme, _number(value), bold=True, halign="right", size_hint_x=None, width=self.theme.text * 3.6)
        line = BoxLayout(size_hint_y=None)
        words.bind(height=lambda _, height: setattr(line, "height", max(height, number.height)))
        for widget in (words, number):
            widget.pos_hint = {"center_y": 0.5}
            line.add_widget(widget)
        whole = isinstance(step, int)

        def set_value(chosen: float) -> None:
            chosen = round(chosen) if whole else chosen
            number.show(_number(chosen))
            self._change(**{name: chosen})

        slider = ValueSlider(self.theme, low, high, min(max(value, low), high), step, set_value)
        slider.name = name
        self.column.add_widget(line)
        self.column.add_widget(slider)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"
