"""The report: what a record says, which figures became worse, and that the page renders by itself in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.bench.protocol import FORMAT, PLANS, Plan, degenerate, read_record, runs_of
from phi3mobile.bench.report_data import TOO_FEW, changes, figure, summarize
from phi3mobile.bench.report_page import markdown, page
from phi3mobile.bench.report_svg import Line, plot, ticks
from phi3mobile.bench.report_tables import claim_value, headline, name_records, regressions
from phi3mobile.cli import main
from phi3mobile.errors import InputError
from phi3mobile.export.demo_model import demo_recipe

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def record(
    name="Test Phone", speed=12.0, t=1_800_000_000.0, noise=0.02, seed=0, kind="android", tool="0.1.0", **changed
) -> list[dict]:
    """The lines of an invented phone with phi-3-mini's shape, decoding at `speed` tokens/s; `noise`: spread of rounds."""
    draw = np.random.default_rng(seed)

    def near(value: float) -> float:
        return float(value * (1 + noise * draw.standard_normal()))

    model = {
        "vocab": 32064,
        "context": 4096,
        "chunk": 128,
        "original_context": None,
        "max_context": 4096,
        "layers": 32,
        "parameters": 3_821_079_552,
        "bits_per_weight": 4.7,
        "hidden": 3072,
        "heads": 32,
        "kv_heads": 32,
        "head_dim": 96,
        "sliding_window": None,
    }
    peak = {"1024": 2.5e9, "2048": 2.7e9, "4096": 3.1e9}
    head = {
        "kind": "head",
        "format": FORMAT,
        "tool": tool,
        "left_out": ["prefill 8192"],
        "battery_wh": 17.0,
        "t": t,
        "plan": {"name": "phi3-report"},
        "device": {
            "kind": kind,
            "name": name,
            "os": "Android 15 (API 35)",
            "soc": "SM8650",
            "cores": 8,
            "governor": "walt",
            "memory_bytes": 12e9,
            "build": "vendor/device:15/AP3A/1:user/release-keys",
            "runner": "p3m",
        },
        "bundle": {
            "name": "phi-3-mini",
            "hash": "ab" * 32,
            "recipe": "android-native",
            "file_bytes": 2.2e9,
            "options": {"attention": "native"},
            "model": model,
            "memory": {"weights": 2.2e9, "kv_per_token": 204_800, "activations": 3.3e7, "peak": peak},
            "runtime": "1.5.1",
        },
    }
    lines = [head | changed]
    lines += [{"kind": "load", "run": f"cold {i}", "seconds": near(14), "peak_bytes": 2.6e9, "t": t} for i in (1, 2, 3)]
    lines += [{"kind": "load", "run": f"warm {i}", "seconds": near(1.2), "peak_bytes": 1.9e9, "t": t} for i in (1, 2, 3)]
    for size in (16, 128, 1024):
        lines += [{"kind": "prefill", "run": "speed", "tokens": size, "seconds": near(size / 60), "t": t} for _ in range(5)]
    for depth, slower in ((128, 1.0), (1024, 1.1), (2048, 1.25)):
        for _ in range(5):
            pace = near(slower / speed)
            lines.append({"kind": "decode", "run": "speed", "depth": depth, "seconds": [pace] * 62 + [pace * 1.5] * 2, "t": t})
        lines.append(
            {
                "kind": "memory",
                "run": "speed",
                "tokens": depth,
                "peak_bytes": 2.1e9,
                "dirty_bytes": 9e7 + 204_800 * depth,
                "t": t,
            }
        )
    for i in range(1, 181):
        throttled = speed * (1 if i < 40 else 0.62 + 0.38 * np.exp(-(i - 40) / 40))
        lines.append(
            {
                "kind": "sustain",
                "run": "sustained",
                "elapsed": i * 10.0,
                "tokens": 64,
                "seconds": 64 / near(throttled),
                "total": i * 64,
                "t": t + i * 10,
            }
        )
        lines.append(
            {
                "kind": "sample",
                "run": "sustained",
                "t": t + i * 10,
                "current_a": 1.1,
                "voltage_v": 3.9,
                "rails_j": {},
                "battery": {"temperature_c": 28 + i / 20, "percent": 80 - i / 20, "plugged": False, "simulated": False},
                "thermal": {"status": 2 if i > 40 else 0, "temperatures": {}, "skin_c": 30 + 14 * (1 - np.exp(-i / 50))},
            }
        )
    lines.append(
        {
            "kind": "energy",
            "run": "sustained",
            "tokens": 180 * 64,
            "why_not": "",
            "methods": [
                {"method": "current", "joules": 7700.0, "seconds": 1800.0, "error": 0.05},
                {"method": "ticks", "joules": 5508.0, "seconds": 1400.0, "error": 0.1},
            ],
        }
    )
    text = "Sunlight is scattered by air, blue more than red.</p><script>alert(1)</script> | *x*"
    lines.append({"kind": "text", "run": "text", "tokens": [1, 2], "text": text, "degenerate": "", "t": t})
    return [*lines, {"kind": "end", "status": "done", "failed": 0, "t": t + 2000}]


