"""CHANGELOG.md speaks of the version that pyproject.toml has, in Keep a Changelog's form."""

from __future__ import annotations

import re
import tomllib

from tracked import ROOT

TEXT = (ROOT / "CHANGELOG.md").read_text()
ENTRY = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d|unreleased)$", re.MULTILINE)
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_this_version_has_an_entry():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version in dict(ENTRY.findall(TEXT))


def test_versions_fall_and_only_the_newest_may_be_unreleased():
    entries = ENTRY.findall(TEXT)
    numbers = [tuple(map(int, version.split("."))) for version, _ in entries]
    assert numbers == sorted(set(numbers), reverse=True) and len(entries) == TEXT.count("\n## ")
    assert "unreleased" not in [date for _, date in entries[1:]]


def test_headings_are_the_known_ones():
    assert set(re.findall(r"^### (.*)$", TEXT, re.MULTILINE)) <= KINDS
