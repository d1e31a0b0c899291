"""What people see: progress on stderr, cards on stdout, one JSON line last."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TextIO

from phi3mobile.progress import Progress
from phi3mobile.unicode import printable

EVERY_S = 60.0  # from one line to the next where stderr is no terminal


class _Pace:
    """How far a piece of work is, and how long the stage that it is in will take at its own pace."""

    def __init__(self) -> None:
        self._start = self._begun = self._last = time.monotonic()
        self.stage, self.done, self.total, self._first = "", 0, 1, 0

    def report(self, stage: str, done: int, total: int) -> None:
        self._last = time.monotonic()
        if stage != self.stage:
            self._begun, self._first = self._last, done
        self.stage, self.done, self.total = stage, done, total

    def __str__(self) -> str:
        """Such as "solve layers 3/32, 0:09:12, 1:29:00 left": of a stage with parts that has finished some."""
        parts = [
            f"{self.stage} {self.done}/{self.total}" if self.total > 1 else self.stage,
            _clock(time.monotonic() - self._start),
        ]
        if self._first < self.done < self.total:
            rest = (self._last - self._begun) / (self.done - self._first) * (self.total - self.done)
            parts.append(f"{_clock(max(0.0, rest - (time.monotonic() - self._last)))} left")
        return ", ".join(filter(None, parts))


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A progress line on stderr with stage, count, time spent and time left, or one a minute where that is no terminal.

    Yields report(stage, done, total); a stage's name ends in what is counted, if anything is: "solve layers".
    """
    pace = _Pace()
    with (
        os.fdopen(os.dup(2), "w") as screen,  # its own: quiet() redirects stderr
        _bar(title, pace, screen) if screen.isatty() else _lines(title, pace, screen),
    ):
        yield pace.report


@contextmanager
def _bar(title: str, pace: _Pace, screen: TextIO) -> Iterator[None]:
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def row() -> Table:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(Text(title), ProgressBar(pace.total, pace.done, width=30), Text(str(pace), "cyan"))
        return grid

    with Live(get_renderable=row, console=Console(file=screen), transient=True, redirect_stdout=False, redirect_stderr=False):
        yield


@contextmanager
def _lines(title: str, pace: _Pace, screen: TextIO) -> Iterator[None]:
    over = threading.Event()

    def tell() -> None:
        while not over.wait(EVERY_S):
            print(f"{title}: {pace}", file=screen, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def print_card(title: str, rows: Mapping[str, str]) -> None:
    """A two-column card on stdout, its texts as `printable` shows them: names come from outside."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)), show_header=False, title_justify="left", title_style="bold")
    for name, value in rows.items():
        lines = "\n".join(map(printable, value.split("\n")))
        table.add_row(name, Text(lines, overflow="fold"))  # Text: brackets in a value are no markup
    console = Console()
    with console.capture() as card:
        console.print(table)
    print(card.get(), end="", flush=True)  # not by rich, which ends the program when the reader goes away


def print_json(document: Mapping[str, Any]) -> None:
    """The last line of stdout of every verb that measures."""
    print(json.dumps(document, separators=(",", ":")), flush=True)


def size(count: float) -> str:
    """Bytes for people: 1.97 GB, 117.8 MB, 46.1 kB."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.2f} {unit}" if unit == "GB" else f"{count / one:.1f} {unit}"
    return f"{count:.0f} B"