def written(folder: Path, name: str, lines: list[dict]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# What a record says


def test_the_figures_of_known_times():
    found = summarize(record(noise=0))
    assert found.figures["decode 128"].value == pytest.approx(64 / ((62 + 3) / 12)) and found.status == "done"
    assert found.figures["ttft 128"].value == pytest.approx(128 / 60) and found.figures["prefill 1024"].value == pytest.approx(
        60
    )
    assert found.between_ms[128] == (pytest.approx(1e3 / 12), pytest.approx(1e3 / 12))
    assert found.memory == [(128, 90_000_000 + 204_800 * 128), (1024, 9e7 + 204_800 * 1024), (2048, 9e7 + 204_800 * 2048)]
    assert 0.62 < found.burst_to_sustained < 0.68 and found.throttled == "thermal status moderate"
    assert found.energy["current"] == pytest.approx(7700 / (180 * 64))
    # The ticks saw 1400 of 1800 seconds.
    assert found.energy["ticks"] == pytest.approx(5508 / (180 * 64 * 1400 / 1800))
    assert found.battery_percent_per_1000 == pytest.approx(100 * 1000 * found.energy["ticks"] / (17 * 3600))
    assert found.heat[0] == (pytest.approx(10), pytest.approx(30.277, abs=0.01))


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12))
def test_the_interval_holds_the_median(rounds):
    found = figure(rounds)
    assert min(rounds) <= found.low <= found.value <= found.high <= max(rounds)


def test_the_interval_covers_the_truth():
    """Of 200 samples of nine rounds, at least nine in ten intervals hold the true median."""
    draw = np.random.default_rng(1)
    hits = [(found := figure(10 + draw.standard_normal(9), seed)).low <= 10 <= found.high for seed in range(200)]
    assert sum(hits) >= 180


def test_a_record_that_was_interrupted_is_read(tmp_path):
    lines = record()[:20]
    path = written(tmp_path, "cut.jsonl", lines)
    path.write_text(path.read_text() + '{"kind": "dec')
    assert read_record(path) == lines and summarize(read_record(path)).status == "interrupted"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no benchmark record of format 1"),
        ('{"kind": "load"}\n', "no benchmark record"),
        ('{"kind": "head", "format": 99}\n', "format 1"),
        ("[1]\n{}\n", "line 1 is no line"),
        ('{"kind": "head", "format": 1}\nnonsense\n{"kind": "end"}\n', "line 2 is no line"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, text, says):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_record(path)


@settings(max_examples=50)
@given(st.lists(st.text() | st.sampled_from(['{"kind": "head", "format": 1}', '{"kind": "load"}', "[" * 9999, "{}"])))
def test_any_file_is_a_record_or_refused(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    path.write_text("\n".join(rows), "utf-8", errors="surrogatepass")
    try:
        assert read_record(path)[0]["kind"] == "head"
    except InputError as error:
        assert str(path) in str(error)


def test_a_damaged_record_is_one_line(tmp_path, capsys):
    path = written(tmp_path, "x.jsonl", [{"kind": "head", "format": 1, "t": 1}, {"kind": "prefill", "tokens": 3}])
    assert main(["report", str(path), "-o", str(tmp_path / "x.html")]) == 2
    assert "is damaged (KeyError" in capsys.readouterr().err and not (tmp_path / "x.html").exists()
    assert main(["report", str(path), "-o", str(tmp_path / "x.pdf")]) == 2
    assert "ends in .html or .md" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "x.md")]) == 2


