"""What can be checked of the phones' packages without their SDKs."""

import ast
import configparser
import importlib.util
import os
import plistlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tracked import ROOT, tracked

APPS = Path(__file__).parents[2] / "apps"
# Recipe names of python-for-android 2026.5.9 and kivy-ios 2025.5.17 that we use; everything else must be pure Python.
P4A_RECIPES = {"python3", "sqlite3", "numpy", "pillow", "kivy", "pyjnius", "android"}
KIVY_IOS_RECIPES = {"python3", "numpy", "pillow", "kivy", "pyobjus", "markupsafe", "jinja2"}
PURE = {"python-bidi", "six", "arabic-reshaper", "jinja2", "markupsafe", "filetype"}
ALLOWED = {"numpy", "kivy", "bidi", "arabic_reshaper", "six", "jinja2", "markupsafe", "jnius", "pyobjus", "android", "tools"}


@pytest.fixture(scope="session")
def staged(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("app") / "app"
    subprocess.run([sys.executable, str(APPS / "stage.py"), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def spec() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(APPS / "android" / "buildozer.spec")
    return parser["app"]


def test_the_spec_asks_for_no_permission(spec):
    assert spec["android.permissions"] == ""
    assert (spec["android.minapi"], spec["android.ndk_api"], spec["android.archs"]) == ("26", "26", "arm64-v8a")
    assert spec["android.enable_androidx"] == "True"  # ExecuTorch's package is Kotlin
    assert spec["source.dir"] == "app" and set(spec["source.include_exts"].split(",")) == {"py", "ttf", "txt"}


def test_the_spec_and_the_exporter_have_one_executorch(spec):
    pyproject = tomllib.loads((APPS.parent / "pyproject.toml").read_text())
    needs = pyproject["project"]["optional-dependencies"]["export"]
    (pinned,) = (need.partition("==")[2] for need in needs if need.startswith("executorch=="))
    assert spec["android.gradle_dependencies"] == f"org.pytorch:executorch-android:{pinned}"
    ios = tomllib.loads((APPS / "ios" / "project.toml").read_text())
    assert ios["swift_package"]["branch"] == f"swiftpm-{pinned}"


def test_every_requirement_has_a_recipe_or_is_pure_python(spec):
    names = {need.partition("==")[0] for need in spec["requirements"].split(",")}
    assert names <= P4A_RECIPES | PURE and {"python3", "numpy", "kivy", "pyjnius"} <= names
    assert "python-bidi==0.4.2" in spec["requirements"]  # later ones are Rust
    ios = tomllib.loads((APPS / "ios" / "project.toml").read_text())["python"]
    assert set(ios["recipes"]) <= KIVY_IOS_RECIPES and {need.partition("==")[0] for need in ios["pip"]} <= PURE


def test_the_extra_and_the_phones_have_one_kivy(spec):
    extra = tomllib.loads((APPS.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]["app"]
    assert [need for need in extra if need.startswith("kivy")] == [n for n in spec["requirements"].split(",") if "kivy" in n]


@pytest.mark.parametrize("name", ["Info.plist", "assistant.entitlements", "PrivacyInfo.xcprivacy"])
def test_property_lists_are_valid(name):
    assert plistlib.loads((APPS / "ios" / name).read_bytes())


def test_ios_shares_files_and_may_use_more_memory():
    info = plistlib.loads((APPS / "ios" / "Info.plist").read_bytes())
    assert info["UIFileSharingEnabled"] and info["LSSupportsOpeningDocumentsInPlace"] and info["MinimumOSVersion"] == "17.0"
    assert not [key for key in info if key.endswith("UsageDescription")]  # nothing that the system would have to ask for
    rights = plistlib.loads((APPS / "ios" / "assistant.entitlements").read_bytes())
    assert rights["com.apple.developer.kernel.increased-memory-limit"] is True
    privacy = plistlib.loads((APPS / "ios" / "PrivacyInfo.xcprivacy").read_bytes())
    assert privacy["NSPrivacyTracking"] is False and privacy["NSPrivacyCollectedDataTypes"] == []


def test_the_build_script_is_a_script():
    subprocess.run(["sh", "-n", str(APPS / "ios" / "build.sh")], check=True)


def test_the_staged_app_is_small(staged):
    files = [path for path in staged.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6
    assert {path.suffix for path in files} == {".py", ".ttf", ".txt"}
    assert not [path for path in files if path.name in ("phi3.py", "cli.py", "worker_torch.py") or "__pycache__" in path.parts]


def test_the_staged_app_runs_without_torch_or_compiled_tokenizers(staged, tiny_bundle):
    """Everything a phone imports, with all else blocked; a conversation through the pure-Python tokenizer and Jinja."""
    script = f"""
import importlib.abc, pkgutil, sys
sys.path[:] = [{str(staged)!r}] + [p for p in sys.path if p != {str(APPS.parent)!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {ALLOWED!r} | {{"phi3mobile", "numpy"}}:
            raise ImportError(f"{{name}} is not on the phone")
sys.meta_path.insert(0, Block())
import phi3mobile
assert phi3mobile.__file__.startswith({str(staged)!r}), phi3mobile.__file__
for module in pkgutil.walk_packages(phi3mobile.__path__, "phi3mobile."):
    if ".ui" not in module.name and not module.name.endswith(".apple"):
        __import__(module.name)
from phi3mobile.bundle import open_bundle
from phi3mobile.session.session import Session
import numpy as np
bundle = open_bundle({str(tiny_bundle)!r})
class Engine:
    info = bundle.info
    def forward(self, tokens, position, long=False):
        logits = np.zeros((len(tokens), self.info.vocab), np.float32)
        logits[:, sorted(bundle.eos_ids)[0]] = 1
        return logits
    def reset(self): ...
    def close(self): ...
assert list(Session(bundle, engine=Engine()).generate([{{"role": "user", "content": "Hello there"}}])) == []
print("fine", type(bundle.tokenizer).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and done.stdout.startswith("fine"), done.stderr[-1500:]


# The storage picker, against fakes of the Java classes


class FakeContract:
    def getTreeDocumentId(self, tree):
        return "primary:Download/mini.bundle"

    def buildChildDocumentsUriUsingTree(self, tree, parent):
        return ("children", parent)

    def buildDocumentUriUsingTree(self, tree, identity):
        return identity


class FakeResolver:
    def __init__(self, files: dict[str, bytes], folder: Path) -> None:
        self.files, self.closed = files, False
        for name, data in files.items():
            (folder / name).write_bytes(data)
        self._folder, self._rows, self._at = folder, [*files, "a-folder"], -1

    def query(self, uri, columns, *_):
        assert uri[0] == "children" and columns == ["document_id", "_display_name", "_size", "mime_type"]
        return self

    def moveToNext(self) -> bool:
        self._at += 1
        return self._at < len(self._rows)

    def getString(self, column: int) -> str:
        name = self._rows[self._at]
        folder = "vnd.android.document/directory" if name == "a-folder" else "application/octet-stream"
        return (name, name, "", folder)[column]

    def getLong(self, column: int) -> int:
        return len(self.files[self._rows[self._at]])

    def close(self) -> None:
        self.closed = True

    def openFileDescriptor(self, uri: str, mode: str):
        import os

        resolver = self

        class Descriptor:
            def detachFd(self) -> int:
                return os.open(resolver._folder / uri, os.O_RDONLY)

        return Descriptor()


def test_a_folder_from_the_picker_is_copied_whole(tmp_path):
    from phi3mobile.assistant.android_import import copy_tree

    source = tmp_path / "source"
    source.mkdir()
    files = {"manifest.json": b"{}", "model.pte": b"x" * 3_000_000}
    resolver = FakeResolver(files, source)
    made = copy_tree(resolver, "tree", tmp_path / "models", lambda name: FakeContract())
    assert made == tmp_path / "models" / "mini.bundle" and resolver.closed
    assert {path.name: path.read_bytes() for path in made.iterdir()} == files


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    from phi3mobile.assistant.android_import import copy_tree
    from phi3mobile.errors import InputError

    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(InputError, match="not a model"):
        copy_tree(FakeResolver({"photo.jpg": b"x"}, source), "tree", tmp_path / "models", lambda name: FakeContract())
    assert not (tmp_path / "models").exists()


def lazily_imported(source: str) -> set[str]:
    """Modules of phi3mobile that a file names in any import statement outside `if TYPE_CHECKING:`, or in quotes."""
    tree = ast.parse(source)
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in typing:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and id(node) not in typing:
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value.partition(":")[0])
    return {name for name in names if re.fullmatch(r"phi3mobile(\.\w+)+", name) and is_module(name)}


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def test_whatever_a_staged_module_imports_is_staged_or_cannot_be_imported_on_a_phone(staged):
    names, here = set(), set()
    for path in staged.joinpath("phi3mobile").rglob("*.py"):
        parts = path.relative_to(staged).with_suffix("").parts
        here.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        names |= lazily_imported(path.read_text("utf-8"))
    assert {"phi3mobile.engines.android", "phi3mobile.engines.apple", "phi3mobile.engines.phone"} <= names & here
    missing = sorted(names - here)
    assert "phi3mobile.models.loading" in missing  # it needs torch: the test below has something to try
    script = f"""
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {ALLOWED!r} | {{"phi3mobile"}}:
            raise ImportError(f"{{name}} is not on the phone")
sys.meta_path.insert(0, Block())
for name in {missing!r}:
    try:
        __import__(name)
    except ImportError as error:
        assert "is not on the phone" in str(error), (name, error)
    else:
        print(name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=APPS.parent)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_stage_follows_names_in_quotes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(APPS)
    import stage

    tree = ast.parse(
        '"""phi3mobile.cli and more"""\nTABLE = {"a": "phi3mobile.engines.apple:open_apple", "b": "phi3mobile.errors"}\n'
    )
    assert stage._named(tree) == {"phi3mobile.engines.apple", "phi3mobile.errors"}
    assert "phi3mobile.engines.litert" in stage.imports("phi3mobile.engines.registry", lazy=True)
    assert "phi3mobile.engines.litert" not in stage.imports("phi3mobile.engines.registry", lazy=False)


def test_the_device_decides_the_engine(tmp_path, monkeypatch):
    from phi3mobile.assistant import device
    from phi3mobile.errors import InputError

    class Bundle:
        folder, own_operators = tmp_path, ["phi3mobile::blocksparse_attention.out"]

    monkeypatch.setattr(device.registry, "open_engine", lambda bundle, threads: f"the bundle's own, {threads} threads")
    assert device.open_engine(Bundle(), 3) == "the bundle's own, 3 threads"
    monkeypatch.setenv("ANDROID_ARGUMENT", "")
    with pytest.raises(InputError, match="--recipe android-cpu"):
        device.open_engine(Bundle())


def on_android(staged: Path, script: str, libraries: Path) -> str:
    """What a script says in the staged app, where the loader finds what `libraries` has, as in an app's own folder of them."""
    before = f"import sys\nsys.getandroidapilevel = lambda: 26\nsys.path.insert(0, {str(staged)!r})\n"
    before += 'sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]\n'
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in ("torch", "executorch", "tokenizers"))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "ANDROID_ARGUMENT": ""}
    command = [sys.executable, "-c", before + blocked + script]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment)
    assert done.returncode == 0, done.stderr[-1500:]
    return done.stdout


OPENED = """
import phi3mobile
assert phi3mobile.__file__.startswith({staged!r})
from phi3mobile.assistant.device import open_engine
from phi3mobile.bundle import open_bundle
from phi3mobile.errors import InputError
from phi3mobile.session.session import Session
bundle = open_bundle({bundle!r})
try:
    engine = open_engine(bundle, 1)
except InputError as error:
    print("refused:", error)
else:
    session = Session(bundle, engine=engine)
    print(type(engine).__name__, "".join(session.generate([{{"role": "user", "content": "Hi"}}], max_tokens=8)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the loader's search by name is Linux's")
def test_an_app_with_our_library_runs_by_it(staged, bundle_of, tmp_path):
    """Real answers through the staged files, by the library that only the loader knows; without it the kernels are missed."""
    from phi3mobile.engines.native import native_library
    from phi3mobile.session.session import Session

    if native_library() is None:
        pytest.skip("the native library is not built: make native")
    bundle = bundle_of("tiny-gqa", "host")
    script = OPENED.format(staged=str(staged), bundle=str(bundle))
    with Session(bundle) as session:
        expected = "".join(session.generate([{"role": "user", "content": "Hi"}], max_tokens=8))
    assert on_android(staged, script, native_library().parent) == f"NativeEngine {expected}\n"
    assert "needs kernels that this app lacks" in on_android(staged, script, tmp_path)
    # What our library has no operators for stays the package's.
    other = OPENED.format(staged=str(staged), bundle=str(bundle_of("tiny-gqa", "android-cpu")))
    assert on_android(staged, other, native_library().parent).startswith("refused: this engine runs in an Android app")


@pytest.mark.skipif(sys.platform != "linux", reason="the loader's search by name is Linux's")
def test_a_library_that_does_not_load_is_told(staged, bundle_of, tmp_path):
    (tmp_path / "libphi3mobile.so").write_bytes(b"no ELF")
    said = on_android(staged, OPENED.format(staged=str(staged), bundle=str(bundle_of("tiny-gqa", "host"))), tmp_path)
    assert said.startswith("refused: the native library does not load") and "build the app with libphi3mobile.so" in said


def test_the_spec_takes_our_library_where_it_was_built(spec):
    (pattern,) = spec["android.add_libs_arm64_v8a"].split(",")
    assert (APPS / "android" / pattern).resolve() == ROOT / "build/android/jni/arm64-v8a/libphi3mobile.so"


# As the READMEs of apps/android and apps/ios say


def checkout(folder: Path) -> Path:
    """A copy of what staging reads, in which the documented commands may write."""
    for name in sorted(tracked()):
        if name.startswith(("apps/", "phi3mobile/", "bench/", "export/", "training/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def test_android_is_staged_from_its_own_folder(tmp_path):
    android = checkout(tmp_path) / "apps" / "android"
    assert "python ../stage.py app" in (android / "README.md").read_text()
    subprocess.run([sys.executable, "../stage.py", "app"], cwd=android, check=True, capture_output=True)
    assert (android / "app" / "main.py").is_file() and (android / "app" / "phi3mobile" / "assistant").is_dir()


def test_ios_build_sh_makes_the_project(tmp_path):
    """With a `toolchain` that does what kivy-ios would: only its effects are played."""
    ios = checkout(tmp_path) / "apps" / "ios"
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "toolchain").write_text(
        '#!/bin/sh\necho "toolchain $*" >> toolchain.log\n'
        '[ "$1" != create ] || { mkdir -p assistant-ios && cp Info.plist assistant-ios/assistant-Info.plist; }\n'
    )
    (tools / "toolchain").chmod(0o755)
    (tools / "python3").symlink_to(sys.executable)
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["sh", "build.sh"], cwd=ios, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (ios / "app" / "main.py").is_file() and (ios / "assistant-ios" / "PrivacyInfo.xcprivacy").is_file()
    assert [line.split()[1] for line in (ios / "toolchain.log").read_text().splitlines()] == ["build", "pip", "create"]
