"""One message: a question in its bubble, or an answer with its blocks, sources and what can be done with it."""

from __future__ import annotations

from typing import Any, Protocol

from kivy.metrics import dp
from kivy.uix.boxlayout import BoxLayout
from kivy.uix.stacklayout import StackLayout
from kivy.uix.widget import Widget

from phi3mobile.assistant.store import Message
from phi3mobile.assistant.text.blocks import BULLET, CODE, HEADING, Block, blocks
from phi3mobile.assistant.text.runs import visual
from phi3mobile.assistant.ui.attachments import shown
from phi3mobile.assistant.ui.drawn import Text, width_of
from phi3mobile.assistant.ui.parts import Column, Surface, TextButton
from phi3mobile.assistant.ui.theme import Theme

ENDS = {
    "interrupted": "The app was closed before this answer was complete.",
    "stopped": "Stopped.",
    "failed": "No answer came.",
}


class Actions(Protocol):
    """What a message asks of the window."""

    def copy(self, text: str) -> None: ...
    def edit(self, message: Message) -> None: ...
    def again(self) -> None: ...
    def open_source(self, source: dict[str, Any]) -> None: ...


class Question(BoxLayout):
    """The person's words below the pictures they are about, to the right."""

    def __init__(self, theme: Theme, message: Message, actions: Actions, last: bool) -> None:
        super().__init__(orientation="horizontal", size_hint_y=None)
        self.message = message
        column = Column(spacing=dp(2), size_hint_x=None)
        natural = max(width_of(visual(line), theme.text) for line in message.content.split("\n")) + dp(32)
        if message.pictures:
            pictures = shown(theme, message.pictures, theme.touch * 5)
            natural = max(natural, sum(picture.width + dp(6) for picture in pictures.children) + dp(32))
        buttons_width, widest = dp(190) * max(1.0, theme.scale), 0.88 if theme.phone else 0.78
        self.bind(width=lambda _, width: setattr(column, "width", min(max(natural, buttons_width), width * widest)))
        bubble = Surface(theme, "bubble", radius=dp(16), orientation="vertical", padding=(dp(14), dp(9)), size_hint_y=None)
        if message.pictures:
            bubble.add_widget(pictures)
        self.text = Text(theme, message.content, plain=True)
        if message.content:
            bubble.add_widget(self.text)
        bubble.bind(minimum_height=bubble.setter("height"))
        column.add_widget(bubble)
        buttons = BoxLayout(size_hint_y=None, height=theme.touch * 0.8, spacing=dp(2))
        buttons.add_widget(Widget())
        buttons.add_widget(
            TextButton(theme, "Copy", lambda: actions.copy(message.content), icon="copy", quiet=True, small=True)
        )
        buttons.add_widget(TextButton(theme, "Edit", lambda: actions.edit(message), icon="edit", quiet=True, small=True))
        column.add_widget(buttons)
        self.add_widget(Widget())
        self.add_widget(column)
        column.bind(height=self.setter("height"))


