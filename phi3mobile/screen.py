"""What people see: progress on stderr, cards on stdout, one JSON line last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress line on stderr with stage, count, time spent and time left; yields report(stage, done, total)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(title), TextColumn("[cyan]{task.description:<8}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")

        def report(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield report


def print_card(title: str, rows: Mapping[str, str]) -> None:
    """A two-column card on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left", title_style="bold")
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


def print_json(document: Mapping[str, Any]) -> None:
    """The last line of stdout of every verb that measures."""
    print(json.dumps(document, separators=(",", ":"), ensure_ascii=False), flush=True)


def size(count: float) -> str:
    """Bytes for people: 1.97 GB, 117.8 MB, 46.1 kB."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.2f} {unit}" if unit == "GB" else f"{count / one:.1f} {unit}"
    return f"{count:.0f} B"
