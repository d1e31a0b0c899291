"""What lies over the conversation: a sheet with a title, on a phone the whole window; questions and passages in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kivy.graphics import Color, Rectangle
from kivy.metrics import dp
from kivy.uix.anchorlayout import AnchorLayout
from kivy.uix.boxlayout import BoxLayout
from kivy.uix.widget import Widget

from phi3mobile.assistant.ui.drawn import Line, Text
from phi3mobile.assistant.ui.parts import Column, Icon, IconButton, Scroll, Surface, TextButton, row
from phi3mobile.assistant.ui.theme import Theme


class Sheet(AnchorLayout):
    """Add widgets to `column`. A press outside, the cross, Escape or Back close it."""

    def __init__(self, theme: Theme, title: str, close: Callable[[], None], *, small: bool = False) -> None:
        super().__init__(anchor_x="center", anchor_y="center")
        self._close, self.theme = close, theme
        with self.canvas.before:
            Color(0, 0, 0, 0.45)
            self._shade = Rectangle()
        self.bind(pos=self._place, size=self._place)
        whole = theme.phone and not small
        self.card = Surface(theme, "surface", radius=0 if whole else dp(16), orientation="vertical", size_hint=(None, None))
        self.card.padding = (theme.margin, dp(6), theme.margin, 0 if whole else dp(12))
        head = row(theme, Line(theme, title, size=theme.title, bold=True), IconButton(theme, "close", close))
        self.card.add_widget(head)
        self._scroll = Scroll(theme)
        self.column = Column(spacing=dp(10), padding=(0, dp(6), dp(6), dp(16)))
        self._scroll.add_widget(self.column)
        self.card.add_widget(self._scroll)
        self.add_widget(self.card)
        self._whole, self._head = whole, head
        self.column.bind(height=self._place)

    def _place(self, *_: object) -> None:
        self._shade.pos, self._shade.size = self.pos, self.size
        if self._whole:
            self.card.size = self.size
            return
        padding = self.card.padding[1] + self.card.padding[3]
        height = self._head.height + self.column.height + padding
        self.card.size = (min(self.width - dp(24), dp(560)), min(self.height - dp(48), height))

    def on_touch_down(self, touch) -> bool:
        if not self.card.collide_point(*touch.pos):
            self._close()
            return True
        super().on_touch_down(touch)
        return True  # nothing reaches what lies below


def passage_sheet(theme: Theme, source: dict[str, Any], close: Callable[[], None], copy: Callable[[str], None]) -> Sheet:
    """A passage that an answer was given."""
    sheet = Sheet(theme, source["title"] or "Passage", close)
    where = " · ".join(part for part in (source["source"], source["location"]) if part)
    sheet.column.add_widget(Text(theme, where, size=theme.small, color="dim", plain=True))
    sheet.column.add_widget(Text(theme, source["text"], plain=True))
    sheet.column.add_widget(row(theme, TextButton(theme, "Copy", lambda: copy(source["text"]), icon="copy"), Widget()))
    return sheet


def question_sheet(
    theme: Theme, title: str, sentence: str, button: str, action: Callable[[], None], close: Callable[[], None]
) -> Sheet:
    """Something to confirm."""
    sheet = Sheet(theme, title, close, small=True)
    sheet.column.add_widget(Text(theme, sentence, plain=True))

    def confirm() -> None:
        close()
        action()

    buttons = row(theme, Widget(), TextButton(theme, "Cancel", close), TextButton(theme, button, confirm, strong=True))
    sheet.column.add_widget(buttons)
    return sheet


class ProblemCard(Surface):
    """A sentence and a button; `detail` in small letters below."""

    def __init__(self, theme: Theme, problem, solve: Callable[[], None], dismiss: Callable[[], None]) -> None:
        super().__init__(theme, "warn", radius=dp(14), orientation="vertical", size_hint_y=None, padding=dp(12), spacing=dp(6))
        self.bind(minimum_height=self.setter("height"))
        self.problem = problem
        sentence = Text(theme, problem.sentence, bold=True, plain=True, pos_hint={"center_y": 0.5})
        head = BoxLayout(size_hint_y=None, spacing=theme.gap)
        sentence.bind(height=lambda _, height: setattr(head, "height", max(height, theme.touch)))
        close = IconButton(theme, "close", dismiss, pos_hint={"center_y": 0.5})
        for widget in (Icon(theme, "alert", "danger", 22, pos_hint={"center_y": 0.5}), sentence, close):
            head.add_widget(widget)
        self.add_widget(head)
        if problem.detail:
            self.add_widget(
                Text(theme, problem.detail[:1].upper() + problem.detail[1:], size=theme.small, color="dim", plain=True)
            )
        self.button = TextButton(theme, problem.button, solve, strong=True)
        self.add_widget(row(theme, Widget(), self.button))
