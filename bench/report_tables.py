"""The report's tables, as plain rows that both the page and the Markdown print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from phi3mobile.bench.predict import errors, phones, predict, published
from phi3mobile.bench.report_data import FEWEST, TOO_FEW, Change, Figure, Summary, changes, comparable

GOOD, BAD, NONE = "good", "bad", ""


@dataclass(frozen=True)
class Cell:
    text: str
    tone: str = NONE  # GOOD or BAD colours it; the text says it too


@dataclass(frozen=True)
class Table:
    title: str
    head: list[str]
    rows: list[list[Cell]]
    note: str = ""


def _cells(*texts: str) -> list[Cell]:
    return [Cell(text) for text in texts]


def claim_value(name: str, one: Summary) -> tuple[float, str] | None:
    """A record's value for a claim of published.toml and where it is from; None: it was not measured."""
    if name == "battery":
        share = one.battery_percent_per_1000
        return None if share is None else (share, "sustained run")
    prefix, scale = {"decode": ("decode ", 1.0), "TTFT": ("ttft ", 1e3), "memory": ("memory ", 1e-9)}[name]
    if name == "memory":
        found = one.figures.get("memory footprint") or one.figures.get("memory peak")
        return found and (found.value * scale, "peak, weights' file pages too")
    sizes = sorted(int(key.split()[1]) for key in one.figures if key.startswith(prefix))
    if not sizes:
        return None
    size = min(sizes, key=lambda value: abs(value - 128))
    return one.figures[f"{prefix}{size}"].value * scale, f"{'at depth' if name == 'decode' else 'prompt of'} {size}"


def headline(records: Sequence[Summary]) -> Table:
    """Claims against records."""
    rows = []
    for claim in published()["claim"]:
        sign = ">" if claim["at_least"] else "≤"
        row = _cells(f"{claim['name']}: {sign} {claim['limit']:g} {claim['unit']}")
        for one in records:
            found = claim_value(claim["name"], one)
            if found is None:
                row.append(Cell("not measured"))
                continue
            value, where = found
            text = f"{short(value)} ({where})"
            if other := _not_the_claims(one):
                row.append(Cell(f"{text}; {other}"))
                continue
            met = value > claim["limit"] if claim["at_least"] else value <= claim["limit"]
            row.append(Cell(f"{text} {'✓' if met else '✗ missed'}", GOOD if met else BAD))
        rows.append(row)
    sources = "; ".join(f"{claim['name']}: {claim['source']}" for claim in published()["claim"])
    return Table(
        "Against the claims",
        ["", *(_short(one) for one in records)],
        rows,
        f"The claims are about phi-3-mini at 4 bit on a phone. {sources}.",
    )


def _not_the_claims(one: Summary) -> str:
    """Why a record says nothing about the claims; "" if it does."""
    if one.head["device"]["kind"] == "host":
        return "no phone"
    return "" if 3.5e9 <= one.head["bundle"]["model"]["parameters"] <= 4.2e9 else "another model"


def figures_table(records: Sequence[Summary]) -> Table:
    """Every figure with its interval."""
    names: dict[str, None] = {}
    for one in records:
        names |= dict.fromkeys(one.figures)
    rows = []
    for name in names:
        rows.append([Cell(label(name)), *(Cell(_with_interval(name, one.figures.get(name))) for one in records)])
        depth = name.removeprefix("decode ")
        if depth != name:
            pairs = [one.between_ms.get(int(depth)) for one in records]
            texts = [f"p50 {short(pair[0])}, p95 {short(pair[1])} ms" if pair else "" for pair in pairs]
            rows.append(_cells(f"time between tokens at {depth}", *texts))
    extra = [
        ("burst to sustained", lambda one: _or_nothing(one.burst_to_sustained, "{:.0%} kept")),
        ("throttling", lambda one: one.throttled or ("none seen" if one.heat else "")),
        ("battery per 1000 tokens", lambda one: _or_nothing(one.battery_percent_per_1000, "{:.2g} %")),
        ("energy not measured", lambda one: one.why_no_energy),
        ("text", lambda one: "" if one.text is None else one.text.get("degenerate") or "sound"),
        ("failed runs", lambda one: "; ".join(one.failed)),
    ]
    for name, tell in extra:
        texts = [tell(one) for one in records]
        if any(texts):
            bad = name == "failed runs"
            tones = [BAD if text and (bad or (name == "text" and text != "sound")) else NONE for text in texts]
            rows.append([Cell(name), *(Cell(text, tone) for text, tone in zip(texts, tones, strict=True))])
    return Table(
        "Figures",
        ["median (95 % interval)", *(_short(one) for one in records)],
        rows,
        "Intervals: percentile bootstrap of the median over rounds. One round has no interval.",
    )