class Answer(Column):
    """The model's words, drawn block by block: while it streams only the last block is drawn anew."""

    def __init__(self, theme: Theme, message: Message, actions: Actions, last: bool) -> None:
        super().__init__(spacing=dp(6))
        self._theme, self._actions, self.message = theme, actions, message
        self._body = Column(spacing=dp(8))
        self._drawn: list[tuple[Block, Text]] = []
        self.add_widget(self._body)
        self.show(message)
        if message.sources:
            self.add_widget(_chips(theme, message, actions))
        if message.state == "streaming":
            return
        if note := ENDS.get(message.state):
            self.add_widget(Text(theme, note, size=theme.small, color="dim"))
        buttons = BoxLayout(size_hint_y=None, height=theme.touch * 0.8, spacing=dp(2))
        if message.content:
            copy = TextButton(theme, "Copy", lambda: actions.copy(self.message.content), icon="copy", quiet=True, small=True)
            buttons.add_widget(copy)
        if last:
            buttons.add_widget(TextButton(theme, "Try again", actions.again, icon="again", quiet=True, small=True))
        buttons.add_widget(Widget())
        self.add_widget(buttons)
        if message.numbers and last:
            self.add_widget(Text(theme, _numbers(message.numbers), size=theme.small, color="dim", plain=True))

    def show(self, message: Message) -> None:
        """Draw the message's text as it is now."""
        self.message = message
        text = message.content
        if message.state == "streaming":
            text = f"{text} ▍" if text else "▍"
        new = blocks(text)
        same = 0
        while same < min(len(new), len(self._drawn)) and new[same] == self._drawn[same][0]:
            same += 1
        for index in range(same, len(new)):
            block = new[index]
            if (
                index < len(self._drawn)
                and self._drawn[index][0].kind == block.kind
                and _look(block) == _look(self._drawn[index][0])
            ):
                self._drawn[index][1].show(_text(block))
                self._drawn[index] = (block, self._drawn[index][1])
                continue
            while len(self._drawn) > index:
                self._remove()
            self._drawn.append((block, self._add(block)))
        while len(self._drawn) > len(new):
            self._remove()

    def _remove(self) -> None:
        self._drawn.pop()
        self._body.remove_widget(self._body.children[0])

    def _add(self, block: Block) -> Text:
        theme = self._theme
        if block.kind == HEADING:
            text = Text(theme, _text(block), size=theme.title if block.level < 3 else theme.text, bold=True)
            self._body.add_widget(text)
        elif block.kind == CODE:
            text = Text(theme, _text(block), mono=True, size=theme.small)
            box = Surface(theme, "code", radius=dp(10), orientation="vertical", padding=dp(12), size_hint_y=None)
            box.bind(minimum_height=box.setter("height"))
            box.add_widget(text)
            self._body.add_widget(box)
        elif block.kind == BULLET:
            text = Text(theme, _text(block))
            line = BoxLayout(size_hint_y=None, spacing=dp(6), padding=(dp(8 + 16 * block.level), 0, 0, 0))
            wide = theme.text * (0.8 if block.mark == "•" else 0.7 * len(block.mark))
            line.add_widget(Text(theme, block.mark, size_hint_x=None, width=wide, plain=True, pos_hint={"top": 1}))
            line.add_widget(text)
            text.bind(height=line.setter("height"))
            line.height = text.height
            self._body.add_widget(line)
        else:
            text = Text(theme, _text(block))
            self._body.add_widget(text)
        return text


def _look(block: Block) -> tuple:
    """What decides a block's widget, besides its kind."""
    return (block.level, block.mark)


def _text(block: Block) -> str:
    return block.text.rstrip("\n") or " "


def _numbers(numbers: dict[str, Any]) -> str:
    parts = [f"{numbers['generated_tokens']} tokens", f"{numbers['decode_tokens_per_s']:.0f} tokens/s"]
    parts.append(f"first after {numbers['ttft_s']:.2f} s")
    if numbers["finish_reason"] == "length":
        parts.append("cut at the longest allowed answer")
    if numbers["finish_reason"] == "repetition":
        parts.append("ended: it repeated itself")
    if numbers["dropped_messages"]:
        parts.append(f"the oldest {numbers['dropped_messages']} messages were left out")
    return " · ".join(parts)


def _chips(theme: Theme, message: Message, actions: Actions) -> StackLayout:
    """The passages the answer was given, to press."""
    chips = StackLayout(size_hint_y=None, spacing=dp(6))
    chips.bind(minimum_height=chips.setter("height"))
    for number, source in enumerate(message.sources, start=1):
        name = source["title"] or source["source"] or "Document"
        most = int(28 / theme.scale)
        name = name if len(name) <= most else f"{name[: most - 1]}…"
        chip = TextButton(
            theme, f"[{number}] {name}", lambda source=source: actions.open_source(source), icon="file", small=True
        )
        chips.add_widget(chip)
    return chips
