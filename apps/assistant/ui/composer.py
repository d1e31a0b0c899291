"""Where a person writes: a field that grows, the pictures of the question, and one button that sends or stops."""

from __future__ import annotations

from typing import Protocol

from kivy.metrics import dp
from kivy.uix.boxlayout import BoxLayout
from kivy.utils import platform

from phi3mobile.assistant.ui.attachments import Attachments
from phi3mobile.assistant.ui.drawn import Field, Text
from phi3mobile.assistant.ui.parts import Column, IconButton, Surface, TextButton, row
from phi3mobile.assistant.ui.theme import Theme

MOST_LINES = 6


class ComposerActions(Protocol):
    def submit(self, text: str) -> bool: ...
    def stop_answer(self) -> None: ...
    def edit_last(self) -> None: ...
    def end_edit(self) -> None: ...
    def attach(self) -> None: ...
    def detach(self, name: str) -> None: ...
    def paste_picture(self) -> bool: ...


class Entry(Field):
    """Enter sends and Shift+Enter breaks the line where there is a keyboard; a phone's Enter breaks the line."""

    def __init__(self, theme: Theme, actions: ComposerActions, send) -> None:
        super().__init__(theme, multiline=True, hint_text="Ask anything", size_hint_y=None, padding=(dp(6), dp(10)))
        self._actions, self._send = actions, send

    def keyboard_on_key_down(self, window, keycode, text, modifiers):
        if platform not in ("android", "ios"):
            if keycode[1] in ("enter", "numpadenter") and "shift" not in modifiers:
                self._send()
                return True
            if keycode[1] == "up" and not self.text:
                self._actions.edit_last()
                return True
            if keycode[1] == "escape":
                self._actions.stop_answer()
        return super().keyboard_on_key_down(window, keycode, text, modifiers)

    def paste(self) -> None:
        if not self._actions.paste_picture():
            super().paste()


class Composer(Column):
    def __init__(self, theme: Theme, actions: ComposerActions) -> None:
        super().__init__(padding=(theme.margin, dp(4), theme.margin, dp(12)), spacing=dp(4))
        self._theme, self._actions, self.editing, self.busy = theme, actions, None, False
        self._banner = BoxLayout(size_hint_y=None, height=0)
        self.notice = Text(theme, "", size=theme.small, color="dim", plain=True)
        self.pictures = Attachments(theme, actions.detach)
        box = Surface(theme, "surface", radius=dp(22), line="line", size_hint_y=None, padding=(dp(12), dp(2), dp(4), dp(2)))
        self._box = box
        self.field = Entry(theme, actions, self.send)
        self.field.bind(minimum_height=self._grow)
        self.button = IconButton(theme, "send", self.press, "accent", pos_hint={"y": 0})
        self.attach = IconButton(theme, "picture", actions.attach, pos_hint={"y": 0})
        box.add_widget(self.field)
        box.add_widget(self.button)
        self.field.bind(height=lambda _, height: setattr(box, "height", max(height + dp(4), theme.touch + dp(4))))
        self._grow()
        self.add_widget(self._banner)
        self.add_widget(self.notice)
        self.add_widget(self.pictures)
        self.add_widget(box)
        self.say("")

    def _grow(self, *_: object) -> None:
        least = self.field.line_height + self.field.padding[1] + self.field.padding[3]
        most = least + (MOST_LINES - 1) * self.field.line_height
        self.field.height = max(self._theme.touch, min(max(self.field.minimum_height, least), most))

    def say(self, text: str) -> None:
        """A line above the field; "": none."""
        self.notice.show(text)
        self.notice.opacity = 1 if text else 0
        if not text:
            self.notice.height = 0

    def set_sees(self, sees: bool) -> None:
        """Whether the model takes pictures: only then is there a button for them."""
        if sees and self.attach.parent is None:
            self._box.add_widget(self.attach, index=len(self._box.children))
        elif not sees and self.attach.parent is not None:
            self._box.remove_widget(self.attach)
        self._box.padding = (dp(2 if sees else 12), dp(2), dp(4), dp(2))

    def set_busy(self, busy: bool) -> None:
        self.busy = busy
        self.button.set("stop" if busy else "send")

    def press(self) -> None:
        if self.busy:
            self._actions.stop_answer()
        else:
            self.send()

    def send(self) -> None:
        if self._actions.submit(self.field.text):
            self.field.text = ""
            self.edit(None)

    def edit(self, message) -> None:
        """Put a question into the field to ask it in other words; None: write a new one."""
        self.editing = message
        self._banner.clear_widgets()
        self._banner.height = 0
        if message is not None:
            self.field.text = message.content
            self.field.focus = True
            self._banner.height = self._theme.touch
            words = Text(
                self._theme, "Editing: what followed this question will be replaced.", size=self._theme.small, color="dim"
            )
            self._banner.add_widget(row(self._theme, words, TextButton(self._theme, "Cancel", self._cancel, small=True)))

    def _cancel(self) -> None:
        self.field.text = ""
        self._actions.end_edit()
        self.edit(None)
