"""The conversation: its messages in a scroll view that stays at the end while an answer grows."""

from __future__ import annotations

from kivy.clock import Clock
from kivy.metrics import dp
from kivy.uix.boxlayout import BoxLayout
from kivy.uix.widget import Widget

from phi3mobile.assistant.store import Message
from phi3mobile.assistant.ui.drawn import Text
from phi3mobile.assistant.ui.message import Actions, Answer, Question
from phi3mobile.assistant.ui.parts import Column, Icon, Scroll, TextButton
from phi3mobile.assistant.ui.theme import Theme

SHOWN = 40  # messages drawn; earlier ones come with a button, so a long conversation costs no more than a short one
WIDEST = 820  # dp of text, for reading
AT_END = 24  # dp from the end still counts as there
SUGGESTIONS = ("Explain what a KV cache is", "Write a haiku about the sea", "Give me three ideas for dinner")


class ChatView(Scroll):
    def __init__(self, theme: Theme, actions: Actions) -> None:
        super().__init__(theme)
        self._theme, self._actions, self._shown = theme, actions, SHOWN
        self._views: dict[tuple, Question | Answer] = {}
        self._column = BoxLayout(orientation="vertical", size_hint_y=None, spacing=dp(14))
        self._column.bind(minimum_height=self._high)
        self.bind(height=self._high, width=self._wide)
        self.add_widget(self._column)
        self._follow = True

    def show(self, messages: list[Message], suggest: bool = True) -> None:
        """Draw the conversation; widgets of messages that have not changed stay."""
        self._follow = self.at_end or not self._views or (bool(messages) and messages[-1].state == "streaming")
        drawn = messages[-self._shown :]
        keep = {_key(message, message is messages[-1]): message for message in drawn}
        self._views = {key: view for key, view in self._views.items() if key in keep}
        self._column.clear_widgets()
        if not messages and suggest:
            self._column.add_widget(self._welcome())
        if len(messages) > len(drawn):
            more = BoxLayout(size_hint_y=None, height=self._theme.touch)
            more.add_widget(Widget())
            more.add_widget(TextButton(self._theme, f"Show {len(messages) - len(drawn)} earlier", self._earlier, small=True))
            more.add_widget(Widget())
            self._column.add_widget(more)
        for key, message in keep.items():
            if key not in self._views:
                kind = Question if message.role == "user" else Answer
                self._views[key] = kind(self._theme, message, self._actions, last=key[2])
            self._column.add_widget(self._views[key])
        self._column.add_widget(Widget())  # takes what is left of the height: messages start at the top
        self._messages = messages
        self.to_end()

    def grow(self, message: Message) -> None:
        """The running answer has more text."""
        self._follow = self.at_end
        if (view := self._views.get(_key(message, True))) is not None:
            view.show(message)

    @property
    def at_end(self) -> bool:
        return self.scroll_y * max(self._column.height - self.height, 0) <= dp(AT_END)

    def to_end(self) -> None:
        if self._follow:
            Clock.schedule_once(lambda _: setattr(self, "scroll_y", 0), 0)

    def _earlier(self) -> None:
        self._shown += SHOWN
        below = self.scroll_y * max(self._column.height - self.height, 0)
        self.show(self._messages)
        self._follow = False
        Clock.schedule_once(lambda _: self._stay(below), 0.05)

    def _stay(self, below: float) -> None:
        self.scroll_y = below / max(self._column.height - self.height, 1)

    def _high(self, *_: object) -> None:
        self._column.height = max(self._column.minimum_height, self.height)
        if self._follow:
            self.scroll_y = 0

    def _wide(self, *_: object) -> None:
        side = max(self._theme.margin, (self.width - dp(WIDEST)) / 2)
        self._column.padding = (side, dp(16), side, dp(16))

    def _welcome(self) -> Column:
        theme = self._theme
        column = Column(spacing=dp(12), padding=(0, dp(40), 0, 0))
        column.add_widget(Icon(theme, "chat", "accent", 44, pos_hint={"center_x": 0.5}))
        column.add_widget(Text(theme, "Ask something", size=theme.title * 1.2, bold=True, halign="center"))
        about = "Everything stays on this device.\nIt answers in airplane mode too."
        column.add_widget(Text(theme, about, size=theme.small, color="dim", halign="center"))
        column.add_widget(Widget(size_hint_y=None, height=dp(8)))
        for text in SUGGESTIONS:
            button = TextButton(theme, text, lambda text=text: self._actions.ask(text), pos_hint={"center_x": 0.5})
            column.add_widget(button)
        return column


def _key(message: Message, last: bool) -> tuple:
    """What a message's widget depends on, but for the text of one that streams."""
    return (message.id, message.state, last, len(message.sources))
