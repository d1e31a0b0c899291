"""What people see: progress on stderr, cards on stdout, one JSON line last."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from phi3mobile.unicode import printable


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress line on stderr with stage, count, time spent and time left; yields report(stage, done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    label = TextColumn(title.replace("{", "{{").replace("}", "}}"), markup=False)
    columns = (
        label,
        TextColumn("[cyan]{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with (
        os.fdopen(os.dup(2), "w") as screen,  # its own: quiet() redirects stderr
        Progress(*columns, console=Console(file=screen), transient=True, disable=not screen.isatty()) as bar,
    ):
        task = bar.add_task("", total=None)

        def report(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield report


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
