"""The measured document as a table for people: one row a figure, one column a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phi3mobile.screen import size


def rows_of(figures: Mapping[str, Any]) -> dict[str, str]:
    """One column: row title -> text. Peers' speeds carry how many times as fast ours is."""
    faster = figures.get("ours_is_faster_by", {})

    def rate(value: float, key: str) -> str:
        return f"{value:g} tokens/s" + (f"  (ours {faster[key]:.2f}x)" if key in faster else "")

    rows = {}
    for depth, one in figures["decode"].items():
        rows[f"decode at depth {depth}"] = rate(one["tokens_per_s"], f"decode_{depth}")
        rows[f"  p50, p95 at {depth}"] = f"{one['p50_ms']} ms, {one['p95_ms']} ms"
        rows[f"  bandwidth at {depth}"] = f"{one['GB_per_s']} GB/s, {one['share_of_read_bandwidth']:.0%} of reading"
    for prompt, value in figures["prefill_tokens_per_s"].items():
        rows[f"prefill {prompt}"] = rate(value, f"prefill_{prompt}")
    for name, value in figures.items():
        if name.startswith("ttft_"):
            rows[f"TTFT {name.split('_')[1]}"] = f"{value * 1e3:.0f} ms"
    if (picture := figures.get("picture")) is not None:
        rows[f"TTFT picture of {picture['tokens']}"] = f"{picture['ttft_s']:.2f} s"
        rows["  tower, prefill"] = (
            f"{picture['tower_s']:.2f} s ({picture['view_s'] * 1e3:.0f} ms a view), {picture['prefill_s']:.2f} s"
        )
    rows["load cold, warm"] = f"{figures['load_cold_s']:.2f} s, {figures['load_warm_s']:.2f} s"
    rows["anonymous memory"] = size(figures["anonymous_bytes"])
    rows["peak memory"] = size(figures["peak_bytes"])
    rows["memory left meanwhile"] = size(figures["memory_left_bytes"])
    rows["peak of the cold load"] = size(figures["peak_cold_load_bytes"])
    rows["files"] = size(figures["file_bytes"])
    if "logits_cosine" in figures:
        rows["logits against ours"] = f"cosine {figures['logits_cosine']}"
    return rows


def print_table(document: Mapping[str, Any]) -> None:
    """On stdout; wide enough for every column when it is no terminal."""
    import shutil
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = {"phi3mobile": rows_of(document)} | {name: rows_of(one) for name, one in document.get("peers", {}).items()}
    table = Table(title=Text(title_of(document)), title_justify="left", title_style="bold")
    for name in ("", *columns):
        table.add_column(name)
    for row in columns["phi3mobile"] | {row: "" for column in columns.values() for row in column}:
        table.add_row(row, *(Text(column.get(row, "")) for column in columns.values()))
    console = Console(width=shutil.get_terminal_size().columns if sys.stdout.isatty() else 60 * len(columns))
    with console.capture() as text:
        console.print(table)
    print(text.get(), end="", flush=True)  # not by rich, which ends the program when the reader goes away
    for name, reason in document.get("missing", {}).items():
        print(f"not in the table: {name}: {reason}")


def title_of(document: Mapping[str, Any]) -> str:
    """What was measured, how, and what making it cost."""
    title = (
        f"{document['bundle']}: recipe {document['recipe']}, context {document['context']}, {document['threads']} threads, "
        f"{document['rounds']} rounds, "
        f"this machine reads {document['read_GB_per_s']} GB/s, other programs took {document['others_cpu_percent']} % CPU"
    )
    if len(groups := document["loaded_together"]) > 1:
        title += f"; loaded together, for memory: {' | '.join(', '.join(group) for group in groups)}"
    if "export_s" in document:
        title += f"; exported in {document['export_s']:.0f} s with {size(document['export_peak_bytes'])} peak"
    return title
