"""The stored conversations are what Python's session gives now, and what the core gives."""

import json

import pytest
from library import CoreError, core_session, has_guidance
from scenarios import VOCAB, ChainEngine, play
from vectors import FILES, FOLDER, made

from phi3mobile.engines.native import native_library

VECTORS = {name: json.loads((FOLDER / name).read_text("utf-8")) for name in FILES}


@pytest.mark.parametrize("name", FILES)
def test_they_are_pythons(name):
    assert made(name) == VECTORS[name]


@pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native")
@pytest.mark.parametrize("name", FILES)
def test_the_core_gives_them(name, tmp_path):
    if name == "guided.json" and not has_guidance():
        pytest.skip("this build has no constrained output")
    for about in VECTORS[name]["scenarios"]:
        folder, engine = tmp_path / str(about["number"]), ChainEngine(VOCAB, **about["engine"])
        folder.mkdir()
        for file, text in VECTORS[name]["files"].items():
            (folder / file).write_text(text, "utf-8")
        (folder / "manifest.json").write_text(json.dumps(about["manifest"]), "utf-8")
        with core_session(folder, engine) as session:
            answers = [a | ({"refused": True} if "refused" in a else {}) for a in play(about, session, engine, CoreError)]
        assert answers == about["answers"], about["number"]
