"""What each step of a build removed and why, with samples: from the tasks' logs to statistics.json and one HTML page."""

from __future__ import annotations

import json
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

from phi3mobile.training.data.jsonl import read_jsonl, write_json

# Step, as datatrove's logs name it -> folder of its samples, and its name in a config.
_STEPS = {
    "Trafilatura": "extract",
    "Language ID": "language",
    "Gopher Repetition": "gopher_repetition",
    "Gopher Quality": "gopher_quality",
    "C4 Quality": "c4",
    "FineWeb Quality": "fineweb",
    "Education": "education",
    "N-grams decontaminate": "decontaminate",
    "MinHash stage 4": "deduplicate",
}
UNREADABLE = "unreadable"  # the readers' own count
_SHOWN = 12


def collect(work: Path) -> dict[str, Any]:
    """{read, unreadable, kept, steps: [{name, seen, removed, reasons, seconds}], samples} of the stages that have ended in
    `work`; unreadable: files or lines that are not UTF-8, lines that are not JSON.
    """
    steps, read, unreadable, kept = [], 0, 0, 0
    for stage in ("filter", "pack"):
        for name, counts, seconds in _merged(work / "logs" / stage / "stats"):
            if "READER" in name and stage == "filter":
                read += counts["documents"]
                unreadable += counts[UNREADABLE]
            key = next((key for mark, key in _STEPS.items() if mark in name), None)
            if key:
                reasons = {k.removeprefix("dropped_"): n for k, n in counts.items() if k.startswith("dropped_")}
                removed = counts["total"] - counts["forwarded"]
                figures = {"seen": counts["total"], "removed": removed, "reasons": reasons, "seconds": round(seconds, 1)}
                steps.append({"name": key, **figures})
            if "WRITER" in name or "Packed" in name:
                kept = counts["total"]
    samples = {step["name"]: _samples(work / "removed" / step["name"]) for step in steps if step["removed"]}
    return {"read": read, "unreadable": unreadable, "kept": kept, "steps": steps, "samples": samples}


def _merged(folder: Path) -> list[tuple[str, Counter, float]]:
    """Each step's name, counts and seconds, summed over the tasks."""
    merged: list[tuple[str, Counter, float]] = []
    for number, file in enumerate(sorted(folder.glob("*.json"))):
        for index, step in enumerate(json.loads(file.read_text())):
            counts = Counter({key: int(_total(value)) for key, value in step["stats"].items()})
            seconds = float(_total(step["time_stats"]))
            if number == 0:
                merged.append((step["name"], counts, seconds))
            else:
                name, before, spent = merged[index]
                merged[index] = (name, before + counts, spent + seconds)
    return merged


def _total(value: Any) -> float:
    return value.get("total", 0) if isinstance(value, dict) else value


def _samples(folder: Path) -> list[dict[str, str]]:
    """Some removed documents: the first of every reason before the second of any."""
    documents = [document for file in sorted(folder.glob("*.jsonl")) for document in read_jsonl(file)]
    seen, ranked = Counter(), []
    for document in documents:
        reason = document["metadata"].get("filter_reason", "")
        ranked.append((seen[reason], {"reason": reason, "id": document["id"], "text": document["text"]}))
        seen[reason] += 1
    return [sample for _, sample in sorted(ranked, key=lambda pair: pair[0])[:_SHOWN]]


def write_page(folder: Path, statistics: dict[str, Any]) -> None:
    """statistics.json and statistics.html (one file, nothing loaded from elsewhere) in `folder`."""
    (folder / "statistics.html").write_text(page(statistics), encoding="utf-8")
    write_json(folder / "statistics.json", statistics)


def page(statistics: dict[str, Any]) -> str:
    """The statistics as HTML."""
    read = max(1, statistics["read"])
    left_out = f"; {statistics['unreadable']:,} more can't be read (not UTF-8, or no JSON)" if statistics["unreadable"] else ""
    rows = "".join(_row(step, read, statistics["samples"].get(step["name"], [])) for step in statistics["steps"])
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(statistics["out"])}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
body {{ color: #222; background: #fff }}
table {{ width: 100%; border-collapse: collapse }} td, th {{ text-align: left; padding: .3rem .6rem; vertical-align: top }}
th, .n {{ white-space: nowrap }} .n {{ text-align: right; font-variant-numeric: tabular-nums }}
tr + tr td {{ border-top: 1px solid #ddd }} .bar {{ background: #c44; height: .6rem; border-radius: 2px }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .6rem; max-height: 14rem; overflow: auto }}
summary {{ cursor: pointer; color: #06c }} small {{ color: #666 }}
@media (prefers-color-scheme: dark) {{ body {{ background: #111; color: #ddd }} pre {{ background: #1c1c1c }}
 tr + tr td {{ border-color: #333 }} summary {{ color: #6af }} small {{ color: #999 }} }}
</style><h1>{escape(statistics["out"])}</h1>
<p><b>{statistics["read"]:,}</b> documents read, <b>{statistics["documents"]:,}</b> kept
({statistics["documents"] / read:.1%}), <b>{statistics["tokens"]:,}</b> tokens{left_out}.</p>
<table><tr><th>step<th class="n">seen<th class="n">removed<th style="width:30%">of all read<th>why{rows}</table></html>
"""


def _row(step: dict[str, Any], read: int, samples: list[dict[str, str]]) -> str:
    share = step["removed"] / read
    reasons = ", ".join(f"{escape(reason)} {count:,}" for reason, count in sorted(step["reasons"].items(), key=lambda r: -r[1]))
    shown = "".join(
        f"<small>{escape(s['reason'])} · {escape(str(s['id']))}</small><pre>{escape(s['text'])}</pre>" for s in samples
    )
    details = f"<details><summary>{len(samples)} removed documents</summary>{shown}</details>" if samples else ""
    return (
        f'<tr><td><b>{escape(step["name"])}</b><td class="n">{step["seen"]:,}<td class="n">{step["removed"]:,}'
        f'<td><div class="bar" style="width:{share:.1%}"></div>{share:.1%}<td>{reasons}{details}'
    )
