"""Nothing of foreign libraries reaches the screen but errors: what verbs print with every engine, in their own processes."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from phi3mobile.quiet import without

_SLOW = (pytest.param(recipe, marks=pytest.mark.slow) for recipe in ("android-cpu", "ios-executorch"))
ENGINES = ("host", "litert", "ios-gpu", *_SLOW)  # a recipe of each that this machine runs
NEEDS = {"litert": "ai_edge_litert", "ios-gpu": "coremltools", "ios-executorch": "coremltools"}
# Of ours: the numbers after an answer, notes, prompts of a chat; a line for each minute that a verb takes.
OURS = re.compile(r"\[.*\]|/reset forgets .*|  \(cut: .*|> ?||.*, \d+:\d\d:\d\d(, \S+ left)?")


def verb(*arguments, stdin="", **options):
    command = [sys.executable, "-m", "phi3mobile.cli", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, errors="replace", timeout=600, **options)


def bundle_for(recipe, bundle_of):
    package = NEEDS.get(recipe)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return bundle_of("tiny-gqa", recipe)


@pytest.mark.parametrize("recipe", ENGINES)
def test_an_answer_and_its_numbers_are_all_that_run_prints(recipe, bundle_of):
    done = verb("run", bundle_for(recipe, bundle_of), "hello", "--raw", "--max-tokens", 3)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not OURS.fullmatch(line)] == []
    assert done.stdout.count("\n") <= 4 and "INFO" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ENGINES)
def test_other_verbs_print_their_own_lines_only(recipe, bundle_of, tmp_path):
    bundle = bundle_for(recipe, bundle_of)
    for arguments in (
        ["chat", bundle, "--max-tokens", 3],
        ["verify", bundle],
        ["inspect", bundle],
        ["bench", bundle, "--rounds", 1],
        ["bench", bundle, "--device", "host", "--preset", "quick", "-o", tmp_path / "record.jsonl"],
    ):
        done = verb(*arguments, stdin="hello\nagain\n")
        assert done.returncode == 0, (arguments, done.stderr)
        assert [line for line in done.stderr.splitlines() if not OURS.fullmatch(line)] == [], arguments
        assert not re.search(r"^(INFO|WARNING|[IWE]\d{4} |.*Warning:)", done.stdout, re.M), arguments


API = """
import gc, os, sys
import numpy as np
from phi3mobile.bundle import open_bundle
from phi3mobile.engines.registry import open_engine
engine = open_engine(open_bundle(sys.argv[1]))
engine.forward(np.arange(3), 0)
if sys.argv[2] == "closed":
    engine.close()
if sys.argv[2] == "failed":
    raise KeyError("told")
os.write(2, b"ERROR: told\\n")
"""


@pytest.mark.parametrize("end", ["closed", "left open", "failed"])
def test_an_engine_without_a_verb_hides_messages_and_no_errors(bundle_of, end):
    """LiteRT tells of its accelerators when a model is opened and dropped, and once more when the process ends."""
    bundle = bundle_for("litert", bundle_of)
    done = subprocess.run([sys.executable, "-c", API, str(bundle), end], capture_output=True, text=True)
    assert not [line for line in done.stderr.splitlines() if line.startswith(("INFO", "VERBOSE"))]
    assert done.stderr.splitlines()[-1] == ("KeyError: 'told'" if end == "failed" else "ERROR: told")
    assert done.returncode == (end == "failed")


def test_lines_are_left_out_and_others_come_in_their_order(capfd):
    with pytest.raises(ValueError, match="no"), without(re.compile("INFO: ")):
        os.write(2, b"INFO: one\nERROR: two\n")
        os.write(2, b"INFO: three\nfour \xff")
        raise ValueError("no")
    os.write(2, b"\nINFO: after\n")
    assert capfd.readouterr().err == "ERROR: two\nfour \ufffd\nINFO: after\n"


@pytest.mark.parametrize("context", ["quiet()", "without(re.compile('INFO'))"])
def test_a_closed_stderr_is_no_bug(context):
    code = f"import os, re, sys\nfrom phi3mobile.quiet import quiet, without\nwith {context}:\n    x = 1\nprint(x)\n"
    code += "try:\n    os.fstat(2)\nexcept OSError:\n    print('closed')\n"
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("1\nclosed\n", 0)


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_closed_streams_lead_to_nothing(closed, tiny_bundle, tmp_path):
    """Not to the file that happens to be opened next: the bundle's, for one."""
    before = {path: path.read_bytes() for path in tiny_bundle.iterdir() if path.is_file()}
    arguments = ["-m", "phi3mobile.cli", "run", str(tiny_bundle), "hello", "--max-tokens", "2"]
    done = subprocess.run(["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and ("[" in done.stderr) == ("2>" not in closed)
    assert bool(done.stdout) == (">&- 2" not in closed) and "tokens/s" not in done.stdout
    assert {path: path.read_bytes() for path in before} == before
