"""python apps/stage.py FOLDER: the app's Python files as a phone gets them: main.py, phi3mobile with the assistant inside.

No torch, no compiled tokenizer: what is left out is what builds bundles. Replaces FOLDER.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Modules and packages of phi3mobile that run on a phone.
LIBRARY = (
    "__init__.py", "errors.py", "files.py", "bundle.py", "session.py", "conversation.py", "decoding.py", "lookup.py",
    "sampling.py", "guidance.py", "completion.py", "chat.py", "tokenizer.py", "pure_tokenizer.py", "pure_stages.py",
    "unicode_classes.py",
)  # fmt: skip
ENGINES = ("__init__.py", "android.py", "apple.py", "objc.py")
BENCH = ("__init__.py", "memory.py", "request.py", "steps.py")  # the app is a benchmark of the phone too
RETRIEVAL = ("__init__.py", "library.py", "answer.py", "embed.py", "wordpiece.py")
MAIN = '''"""The assistant on a phone."""

from phi3mobile.assistant.launch import launch

launch()
'''


def stage(folder: Path) -> list[Path]:
    """Write the files; returns them, relative to `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    library = folder / "phi3mobile"
    for sub, names in (("", LIBRARY), ("engines", ENGINES), ("retrieval", RETRIEVAL)):
        (library / sub).mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy2(ROOT / "phi3mobile" / sub / name, library / sub / name)
    (library / "bench").mkdir()
    for name in BENCH:
        shutil.copy2(ROOT / "bench" / name, library / "bench" / name)
    ignore = shutil.ignore_patterns("__pycache__", "make.py")
    shutil.copytree(ROOT / "apps" / "assistant", library / "assistant", ignore=ignore)
    (folder / "main.py").write_text(MAIN, "utf-8")
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python apps/stage.py FOLDER")
    print(f"{len(stage(Path(sys.argv[1])))} files in {sys.argv[1]}")