# The plan


@given(st.integers(1, 5000), st.sampled_from(sorted(PLANS)))
def test_every_step_fits_the_context(context, name):
    plan = PLANS[name]
    runs, left = runs_of(plan, context, [1] * 10)
    steps = [step.split(":") for run in runs for step in run.steps]
    ends = {
        "prefill": lambda a, *_: int(a),
        "decode": lambda a, b, *_: int(a) + int(b),
        "sustain": lambda _, a, b: int(a) + int(b),
        "text": lambda a, ids: int(a) + len(ids.split(",")),
    }
    assert all(0 < ends[kind](*values) <= context for kind, *values in steps)
    measured = sum(kind in ("prefill", "decode") for kind, *_ in steps)
    assert measured + len(left) == len(plan.prompts) + len(plan.depths)
    assert sum(run.cold for run in runs) == plan.cold


def test_the_reports_preset_sustains_half_an_hour():
    plan = PLANS["phi3-report"]
    assert plan.sustain_s == 1800 and 128 in plan.prompts and 128 in plan.depths and plan.cold > 1 and Plan().sustain_s == 0


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([], "nothing"),
        ([5] * 12, "12 times in a row"),
        ([1, 2, 3, 4, 5] * 20, "repeat earlier"),
        (list(range(60)), ""),
        ([1, 1, 2, 3, 5, 8, 13], ""),
    ],
)
def test_nonsense_is_recognised(tokens, says):
    assert says in degenerate(tokens) and bool(degenerate(tokens)) == bool(says)


# Regressions


def test_a_slower_run_is_a_regression_and_noise_is_not():
    old = summarize(record(noise=0.01))
    verdicts = {one.name: one.verdict for one in changes(old, summarize(record(noise=0.01, speed=10.8, seed=1)))}
    assert verdicts["decode 128"] == verdicts["decode 2048"] == verdicts["sustained"] == "worse"
    assert verdicts["prefill 128"] == verdicts["load cold"] == "same" and verdicts["memory peak"] == TOO_FEW
    faster = {one.name: one.verdict for one in changes(old, summarize(record(noise=0.01, speed=14, seed=2)))}
    assert faster["decode 128"] == "better" and faster["ttft 128"] == "same"


def test_equal_runs_are_seldom_called_different():
    flagged = sum(
        one.verdict not in ("same", TOO_FEW)
        for seed in range(20)
        for one in changes(summarize(record(seed=seed)), summarize(record(seed=100 + seed)))
    )
    assert flagged <= 4  # of 20 x 15


