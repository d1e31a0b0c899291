"""The list of conversations."""

from __future__ import annotations

import time
from typing import Protocol

from kivy.metrics import dp
from kivy.uix.widget import Widget

from phi3mobile.assistant.store import Chat
from phi3mobile.assistant.ui.drawn import Line
from phi3mobile.assistant.ui.parts import Column, IconButton, Pressable, Scroll, Surface, TextButton, row
from phi3mobile.assistant.ui.theme import Theme

SHOWN = 200


class SidebarActions(Protocol):
    def new_chat(self) -> None: ...
    def open_chat(self, chat: int) -> None: ...
    def ask_delete(self, chat: Chat) -> None: ...
    def open_settings(self) -> None: ...
    def open_models(self) -> None: ...
    def open_library(self) -> None: ...


class Sidebar(Surface):
    def __init__(self, theme: Theme, actions: SidebarActions, **kwargs) -> None:
        super().__init__(theme, "surface", line="line", orientation="vertical", padding=dp(10), spacing=dp(6), **kwargs)
        self._theme, self._actions = theme, actions
        new = TextButton(theme, "New chat", actions.new_chat, icon="plus", strong=True)
        new.size_hint_x = 1
        self.add_widget(new)
        self._list = Column(spacing=dp(2))
        scroll = Scroll(theme)
        scroll.add_widget(self._list)
        self.add_widget(scroll)
        for icon, name, action in (
            ("model", "Models", actions.open_models),
            ("library", "Documents", actions.open_library),
            ("settings", "Settings", actions.open_settings),
        ):
            button = IconLine(theme, icon, name, action)
            self.add_widget(button)

    def show(self, chats: list[Chat], current: int | None) -> None:
        self._list.clear_widgets()
        for chat in chats[:SHOWN]:
            fill = "code" if chat.id == current else "surface"
            entry = Pressable(
                self._theme,
                lambda chat=chat: self._actions.open_chat(chat.id),
                fill=fill,
                radius=dp(8),
                size_hint_y=None,
                height=self._theme.touch * 1.15,
                padding=(dp(10), 0, 0, 0),
            )
            words = Column(pos_hint={"center_y": 0.5})
            words.add_widget(Line(self._theme, chat.title or "New chat"))
            words.add_widget(Line(self._theme, _when(chat.updated), size=self._theme.small * 0.9, color="dim"))
            entry.add_widget(words)
            delete = IconButton(
                self._theme, "delete", lambda chat=chat: self._actions.ask_delete(chat), pos_hint={"center_y": 0.5}
            )
            delete.font_size = dp(18)
            entry.add_widget(delete)
            entry.chat = chat.id
            self._list.add_widget(entry)


class IconLine(Pressable):
    """An icon and a word across the whole width."""

    def __init__(self, theme: Theme, icon: str, name: str, action) -> None:
        super().__init__(theme, action, radius=dp(8), size_hint_y=None, height=theme.touch, padding=(dp(6), 0))
        self.caption = name
        from phi3mobile.assistant.ui.parts import Icon

        self.add_widget(row(theme, Icon(theme, icon), Line(theme, name), Widget(size_hint_x=None, width=1)))


def _when(updated: float) -> str:
    """Today's time, this year's day, or the date."""
    then, now = time.localtime(updated), time.localtime()
    if then[:3] == now[:3]:
        return time.strftime("%H:%M", then)
    return f"{then.tm_mday} {time.strftime('%b', then)}" + ("" if then.tm_year == now.tm_year else f" {then.tm_year}")
