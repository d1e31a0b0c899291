"""What the README shows works: its commands parse, its Python runs, its tree and its files are there."""

import re
import shlex
from pathlib import Path

import pytest
from tracked import tracked

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


def test_the_pictures_are_there():
    for name in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert name in tracked(), name
    assert "MEASURED" not in README


def test_the_tree_is_the_project():
    entries = read_tree(README.split("## The tree")[1].split("\n## ")[0])
    assert not [path for path, _ in entries if path not in tracked()]
    inside = [(path, name) for path, text in entries for name in re.findall(r"(?<![\w./])\w+(?:/\w+)*(?:/|\.py)", text)]
    assert not [(path, name) for path, name in inside if f"{path}{name}" not in tracked() and name not in tracked()]
    shown = {path for path, _ in entries}
    rooms = {name for name in tracked() if name.count("/") == 1 and name.endswith("/") and not name.startswith(".")}
    assert shown >= rooms and shown >= {"pyproject.toml", "Makefile", "LICENSE"}
    packages = {name for name in tracked() if name.count("/") == 2 and name.endswith("/") and name.startswith("phi3mobile/")}
    assert shown >= packages


def read_tree(tree: str) -> list[tuple[str, str]]:
    """(path, description) of each name in the README's tree; deeper lines belong to the last folder above."""
    entries: list[tuple[str, str]] = []
    folder = ""
    for line in filter(str.strip, tree.splitlines()):
        body = line.removeprefix("    ")
        if body.startswith(" " * 8):  # goes on
            path, text = entries[-1]
            entries[-1] = path, f"{text} {body.strip()}"
            continue
        names, _, text = body.strip().partition("  ")
        paths = names.split(" ")
        if not body.startswith(" "):
            folder = paths[0] if paths[0].endswith("/") else ""
        else:
            paths = [folder + path for path in paths]
        entries += [(path, text.strip()) for path in paths]
    return entries


def test_a_tree_that_is_not_so_is_found():
    tree = "\n    phi3mobile/   the library\n      cli.py nowhere.py   verbs\n                 and verbs/\n    LICENSE\n"
    assert read_tree(tree) == [
        ("phi3mobile/", "the library"),
        ("phi3mobile/cli.py", "verbs"),
        ("phi3mobile/nowhere.py", "verbs and verbs/"),
        ("LICENSE", ""),
    ]
    assert "phi3mobile/nowhere.py" not in tracked() and not [name for name in tracked() if ".venv" in name]
