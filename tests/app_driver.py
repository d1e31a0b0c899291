"""Drives the real window: `python app_driver.py SCENARIO FOLDER WIDTHxHEIGHT` runs a scenario of app_scenarios.py.

Touches go through Kivy's window like a finger's; screenshots and what the scenario saw (seen.json) land in FOLDER.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from fake_app import open_fake_tower, open_script, quoted

from phi3mobile.assistant.launch import _configure
from phi3mobile.assistant.places import Places
from phi3mobile.assistant.state import State
from phi3mobile.assistant.store import Store
from phi3mobile.assistant.worker import Worker

Until = Callable[[], bool] | float  # a scenario yields what it waits for: a condition (10 s at most), or seconds


class Driver:
    """What a scenario has in its hands."""

    def __init__(self, folder: Path, parts: Callable[[Path], object] | None = None, library=None) -> None:
        from phi3mobile.assistant.ui.app import AssistantApp

        self.folder, self.seen = folder, {}
        self.where = Places(folder / "chats.db", (folder / "models",), (folder / "libraries",), folder)
        worker = Worker(parts, (lambda path: library) if library is not None else None, quoted, open_script, open_fake_tower)
        self.state = State(Store(self.where.store), worker)
        self.app = AssistantApp(self.state, self.where)

    @property
    def content(self):
        return self.app.content

    def shot(self, name: str) -> None:
        """A screenshot of what the window shows now. Kivy's own is skewed where the width is no multiple of 4."""
        import numpy as np
        from kivy.core.window import Window
        from kivy.graphics.opengl import GL_RGBA, GL_UNSIGNED_BYTE, glReadPixels

        width, height = Window.size
        pixels = np.frombuffer(glReadPixels(0, 0, width, height, GL_RGBA, GL_UNSIGNED_BYTE), np.uint8)
        (self.folder / f"{name}.png").write_bytes(png(pixels.reshape(height, width, 4)[::-1, :, :3]))

    def widgets(self) -> Iterator:
        return self.content.walk()

    def find(self, what: str):
        """The last widget with this caption, icon or text."""
        found = [
            widget
            for widget in self.widgets()
            if what in (getattr(widget, "caption", None), getattr(widget, "icon", None), getattr(widget, "source", None))
        ]
        assert found, f"no {what!r} in the window"
        return found[-1]

    def press(self, what) -> None:
        """A finger on the widget's center."""
        from kivy.core.window import Window
        from kivy.tests.common import UnitTestTouch

        widget = self.find(what) if isinstance(what, str) else what
        x, y = widget.to_window(*widget.center)
        assert 0 <= x <= Window.width and 0 <= y <= Window.height, f"{what!r} is outside of the window at {x}, {y}"
        touch = UnitTestTouch(x, y)
        touch.touch_down()
        touch.touch_up()

    def write(self, text: str) -> None:
        self.content.composer.field.text = text

    def ask(self, text: str) -> None:
        self.write(text)
        self.press(self.content.composer.button)

    def idle(self) -> bool:
        return not self.state.answering and self.state.loading is None

    def texts(self) -> list[str]:
        return [widget.source for widget in self.widgets() if hasattr(widget, "source")]

    def cut(self) -> list[str]:
        """Texts that are wider than their widget, or reach out of the window's sides: what must not be."""
        from kivy.core.window import Window

        bad = []
        for widget in self.widgets():
            if hasattr(widget, "texture_size") and widget.text and widget.opacity and widget.height > 1:
                left, _ = widget.to_window(widget.x, widget.y)
                if left < -1 or left + min(widget.width, widget.texture_size[0]) > Window.width + 1:
                    bad.append(f"outside: {widget.text[:40]}")
                if widget.texture_size[0] > widget.width + 2:
                    bad.append(f"wider than its place: {widget.text[:40]}")
        return bad


def png(colors) -> bytes:
    """uint8 [height, width, 3] as a PNG file."""
    height, width, _ = colors.shape
    rows = b"".join(b"\0" + row.tobytes() for row in colors)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def run(scenario: Callable[[Driver], Iterator[Until]], driver: Driver) -> None:
    from kivy.clock import Clock

    sys.setswitchinterval(0.001)  # as launch does
    steps = scenario(driver)
    waiting: dict[str, object] = {"for": 0.3, "since": time.monotonic()}

    def step(_: float) -> None:
        until, since = waiting["for"], time.monotonic() - waiting["since"]
        if callable(until):
            assert since < 30, f"a scenario's condition did not come true: {until.__code__.co_firstlineno}, {driver.texts()}"
            if not until():
                return
        elif since < until:
            return
        try:
            waiting["for"] = next(steps)
        except StopIteration:
            driver.app.stop()
        waiting["since"] = time.monotonic()

    Clock.schedule_interval(step, 0)
    driver.app.run()
    (driver.folder / "seen.json").write_text(json.dumps(driver.seen))


if __name__ == "__main__":
    os.environ["KIVY_HOME"] = str(Path(sys.argv[2]) / "kivy")
    Path(os.environ["KIVY_HOME"]).mkdir(parents=True, exist_ok=True)
    width, _, height = sys.argv[3].partition("x")
    _configure((int(width), int(height)))
    import app_scenarios

    target = Path(sys.argv[2])
    getattr(app_scenarios, sys.argv[1])(target)
