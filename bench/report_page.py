"""The report as one self-contained page (no script, nothing fetched) and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from phi3mobile.bench.evaluate.results import quality_table
from phi3mobile.bench.report_data import Summary
from phi3mobile.bench.report_svg import Line, bars, plot
from phi3mobile.bench.report_tables import (
    Cell,
    Table,
    devices_table,
    figures_table,
    headline,
    peers_table,
    prediction_table,
    regressions,
)

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1c2126;--soft:#5b6670;--line:#dde2e6;--card:#f6f8f9;--good:#0a7a48;--bad:#b3261e;
--c0:#2563eb;--c1:#d9480f;--c2:#0f8a5f;--c3:#8b3fc7;--c4:#b08900;--c5:#0e8a9e}
@media(prefers-color-scheme:dark){:root{--bg:#14181c;--fg:#e6eaed;--soft:#98a4ae;--line:#2c343b;--card:#1b2126;--good:#4cc38a;
--bad:#ff8178;--c0:#7aa7ff;--c1:#ff9a66;--c2:#4cc38a;--c3:#c79bf2;--c4:#e2c04c;--c5:#58c9da}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:24px 16px 64px;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.6rem;line-height:1.25;margin:.2em 0}h2{font-size:1.15rem;margin:2.2em 0 .5em}
p{margin:.5em 0}.soft,.note{color:var(--soft)}.note{font-size:.85rem;overflow-wrap:anywhere}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:7px 12px;border-top:1px solid var(--line);min-width:8.5em;
overflow-wrap:anywhere}
th:first-child,td:first-child{min-width:9em}thead th{border-top:0;background:var(--card);font-weight:600}
td:first-child,th:first-child{position:sticky;left:0;background:var(--bg)}thead th:first-child{background:var(--card)}
tbody td:first-child{color:var(--soft)}.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:14px}
figure{margin:0;padding:12px;border:1px solid var(--line);border-radius:8px;background:var(--card);min-width:0}
figcaption{font-weight:600;margin-bottom:6px}svg{width:100%;height:auto;display:block}
svg text{font-size:13px;fill:var(--soft)}svg .axis{font-size:12px;font-style:italic}.grid{stroke:var(--line)}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:.82rem;color:var(--soft);margin-top:6px}
.legend i{display:inline-block;width:18px;margin-right:6px;vertical-align:middle}
blockquote{margin:.4em 0 1em;padding:8px 14px;border-left:3px solid var(--line);background:var(--card);overflow-wrap:anywhere}
@media(max-width:520px){body{padding:14px 12px 48px}th,td{padding:6px 8px;min-width:7.5em}
th:first-child,td:first-child{min-width:7em}svg text{font-size:18px}svg .axis{font-size:17px}}
"""


Quality = Sequence[Mapping[str, Any]]


def tables_of(records: Sequence[Summary], quality: Quality = ()) -> list[Table]:
    """All tables, in order. quality: lines of read_results."""
    found = [headline(records)] if records else []
    found += [quality_table(quality)] if quality else []
    if records:
        found += [*regressions(records), figures_table(records), devices_table(records), peers_table()]
        found.append(prediction_table(records))
    return found


def summary_line(records: Sequence[Summary]) -> str:
    """What is on the page, and what must not be missed."""
    if not records:
        return "Results of evaluation; no records of devices."
    count = f"{len(records)} record{'s' * (len(records) != 1)}"
    host = sum(one.head["device"]["kind"] == "host" for one in records)
    phones = f"{host} of a computer, not of a phone" if host else "all of phones"
    failed = sum(bool(one.failed) or one.status != "done" for one in records)
    nonsense = [one.label for one in records if one.text and one.text.get("degenerate")]
    text = f"{count}, {phones}."
    if failed:
        text += f" {failed} with failed runs."
    if nonsense:
        text += f" The text is degenerate in: {', '.join(nonsense)}. Their speeds may be of a broken program."
    return text


