"""tests/vectors: conversations with what they must give, for bindings in other languages; guided.json: with constrained output.

    python tests/core/vectors.py     # writes them anew, from Python's session

{"files": name -> text of a bundle's files, "scenarios": [{"engine", "manifest", "steps", "answers"}]}: write the files and
manifest.json into a folder, open it with the engine that scenarios.ChainEngine describes, play the steps, compare the answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FOLDER = Path(__file__).parents[1] / "vectors"
FILES = ("sessions.json", "guided.json")
NUMBERS = range(40)


def made(name: str) -> dict[str, Any]:
    """What the file of a name must hold."""
    from guided import guided_scenario
    from scenarios import VOCAB, ChainEngine, play, scenario, write_bundle
    from test_session_core import PythonPlayer

    from phi3mobile.errors import InputError

    files: dict[str, str] = {}
    scenarios = []
    with TemporaryDirectory() as scratch:
        for number in NUMBERS:
            about = (guided_scenario if name == "guided.json" else scenario)(number)
            engine = ChainEngine(VOCAB, **about["engine"])
            folder = write_bundle(Path(scratch) / str(number), engine)
            files = {path.name: path.read_text("utf-8") for path in sorted(folder.iterdir()) if path.name != "manifest.json"}
            manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
            answers = list(play(about, PythonPlayer(folder, engine), engine, InputError))
            for answer in answers:  # how an error is worded is not part of it
                answer.update({"refused": True} if "refused" in answer else {})
            scenarios.append(about | {"manifest": manifest, "answers": answers})
    return {"files": files, "scenarios": scenarios}


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    FOLDER.mkdir(exist_ok=True)
    for name in FILES:
        (FOLDER / name).write_text(json.dumps(made(name), ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")
