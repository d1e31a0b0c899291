"""phi3mobile report RECORD... -o report.html (or .md): what was measured, on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from phi3mobile.errors import InputError
from phi3mobile.files import whole_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", nargs="+", type=Path, help=".jsonl that `phi3mobile bench --device` or `eval --out` wrote")
    parser.add_argument("-o", "--out", type=Path, required=True, help="report.html or report.md; an older one is replaced")
    parser.add_argument("--title", default="Phi-3 on devices")
    parser.add_argument("--fail-on-regression", action="store_true", help="exit code 1 if a figure became worse, for CI")


def run(args: argparse.Namespace) -> int:
    from phi3mobile.bench.evaluate.results import holds_results, quality_table, read_results
    from phi3mobile.bench.protocol import read_record
    from phi3mobile.bench.report_data import changes, comparable, summarize
    from phi3mobile.bench.report_page import markdown, page
    from phi3mobile.bench.report_tables import headline, name_records
    from phi3mobile.screen import print_card, print_json

    write = {".html": page, ".md": markdown}.get(args.out.suffix)
    if write is None:
        raise InputError(f"-o {args.out}: give a name that ends in .html or .md")
    quality = [line for path in args.records if holds_results(path) for line in read_results(path)]
    digests = (_digest(path, read_record, summarize) for path in args.records if not holds_results(path))
    records = sorted(digests, key=lambda one: one.head["t"])
    name_records(records)
    text = write(records, args.title, quality)
    try:
        with whole_file(args.out) as partial:
            partial.write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"{args.out} can't be written ({error.strerror}); write elsewhere") from None
    worse = []
    for number, new in enumerate(records):
        old = next((one for one in reversed(records[:number]) if comparable(one, new)), None)
        if old is not None:
            worse += [f"{new.label}: {one.name} {one.ratio - 1:+.1%}" for one in changes(old, new) if one.verdict == "worse"]
    table = headline(records) if records else quality_table(quality)
    print_card(
        str(args.out),
        {row[0].text: "; ".join(cell.text for cell in row[1:]) for row in table.rows}
        | {"worse": ", ".join(worse) or "nothing"},
    )
    print_json({"report": str(args.out), "records": len(records), "results": len(quality), "worse": worse})
    return 1 if worse and args.fail_on_regression else 0


def _digest(path: Path, read_record, summarize):
    """Raises InputError for a record whose lines are not what the protocol writes."""
    lines = read_record(path)
    try:
        return summarize(lines, str(path))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); measure again") from None