def page(records: Sequence[Summary], title: str = "Phi-3 on devices", quality: Quality = ()) -> str:
    """HTML; records in order of time."""
    figures = plots(records)
    first, *others = tables_of(records, quality)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(summary_line(records))}</p>',
        table_html(first),
        f'<h2>Plots</h2><div class="plots">{"".join(figures)}</div>' if figures else "",
        *(table_html(table) for table in others),
        _texts(records),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def plots(records: Sequence[Summary]) -> list[str]:
    """Figures that have data."""
    decode, memory, speed, heat, estimated = [], [], [], [], set()
    for color, one in enumerate(records):
        points = sorted((int(name.split()[1]), found) for name, found in one.figures.items() if name.startswith("decode "))
        decode.append(
            Line(
                one.label,
                [(depth, found.value) for depth, found in points],
                [(depth, found.low, found.high) for depth, found in points],
                color,
            )
        )
        memory.append(Line(one.label, [(tokens, size / 1e9) for tokens, size in one.memory], color=color))
        bundle = one.head["bundle"]
        if one.memory and bundle["hash"] not in estimated:
            estimated.add(bundle["hash"])
            peak = sorted((int(tokens), value / 1e9) for tokens, value in bundle["memory"].get("peak", {}).items())
            memory.append(Line(f"{bundle['name']}, estimate with all weights", peak, color=color + 3, dashed=True))
        speed.append(Line(one.label, [(t / 60, rate) for t, rate in _thinned(one.sustained)], color=color))
        heat.append(Line(one.label, [(t / 60, value) for t, value in _thinned(one.heat)], color=color))
    energy = [
        (f"{one.label}, by {method}", joules, one.energy_error.get(method, 0.0), color)
        for color, one in enumerate(records)
        for method, joules in one.energy.items()
    ]
    drawn = [
        plot("Decode speed by depth", decode, "tokens before", "tokens/s"),
        plot("Memory by context: dirty pages", memory, "tokens in the KV cache", "GB"),
        plot("Sustained decode", speed, "minutes", "tokens/s"),
        plot("Temperature meanwhile", heat, "minutes", "°C: skin, else battery", from_zero=False),
        bars("Energy per token, whole phone or its rails", energy, "J"),
    ]
    return [figure for figure in drawn if figure]


def _thinned(points: Sequence[tuple[float, float]], most: int = 200) -> list[tuple[float, float]]:
    """At most `most` points: means of equal stretches."""
    if len(points) <= most:
        return list(points)
    found = []
    for part in range(most):
        some = points[part * len(points) // most : (part + 1) * len(points) // most]
        found.append((sum(t for t, _ in some) / len(some), sum(value for _, value in some) / len(some)))
    return found


def table_html(table: Table) -> str:
    """Title, rows and note."""
    head = "".join(f"<th>{escape(text)}</th>" for text in table.head)
    rows = "".join(f"<tr>{''.join(map(_td, row))}</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<h2>{escape(table.title)}</h2><div class="wide"><table>{body}</table></div>{note}'


def _td(cell: Cell) -> str:
    return f'<td class="{cell.tone}">{escape(cell.text)}</td>' if cell.tone else f"<td>{escape(cell.text)}</td>"


def _texts(records: Sequence[Summary]) -> str:
    told = [one for one in records if one.text]
    quotes = "".join(
        f"<p>{escape(one.label)}</p><blockquote>{escape(one.text['text'][:600]) or '(nothing)'}</blockquote>" for one in told
    )
    return f"<h2>What they said</h2>{quotes}" if told else ""


def markdown(records: Sequence[Summary], title: str = "Phi-3 on devices", quality: Quality = ()) -> str:
    """The same tables; plots are for the page."""
    parts = [f"# {title}", _plain(summary_line(records))]
    parts += [table_markdown(table) for table in tables_of(records, quality)]
    return "\n\n".join(parts) + "\n"


def table_markdown(table: Table) -> str:
    """The same as Markdown."""
    rows = [table.head, ["---"] * len(table.head), *([cell.text for cell in row] for row in table.rows)]
    parts = [f"## {_plain(table.title)}", "\n".join(f"| {' | '.join(map(_plain, row))} |" for row in rows)]
    return "\n\n".join([*parts, _plain(table.note)] if table.note else parts)


def _plain(text: str) -> str:
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
    return text.replace("*", "\\*").replace("_", "\\_").replace("`", "\\`") if text != "---" else text
