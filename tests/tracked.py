"""The project's own files: what git tracks or would, and nothing of .venv or build."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOMES = {  # folder -> the package that it installs as; the library last
    "export": "phi3mobile.export",
    "bench": "phi3mobile.bench",
    "training": "phi3mobile.training",
    "apps/assistant": "phi3mobile.assistant",
    "phi3mobile": "phi3mobile",
}


@cache
def tracked() -> frozenset[str]:
    """Paths from the root with slashes, of files and of the folders that hold them (these end in a slash)."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:
        files = [line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
    else:  # a source archive
        left_out = (".venv", "build", ".git", "__pycache__")
        every = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        files = [path.as_posix() for path in every if not set(path.parts) & set(left_out)]
    folders = {f"{parent.as_posix()}/" for file in files for parent in Path(file).parents if parent.parts}
    return frozenset(files) | folders


def python_files(*rooms: str) -> list[Path]:
    """Tracked .py files of the folders."""
    return sorted(ROOT / name for name in tracked() if name.endswith(".py") and name.startswith(tuple(f"{r}/" for r in rooms)))
