"""Small widgets everything is made of: surfaces, buttons, sliders, bars."""

from __future__ import annotations

from collections.abc import Callable

from kivy.graphics import Color, Line, RoundedRectangle
from kivy.metrics import dp, sp
from kivy.uix.behaviors import ButtonBehavior
from kivy.uix.boxlayout import BoxLayout
from kivy.uix.label import Label
from kivy.uix.scrollview import ScrollView
from kivy.uix.widget import Widget

from phi3mobile.assistant.text.runs import visual
from phi3mobile.assistant.ui.drawn import Text, markup, width_of
from phi3mobile.assistant.ui.theme import ICONS, Theme


class Surface(BoxLayout):
    """A box with a filled, rounded background."""

    def __init__(self, theme: Theme, fill: str = "surface", radius: float = 0, line: str | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        with self.canvas.before:
            self._fill = Color(*theme.color(fill))
            self._box = RoundedRectangle(radius=[radius])
            self._edge_color = Color(*theme.color(line or fill))
            self._edge = Line(width=1)
        self._radius, self._edged = radius, line is not None
        self.bind(pos=self._place, size=self._place)

    def _place(self, *_: object) -> None:
        self._box.pos, self._box.size = self.pos, self.size
        if self._edged:
            self._edge.rounded_rectangle = (*self.pos, *self.size, max(self._radius, 1))

    def fill(self, color: tuple) -> None:
        self._fill.rgba = color


class Column(BoxLayout):
    """A column as high as its children."""

    def __init__(self, **kwargs) -> None:
        super().__init__(orientation="vertical", size_hint_y=None, height=0, **kwargs)
        self.bind(minimum_height=self.setter("height"))


class Pressable(ButtonBehavior, Surface):
    """A surface that answers to a tap with `action`, and shows it."""

    def __init__(self, theme: Theme, action: Callable[[], object], fill: str = "surface", **kwargs) -> None:
        super().__init__(theme=theme, fill=fill, **kwargs)
        self._rest, self._down = theme.color(fill), theme.color("line")
        self.always_release = False
        self.bind(on_release=lambda *_: action(), state=self._shown)

    def _shown(self, _: object, state: str) -> None:
        self.fill(self._down if state == "down" else self._rest)


class IconButton(ButtonBehavior, Label):
    """An icon to press; `name` is one of ICONS."""

    def __init__(self, theme: Theme, name: str, action: Callable[[], object], color: str = "dim", **kwargs) -> None:
        kwargs.setdefault("size_hint", (None, None))
        kwargs.setdefault("size", (theme.touch, theme.touch))
        super().__init__(text=ICONS[name], font_name="icons", font_size=dp(23), color=theme.color(color), **kwargs)
        self.icon = name
        self.bind(
            on_release=lambda *_: action(), state=lambda _, state: setattr(self, "opacity", 0.5 if state == "down" else 1)
        )

    def set(self, name: str) -> None:
        self.icon, self.text = name, ICONS[name]


class Icon(Label):
    def __init__(self, theme: Theme, name: str, color: str = "dim", size: float = 20, **kwargs) -> None:
        side = dp(size) + dp(8)
        super().__init__(
            text=ICONS[name],
            font_name="icons",
            font_size=dp(size),
            color=theme.color(color),
            size_hint=(None, None),
            size=(side, side),
            **kwargs,
        )


class TextButton(Pressable):
    """A word or two to press. `strong`: the one that is meant to be pressed; `quiet`: no background."""

    def __init__(
        self,
        theme: Theme,
        text: str,
        action: Callable[[], object],
        *,
        icon: str = "",
        strong: bool = False,
        quiet: bool = False,
        small: bool = False,
        **kwargs,
    ) -> None:
        fill = "accent" if strong else "background" if quiet else "code"
        size = theme.small if small else theme.text
        super().__init__(theme, action, fill=fill, radius=dp(10), size_hint=(None, None), **kwargs)
        color = theme.color("on_accent" if strong else "dim" if small else "accent")
        self.caption, mark = text, f"[font=icons]{ICONS[icon]}[/font]  " if icon else ""
        drawn = visual(text)
        label = Label(text=mark + markup(drawn), markup=True, font_name="base", font_size=size, color=color)
        self.add_widget(label)
        self.padding = (dp(10 if small else 16), 0)
        wide = width_of(drawn, size) + (size * 1.6 if icon else 0) + 2 * self.padding[0] + dp(4)
        self.size = (wide, theme.touch * (0.8 if small else 1))


class Scroll(ScrollView):
    """A vertical scroll view with a thin bar."""

    def __init__(self, theme: Theme, **kwargs) -> None:
        super().__init__(
            do_scroll_x=False,
            bar_width=dp(4),
            bar_color=(*theme.color("dim")[:3], 0.6),
            bar_inactive_color=(*theme.color("dim")[:3], 0.25),
            scroll_type=["bars", "content"],
            **kwargs,
        )


class Bar(Widget):
    """A share of a whole, 0 to 1."""

    def __init__(self, theme: Theme, **kwargs) -> None:
        super().__init__(size_hint_y=None, height=dp(6), **kwargs)
        with self.canvas:
            Color(*theme.color("line"))
            self._whole = RoundedRectangle(radius=[dp(3)])
            Color(*theme.color("accent"))
            self._part = RoundedRectangle(radius=[dp(3)])
        self.share = 0.0
        self.bind(pos=self._place, size=self._place)

    def set(self, share: float) -> None:
        self.share = min(1.0, max(0.0, share))
        self._place()

    def _place(self, *_: object) -> None:
        self._whole.pos, self._whole.size = self.pos, self.size
        self._part.pos, self._part.size = self.pos, (self.width * self.share, self.height)


class Segments(BoxLayout):
    """One of a few values to choose."""

    def __init__(
        self, theme: Theme, values: list[tuple[str, object]], chosen: object, action: Callable[[object], None]
    ) -> None:
        super().__init__(size_hint_y=None, height=theme.touch, spacing=dp(6))
        for name, value in values:
            active = value == chosen
            fill = "accent" if active else "code"
            button = Pressable(theme, lambda value=value: action(value), fill=fill, radius=dp(8))
            color = theme.color("on_accent" if active else "text")
            button.add_widget(Label(text=name, font_name="base", font_size=sp(13) * min(theme.scale, 1.4), color=color))
            button.caption = name
            self.add_widget(button)


class ValueSlider(Widget):
    """A value between two others, by dragging."""

    def __init__(
        self, theme: Theme, low: float, high: float, value: float, step: float, action: Callable[[float], None]
    ) -> None:
        super().__init__(size_hint_y=None, height=theme.touch)
        self.low, self.high, self.step, self.value, self._action = low, high, step, value, action
        with self.canvas:
            Color(*theme.color("line"))
            self._rail = RoundedRectangle(radius=[dp(3)])
            Color(*theme.color("accent"))
            self._part = RoundedRectangle(radius=[dp(3)])
            self._knob = RoundedRectangle(radius=[dp(11)], size=(dp(22), dp(22)))
        self.bind(pos=self._place, size=self._place)

    def _place(self, *_: object) -> None:
        left, width = self.x + dp(11), max(self.width - dp(22), 1)
        at = width * (self.value - self.low) / (self.high - self.low)
        self._rail.pos, self._rail.size = (left, self.center_y - dp(3)), (width, dp(6))
        self._part.pos, self._part.size = self._rail.pos, (at, dp(6))
        self._knob.pos = (left + at - dp(11), self.center_y - dp(11))

    def on_touch_down(self, touch) -> bool:
        if not self.collide_point(*touch.pos):
            return False
        touch.grab(self)
        self._drag(touch)
        return True

    def on_touch_move(self, touch) -> bool:
        if touch.grab_current is not self:
            return False
        self._drag(touch)
        return True

    def on_touch_up(self, touch) -> bool:
        if touch.grab_current is not self:
            return False
        touch.ungrab(self)
        self._action(self.value)
        return True

    def _drag(self, touch) -> None:
        share = min(1.0, max(0.0, (touch.x - self.x - dp(11)) / max(self.width - dp(22), 1)))
        steps = round(share * (self.high - self.low) / self.step)
        self.value = round(min(self.high, self.low + steps * self.step), 6)
        self._place()


def row(theme: Theme, *widgets: Widget, height: float | None = None, spacing: float | None = None) -> BoxLayout:
    """Widgets side by side, centered vertically."""
    box = BoxLayout(size_hint_y=None, height=height or theme.touch, spacing=theme.gap if spacing is None else spacing)
    for widget in widgets:
        if widget.size_hint_y is None:
            widget.pos_hint = {"center_y": 0.5}
        box.add_widget(widget)
    return box


__all__ = [
    "Bar",
    "Column",
    "Icon",
    "IconButton",
    "Pressable",
    "Scroll",
    "Segments",
    "Surface",
    "Text",
    "TextButton",
    "ValueSlider",
    "row",
]