def card_rows(one: Summary) -> dict[str, str]:
    """A record's figures with units and intervals, for the screen."""
    return {row[0].text: row[1].text for row in figures_table([one]).rows if row[1].text}


def _or_nothing(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _with_interval(name: str, found: Figure | None) -> str:
    if found is None:
        return ""
    scale, unit = unit_of(name)
    text = short(found.value * scale)
    if found.high > found.low:
        text += f" ({short(found.low * scale)} to {short(found.high * scale)})"
    return f"{text} {unit}"


def short(value: float) -> str:
    """Three digits, never an exponent for what people read: 2,130, 14.2, 0.615."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}" if value else "0"


def unit_of(name: str) -> tuple[float, str]:
    """Scale and unit of a figure."""
    units = {"memory": (1e-9, "GB"), "ttft": (1e3, "ms"), "load": (1.0, "s"), "energy": (1.0, "J/token")}
    return units.get(name.split()[0], (1.0, "tokens/s"))


def label(name: str) -> str:
    """`decode 128` for people."""
    kind, _, rest = name.partition(" ")
    return {
        "decode": f"decode at depth {rest}",
        "prefill": f"prefill of {rest}",
        "ttft": f"TTFT, prompt of {rest}",
        "load": f"load, {rest}",
        "memory": f"memory, {rest}",
        "energy": f"energy by {rest}",
        "sustained": "sustained decode, second half",
    }.get(kind, name)


def regressions(records: Sequence[Summary]) -> list[Table]:
    """Each record against the one before it of the same device, model and recipe."""
    tables = []
    for number, new in enumerate(records):
        old = next((one for one in reversed(records[:number]) if comparable(one, new)), None)
        if old is not None:
            tables.append(_change_table(old, new, changes(old, new)))
    return tables


def _change_table(old: Summary, new: Summary, found: list[Change]) -> Table:
    order = {"worse": 0, "better": 1, "same": 2, TOO_FEW: 3}
    rows = []
    for one in sorted(found, key=lambda change: order[change.verdict]):
        scale, unit = unit_of(one.name)
        tone = {"worse": BAD, "better": GOOD}.get(one.verdict, NONE)
        change = _percent(one.ratio)
        if one.high > one.low:
            change += f" ({_percent(one.low)} to {_percent(one.high)})"
        values = f"{short(one.old * scale)} → {short(one.new * scale)} {unit}"
        verdict = f"no verdict: {_rounds(one)}" if one.verdict == TOO_FEW else one.verdict
        rows.append([Cell(label(one.name)), Cell(verdict, tone), *_cells(change, values)])
    worse = sum(one.verdict == "worse" for one in found)
    judged = any(one.verdict != TOO_FEW for one in found)
    state = f"{worse} worse" if worse else "no regression" if judged else "too few rounds for a verdict"
    note = (
        f"Worse or better only where the whole interval lies beyond 3 %, and both runs have {FEWEST} rounds of it. Intervals "
        "know the rounds of one run, not what else differs between two runs of a phone: measure again before believing one."
    )
    return Table(f"{_short(old)} → {_short(new)}: {state}", ["", "", "change (95 % interval)", "old → new"], rows, note)


def _rounds(one: Change) -> str:
    counts = sorted(set(one.rounds))
    return f"{' and '.join(map(str, counts))} round{'' if counts == [1] else 's'}"


def _percent(ratio: float) -> str:
    text = f"{ratio - 1:+.1%}"
    return "0.0%" if text in ("+0.0%", "-0.0%") else text


def devices_table(records: Sequence[Summary]) -> Table:
    """What was measured on what."""

    def row(name: str, tell: Any) -> list[Cell]:
        return _cells(name, *(str(tell(one) or "") for one in records))

    rows = [
        row("device", lambda one: one.head["device"]["name"]),
        row("chip", lambda one: one.head["device"].get("soc")),
        row("system", lambda one: one.head["device"].get("os")),
        row(
            "memory",
            lambda one: f"{one.head['device']['memory_bytes'] / 1e9:.1f} GB" if one.head["device"].get("memory_bytes") else "",
        ),
        row("governor", lambda one: one.head["device"].get("governor")),
        row("build", lambda one: one.head["device"].get("build")),
        row("runner", lambda one: one.head["device"].get("runner")),
        row(
            "bundle",
            lambda one: (
                f"{one.head['bundle']['name']}, {one.head['bundle']['recipe']}, "
                f"{one.head['bundle']['model']['parameters'] / 1e9:.2f} B, context {one.head['bundle']['model']['context']}"
            ),
        ),
        row("bundle hash", lambda one: one.head["bundle"]["hash"][:12]),
        row("phi3mobile, runtime", lambda one: f"{one.head['tool']}, {one.head['bundle']['runtime']}"),
        row("measured", lambda one: _time(one.head["t"])),
        row("plan", lambda one: one.head["plan"]["name"]),
        row("left out", lambda one: ", ".join(one.head["left_out"])),
        row("status", lambda one: one.status),
    ]
    return Table(
        "Devices and bundles", ["", *(_short(one) for one in records)], [r for r in rows if any(c.text for c in r[1:])]
    )


def _time(t: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M UTC")


def peers_table() -> Table:
    """What others published."""
    rows = [
        _cells(
            one["device"],
            one["model"],
            one["runtime"],
            _or_dash(one.get("prefill")),
            f"{one['tokens_per_s']:g}",
            _or_dash(one.get("memory_gb")),
            one["source"],
        )
        for one in published()["peer"]
    ]
    head = ["device", "model", "runtime", "prefill tokens/s", "decode tokens/s", "memory GB", "source"]
    return Table("Published by others", head, rows, "Not measured by us.")


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def prediction_table(records: Sequence[Summary]) -> Table:
    """Expected speed of each measured bundle on common phones, then how wrong the predictor is."""
    rows = []
    for head in {one.head["bundle"]["hash"]: one.head["bundle"] for one in records}.values():
        # Records of bundles of format 1 don't say it; there the recipes with our kernels mapped them.
        mapped = head.get("weights_mapped", head["options"].get("attention") == "native")
        manifest = {key: head[key] for key in ("model", "memory")} | {"recipe": head["options"], "weights_mapped": mapped}
        manifest["runtime"] = {"experts": head.get("experts")}
        for phone in phones().values():
            found = predict(manifest, phone)
            rows.append(
                [
                    *_cells(head["name"], phone["name"], str(found.decode), str(found.prefill)),
                    Cell(found.verdict, GOOD if found.fits else BAD),
                ]
            )
    missed = "; ".join(
        f"{one.device}, {one.model}: {one.predicted:.3g} for {one.published:g} ({one.error:+.0%})" for one in errors()
    )
    return Table(
        "Expected, not measured",
        ["bundle", "phone", "decode tokens/s", "prefill tokens/s", "memory"],
        rows,
        f"From bandwidth and cores. The same rule for published figures: {missed}.",
    )


def _short(one: Summary) -> str:
    return one.label or one.title


def name_records(records: Sequence[Summary]) -> None:
    """Short labels that differ: the device, and what else is needed to tell them apart."""
    keys = (
        lambda one: one.head["device"]["name"],
        lambda one: one.head["bundle"]["name"],
        lambda one: one.head["bundle"]["recipe"],
        lambda one: one.head["tool"],
        lambda one: _time(one.head["t"]),
    )
    used = [keys[0]]
    for key in keys[1:]:  # each is added only where those before leave two records alike
        told = [tuple(one(record) for one in used) for record in records]
        alike = [[key(record) for record, other in zip(records, told, strict=True) if other == name] for name in set(told)]
        if any(len(set(values)) > 1 for values in alike):
            used.append(key)
    for number, one in enumerate(records, 1):
        one.label = ", ".join(key(one) for key in used)
        if sum(other.label == one.label for other in records[:number]) > 1:
            one.label += f" #{number}"
