"""The SDK's parts that need no model: JSON, memory verdicts, cores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from phi3mobile.assistant.bundles import describe


@pytest.fixture(scope="session")
def bundle(bundle_of: Callable[..., Path]) -> Path:
    return bundle_of("tiny-gqa", "host")


@pytest.mark.parametrize("name", ["json", "cores"])
def test_rooms(check, bundle, name):
    check(name, bundle)


def test_memory_is_judged_as_the_assistant_does(check, bundle):
    said = describe(bundle, 3_000_000_000)
    needs, sentence = check("memory", bundle)
    assert needs.split()[1] == str(said.needs) and f"{said.needs / 1e9:.2f} GB of memory" in sentence
