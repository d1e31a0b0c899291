"""What the README shows works: its commands parse, its Python runs, its tree and its files are there."""

import re
import shlex
from pathlib import Path

import pytest

from phi3mobile.cli import VERBS, _parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [line.split("  #")[0].strip() for line in README.splitlines() if line.startswith("    phi3mobile ")]


def test_there_are_commands_for_every_verb():
    shown = {command.split()[1] for command in COMMANDS}
    assert shown >= set(VERBS) - {"demo"} and "make demo" in README and "make test" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command):
    words = shlex.split(command.split("<")[0])
    assert _parser(words[1]).parse_args(words[1:]).verb == words[1]


def test_the_python_runs(tiny_checkpoint_folder, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").symlink_to(tiny_checkpoint_folder)
    exec(compile(block.replace("context=2048", "context=128").replace("max_tokens=200", "max_tokens=8"), "README", "exec"), {})
    assert (tmp_path / "model.bundle" / "manifest.json").exists()
    assert float(capsys.readouterr().out.splitlines()[-1]) > 0


def test_the_tree_and_the_pictures_are_there():
    for name in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / name).is_file(), name
    tree = README.split("## The tree")[1].split("##")[0]
    for word in re.findall(r"\b[\w/]+\.py\b", tree):
        assert any(ROOT.glob(f"**/{word}")), word
    assert "MEASURED" not in README
