"""The stored conversations are what Python's session gives now, and what the core gives."""

import json

import pytest
from library import CoreError, core_session
from scenarios import VOCAB, ChainEngine, play
from vectors import FILE, made

from phi3mobile.engines.native import native_library

VECTORS = json.loads(FILE.read_text("utf-8"))


def test_they_are_pythons():
    assert made() == VECTORS


@pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native")
def test_the_core_gives_them(tmp_path):
    for about in VECTORS["scenarios"]:
        folder, engine = tmp_path / str(about["number"]), ChainEngine(VOCAB, **about["engine"])
        folder.mkdir()
        for name, text in VECTORS["files"].items():
            (folder / name).write_text(text, "utf-8")
        (folder / "manifest.json").write_text(json.dumps(about["manifest"]), "utf-8")
        with core_session(folder, engine) as session:
            answers = [a | ({"refused": True} if "refused" in a else {}) for a in play(about, session, engine, CoreError)]
        assert answers == about["answers"], about["number"]
