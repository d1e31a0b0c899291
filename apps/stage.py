"""python apps/stage.py FOLDER: the app's Python files as a phone gets them: main.py, phi3mobile with the assistant inside.

What is taken follows from the imports, lazy ones too, and from the names of modules in quotes ("phi3mobile.x.y" or
"phi3mobile.x.y:function", as in engines/registry.py): a module goes along unless it needs a package that no phone has (torch,
compiled tokenizers), and what only such modules import stays behind with them. Replaces FOLDER.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Where the packages of phi3mobile lie in a checkout (pyproject.toml says the same).
ROOMS = {"bench": "bench", "export": "export", "training": "training", "assistant": "apps/assistant"}
# What python-for-android and kivy-ios bring, and their modules.
PHONE = {"numpy", "kivy", "bidi", "arabic_reshaper", "jinja2", "markupsafe", "jnius", "pyobjus", "android"}
START = ("phi3mobile.assistant.launch",)
NAME = re.compile(r"(phi3mobile(?:\.\w+)+)(?::\w+)?")
MAIN = '''"""The assistant on a phone."""

from phi3mobile.assistant.launch import launch

launch()
'''


def file_of(module: str) -> Path | None:
    """Where a module of phi3mobile lies in the checkout; None for what is no module."""
    parts = module.split(".")[1:]
    base = ROOT / ROOMS[parts[0]] if parts and parts[0] in ROOMS else ROOT.joinpath("phi3mobile", *parts[:1])
    path = base.joinpath(*parts[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def parents(module: str) -> list[str]:
    """The packages around a module, which importing it imports first."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _imported(nodes: list[ast.stmt], lazy: bool) -> set[str]:
    """Modules that these statements import; those inside functions only if `lazy`. `if TYPE_CHECKING:` imports nothing."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"line {node.lineno}: a relative import; phi3mobile's are absolute")
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if node.module.startswith("phi3mobile") and file_of(name)} or {node.module}
        elif isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING":
            found |= _imported(node.orelse, lazy)
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found |= _imported([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.AST)], lazy)
    return found


@cache
def imports(module: str, lazy: bool) -> frozenset[str]:
    """What a module of phi3mobile imports, packages around it included; what it names in quotes is imported lazily."""
    file = file_of(module)
    assert file is not None, module
    tree = ast.parse(file.read_text("utf-8"))
    return frozenset(_imported(tree.body, lazy) | set(parents(module)) | (_named(tree) if lazy else set()))


def _named(tree: ast.Module) -> set[str]:
    """Modules of phi3mobile whose names stand in quotes."""
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return {found[1] for text in texts if (found := NAME.fullmatch(text)) and file_of(found[1])}


@cache
def runs_on_phone(module: str) -> bool:
    """Whether a phone has all that loading the module takes."""
    seen, waiting = {module}, [module]
    while waiting:
        for name in imports(waiting.pop(), lazy=False) - seen:
            top = name.partition(".")[0]
            if top == "phi3mobile":
                seen.add(name)
                waiting.append(name)
            elif top not in sys.stdlib_module_names and top not in PHONE:
                return False
    return True


def modules() -> list[str]:
    """The modules of phi3mobile that go onto a phone."""
    taken, waiting = set(START), list(START)
    while waiting:
        ours = {name for name in imports(waiting.pop(), lazy=True) if name.startswith("phi3mobile")}
        fresh = {name for name in ours if name not in taken and runs_on_phone(name)}
        taken |= fresh
        waiting += fresh
    return sorted(taken)


def stage(folder: Path) -> list[Path]:
    """Write the files; returns them, relative to `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    for module in modules():
        source = file_of(module)
        assert source is not None, module
        leaf = ("__init__.py",) if source.name == "__init__.py" else ()
        target = folder.joinpath(*module.split("."), *leaf)
        target = target if leaf else target.with_suffix(".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    fonts = ROOT / "apps" / "assistant" / "fonts"
    (folder / "phi3mobile" / "assistant" / "fonts").mkdir(parents=True, exist_ok=True)
    for file in (*fonts.glob("*.ttf"), *fonts.glob("*.txt")):
        shutil.copy2(file, folder / "phi3mobile" / "assistant" / "fonts")
    (folder / "main.py").write_text(MAIN, "utf-8")
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python apps/stage.py FOLDER")
    print(f"{len(stage(Path(sys.argv[1])))} files in {sys.argv[1]}")