def test_few_rounds_have_no_verdict(tmp_path, capsys):
    """One cold start that took 27 % longer says nothing; the page says so."""
    lines = [line for line in record() if line.get("run") not in ("cold 2", "cold 3")]
    slower = [line | {"seconds": line["seconds"] * 1.27} if line.get("run") == "cold 1" else line for line in lines]
    paths = [str(written(tmp_path, f"{i}.jsonl", lines)) for i, lines in enumerate((lines, slower))]
    assert main(["report", *paths, "-o", str(tmp_path / "r.md"), "--fail-on-regression"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["worse"] == []
    page = (tmp_path / "r.md").read_text()
    assert "no verdict: 1 round" in page and "+27.0%" in page


def test_only_the_same_phone_and_bundle_are_compared():
    records = [
        summarize(record()),
        summarize(record("Other", t=1_800_000_100.0)),
        summarize(record(speed=10, t=1_800_000_200.0)),
    ]
    name_records(records)
    (table,) = regressions(records)
    assert "worse" in table.title and len({one.label for one in records}) == 3


def test_continuous_integration_can_fail_on_a_regression(tmp_path, capsys):
    paths = [
        str(written(tmp_path, f"{i}.jsonl", record(speed=speed, t=1_800_000_000.0 + i, seed=i)))
        for i, speed in enumerate((12, 9))
    ]
    command = ["report", *reversed(paths), "-o", str(tmp_path / "report.md")]
    assert main(command) == 0 and main([*command, "--fail-on-regression"]) == 1
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert any("decode 128" in text for text in said["worse"])


# This machine


def test_this_machine_is_measured_and_reported(bundle_of, tmp_path, capsys):
    bundle = bundle_of("tiny-gqa", demo_recipe())
    for name in ("a", "b"):
        command = ["bench", str(bundle), "--preset", "quick", "--rounds", "2", "--threads", "1", "--sustain", "0.005"]
        assert main([*command, "-o", str(tmp_path / f"{name}.jsonl")]) == 0
    shown = capsys.readouterr().out
    said, card = json.loads(shown.splitlines()[-1]), "\n".join(line for line in shown.splitlines() if line.startswith("│"))
    assert said["status"] == "done" and said["decode 128"] > 0 and said["why_no_energy"]
    assert " GB" in card and " tokens/s" in card and "p50" in card
    assert not re.search(r"None|\{|\d{7}", card), card  # units, and no Python
    lines = read_record(tmp_path / "a.jsonl")
    assert sum(line["kind"] == "decode" for line in lines) == 2 and summarize(lines).sustained
    assert lines[0]["device"]["kind"] == "host" and lines[0]["bundle"]["model"]["layers"] == 2
    assert main(["report", *map(str, tmp_path.glob("*.jsonl")), "-o", str(tmp_path / "report.html")]) == 0
    assert "of a computer, not of a phone" in (tmp_path / "report.html").read_text()


# Claims


def test_claims_are_checked_on_phones_with_their_model_only():
    phone, small = summarize(record(speed=13)), summarize(record(speed=13, kind="host"))
    name_records([phone, small])
    rows = {row[0].text.split(":")[0]: row[1:] for row in headline([phone, small]).rows}
    assert rows["decode"][0].tone == "good" and rows["decode"][1].tone == "" and "no phone" in rows["decode"][1].text
    assert rows["memory"][0].tone == rows["TTFT"][0].tone == "bad" and rows["battery"][0].tone == "good"
    assert claim_value("decode", phone) == (pytest.approx(12.8, rel=0.05), "at depth 128")


# The page


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_span_the_values(low, span):
    marks = ticks(low, low + span)
    assert marks[0] <= low + 1e-6 * abs(low) and marks[-1] >= low + span - 1e-6 * abs(low + span) and 2 <= len(marks) <= 9


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e5)), max_size=40))
def test_points_lie_within_the_plot(points):
    drawn = plot("t", [Line("a<b", points)], "x", "y")
    assert bool(drawn) == bool(points)
    assert all(0 <= float(x) <= 640 for x in re.findall(r'cx="([^"]+)"', drawn)) and "a<b" not in drawn


def three(folder: Path) -> list[Path]:
    return [
        written(folder, "a.jsonl", record()),
        written(folder, "b.jsonl", record(speed=10.5, t=1_800_100_000.0, seed=1, tool="0.2.0")),
        written(folder, "c.jsonl", record("Other Phone Pro", 17.5, 1_800_200_000.0, seed=2)),
    ]


def test_the_page_needs_nothing_else(tmp_path):
    records = [summarize(read_record(path)) for path in three(tmp_path)]
    name_records(records)
    text = page(records)
    assert "<script" not in text and re.findall(r'(?:src|href)="([^"]*)"', text) == ["data:,"] and "url(" not in text
    assert text.count("<figure>") == 5 and "SM8650" in text and "arXiv 2404.14219" in text
    assert "| *x*" not in markdown(records) and "## Against the claims" in markdown(records)


@pytest.mark.skipif(BROWSER is None, reason="no browser here (Debian: apt install chromium)")
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1200, True)])
def test_a_browser_renders_it(tmp_path, width, dark):
    """No console message (the page's policy turns any request into one), nothing wider than the window."""
    out = tmp_path / "report.html"
    assert main(["report", *map(str, three(tmp_path)), "-o", str(out)]) == 0
    done = browse(out, tmp_path, width, dark)
    assert "CONSOLE" not in done.stderr, done.stderr
    from PIL import Image

    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.width == width
        corner = shot.convert("RGB").getpixel((2, 2))
    assert (max(corner) < 60) if dark else (min(corner) > 240)


def browse(page: Path, folder: Path, width: int, dark: bool, height: int = 900) -> subprocess.CompletedProcess[str]:
    """A screenshot in folder/shot.png; what the browser said."""
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        f"--user-data-dir={folder}/profile",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--window-size={width},{height}",
        f"--screenshot={folder}/shot.png",
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800, env=os.environ | {"HOME": str(folder)})
