"""What documents and docstrings say of the project's own files is so: paths, modules, extras to install."""

from __future__ import annotations

import ast
import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from posixpath import normpath

import pytest
from tracked import HOMES, ROOT, python_files, tracked

ROOMS = ("phi3mobile", "export", "training", "bench", "apps")
DOCUMENTS = sorted(name for name in tracked() if name.endswith(".md") and name != "CHANGELOG.md")  # that one tells of the past
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PATH = re.compile(r"(?<![\w./:-])[\w.*-]+(?:/[\w.*-]+)*/?")
CODE = (".py", ".cpp", ".h", ".sh", ".kt", ".swift", ".spec")
MADE = ("phi3mobile/native/", "apps/ios/assistant-ios/")  # by `make native` and by kivy-ios
OUTSIDE = {  # of other projects and systems
    "llama.cpp",
    "src/llama-vocab.cpp",
    "modeling_phi3_small.py",
    "configuration_phi3_small.py",
    "triton_flash_blocksparse_attn.py",
    "mach/task_info.h",
    "objc/message.h",
    "objc/runtime.h",
    "main.py",
}


def is_there(path: str, folder: str = "") -> bool:
    """Whether a path or pattern is a tracked file or folder, from the root or from `folder`."""
    for base in {"", folder}:
        wanted = normpath(f"{base}{path}")
        if any(fnmatchcase(name.rstrip("/"), wanted) for name in tracked()):
            return True
    return False


def paths_of(text: str) -> list[str]:
    """Words that name files or folders of this project: they start with one of its folders, or are source files."""
    tops = tuple(name for name in tracked() if name.count("/") == 1 and name.endswith("/"))
    words = [word.rstrip(".-") for word in PATH.findall(text)]
    return [w for w in words if (w.startswith(tops) or w.endswith(CODE)) and not w.startswith(MADE) and w not in OUTSIDE]


def is_somewhere(path: str) -> bool:
    """Whether a tracked file's path ends so: in a docstring, models/rope.py is enough."""
    return path.rpartition("/")[2].isupper() or any(
        fnmatchcase(f"/{name.rstrip('/')}", f"*/{path.rstrip('/')}") for name in tracked()
    )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_of_a_document_exist(document):
    text = (ROOT / document).read_text()
    if document == "README.md":
        text = re.sub(r"## The tree.*?\n## ", "", text, flags=re.DOTALL)  # tests/test_readme.py
    folder = document.rpartition("/")[0]
    missing = [path for path in paths_of(text) if not is_there(path, folder and f"{folder}/")]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_a_document_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / document).read_text())
    missing = [link for link in links if "://" not in link and not (ROOT / document).parent.joinpath(link).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_of_a_document_exist(document):
    named = re.findall(r"(?<![\w/.])phi3mobile((?:\.[A-Za-z_]\w*)+)", (ROOT / document).read_text())  # not include/phi3mobile.h
    assert not [name for name in named if not is_a_module(name[1:].split("."))]


def is_a_module(parts: list[str]) -> bool:
    """Whether phi3mobile.PARTS is a module, or a name that one mentions."""
    first = {package: folder for folder, package in HOMES.items()}.get(f"phi3mobile.{parts[0]}")
    place = Path(first, *parts[1:]) if first else Path("phi3mobile", *parts)
    if (ROOT / place).with_suffix(".py").is_file() or (ROOT / place / "__init__.py").is_file():
        return True
    home = ROOT / place.parent
    text = home.with_suffix(".py") if home.with_suffix(".py").is_file() else home / "__init__.py"
    return text.is_file() and bool(re.search(rf"\b{parts[-1]}\b", text.read_text()))


def test_paths_in_docstrings_exist():
    missing = []
    for path in python_files(*ROOMS):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words = paths_of(ast.get_docstring(node) or "")
                missing += [f"{path.relative_to(ROOT)}: {word}" for word in words if not is_somewhere(word)]
    assert not missing


def test_paths_in_the_texts_of_training_exist():
    """Help and errors included: whoever configures a run is sent to files by them."""
    missing = []
    for path in python_files("training"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = [word for word in paths_of(node.value) if "/" in word.rstrip("/")]
                missing += [f"{path.relative_to(ROOT)}: {word}" for word in words if not is_there(word)]
    assert not missing


def test_hints_name_extras_that_there_are():
    extras, found = set(PROJECT["project"]["optional-dependencies"]), 0
    documents = [ROOT / name for name in tracked() if name.endswith((".py", ".md", ".yml", ".toml", "Makefile"))]
    wrong = []
    for path in documents:
        for named in re.findall(r"(?:phi3mobile|-e \"?'?\.)\\?\[([a-z, ]+)\\?\]", path.read_text()):
            found += 1
            wrong += [f"{path.relative_to(ROOT)}: [{extra}]" for extra in re.split(r", *", named) if extra not in extras]
    assert not wrong and found > 20


def test_a_wrong_path_is_found():
    assert paths_of("see training/safety/*.jsonl and `export/nowhere.py`, not a/b.txt") == [
        "training/safety/*.jsonl",
        "export/nowhere.py",
    ]
    assert not is_there("training/safety/*.jsonl") and not is_there("export/nowhere.py")
    assert is_there("training/safety_prompts/*.jsonl") and is_there("export/") and is_there("cli.py", "phi3mobile/")
    assert is_a_module(["export", "recipe"]) and is_a_module(["Session"]) and not is_a_module(["export", "nowhere"])
