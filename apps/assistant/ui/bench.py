"""The window while the host measures: the screen stays on and says so, and nothing else draws."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kivy.app import App
from kivy.clock import Clock
from kivy.core.window import Window
from kivy.uix.label import Label

from phi3mobile.assistant.bench import Answer, work
from phi3mobile.bench.request import Request


class BenchApp(App):
    """`reading`: gives a line of kind `sample`; called on the main thread every request.sample_s."""

    title = "Measuring"

    def __init__(self, request: Request, shared: Path, reading: Callable[[], dict[str, Any]] | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self._request, self._shared, self._reading = request, shared, reading
        self._answer = Answer(request.answer(shared))
        self._done = threading.Event()

    def build(self) -> Label:
        Window.allow_screensaver = False  # a phone whose screen goes dark takes the fast cores away
        steps = " · ".join(" ".join(step.split(":")[: 1 if step.startswith("text") else 2]) for step in self._request.steps)
        text = f"Measuring\n\nLeave this on the screen: it closes by itself.\n\n{steps or 'loading'}"
        label = Label(text=text, halign="center", font_size="18sp")  # on black: the screen's energy is measured too
        label.bind(width=lambda *_: setattr(label, "text_size", (0.8 * label.width, None)))
        return label

    def on_start(self) -> None:
        if self._reading and self._request.sample_s:
            self._note()
            Clock.schedule_interval(lambda _: self._note(), self._request.sample_s)
        Clock.schedule_interval(lambda _: self.stop() if self._done.is_set() else None, 0.5)
        threading.Thread(target=self._work, daemon=True).start()

    def on_pause(self) -> bool:
        self._give_up("the app was sent to the background, where it is slower: leave it on the screen")
        return False

    def on_stop(self) -> None:
        if not self._done.is_set():
            self._give_up("the window was closed")

    def _work(self) -> None:
        work(self._request, self._shared, self._answer)
        self._done.set()

    def _note(self) -> None:
        self._answer.say(self._reading())

    def _give_up(self, reason: str) -> None:
        self._answer.say({"kind": "error", "step": "app", "reason": reason})
        self._answer.end(1)
        os._exit(1)  # the other thread is inside of the model and can't be interrupted
