"""sdist and wheel: what is in them, and a bundle run from a wheel in an empty environment outside the checkout."""

import email
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = {folder: package for package, folder in PYPROJECT["tool"]["scikit-build"]["wheel"]["packages"].items()}
RUNTIME = ("", "_threadpool", "_kernels_optimized", "_kernels_quantized", "_backend_xnnpack")
needs_builder = pytest.mark.skipif(
    importlib.util.find_spec("scikit_build_core") is None or importlib.util.find_spec("build") is None,
    reason="build or scikit-build-core is not installed: make setup",
)
pytestmark = needs_builder


def build(source: Path, out: Path, *options: str) -> Path:
    """The one file that `python -m build` makes of a source folder in `out`."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir", out, *options, source]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # cmake lies beside python
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The sdist, unpacked: what a build from it sees, and no more."""
    made = build(ROOT, tmp_path_factory.mktemp("sdist"), "--sdist")
    with tarfile.open(made) as archive:
        archive.extractall(made.parent, filter="data")
    (folder,) = (path for path in made.parent.iterdir() if path.is_dir())
    return folder


@pytest.fixture(scope="module")
def pure(sdist, tmp_path_factory) -> zipfile.ZipFile:
    """The wheel without what CMake adds (seconds)."""
    return zipfile.ZipFile(build(sdist, tmp_path_factory.mktemp("pure"), "--wheel", "-Cwheel.cmake=false"))


def sources() -> set[str]:
    """Where the modules of the checkout belong in a wheel."""
    found = set()
    for folder, package in ROOMS.items():
        for file in (ROOT / folder).rglob("*.py"):
            name = file.relative_to(ROOT / folder).as_posix()
            if not name.startswith(("experiments/", "native/")):
                found.add(f"{package}/{name}")
    return found


def test_every_module_and_its_data_is_in_the_wheel(pure):
    names = set(pure.namelist())
    assert {name for name in names if name.endswith(".py")} == sources()
    assert {
        "phi3mobile/export/solve/text/calibration.txt",
        "phi3mobile/bench/text/jargon.txt",
        "phi3mobile/bench/phones.toml",
        "phi3mobile/bench/tasks/sums.yaml",
        "phi3mobile/bench/evaluate/judge_prompts.jsonl",
        "phi3mobile/training/configs/mini-sft.toml",
        "phi3mobile/training/safety_prompts/prompts.jsonl",
        "phi3mobile/assistant/fonts/NotoSans-Regular.ttf",
        "phi3mobile/core/include/phi3mobile.h",
    } <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"phi3mobile", f"phi3mobile-{PYPROJECT['project']['version']}.dist-info"}
    assert not [name for name in names if name.endswith((".cpp", ".pyc")) or "/experiments/" in name]


def test_the_sdist_has_the_kernels_and_nothing_built(sdist):
    assert (sdist / "phi3mobile/core/kernels/attention_loops.cpp").is_file()
    assert (sdist / "phi3mobile/core/CMakeLists.txt").is_file() and (sdist / "apps/assistant/fonts").is_dir()
    assert not [path for path in sdist.rglob("*") if path.suffix in (".so", ".dylib", ".o", ".pyc") or path.name == "build"]


def test_the_metadata_asks_for_no_torch_to_run(pure):
    (name,) = (name for name in pure.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(pure.read(name))
    needs = metadata.get_all("Requires-Dist")
    base = {re.match(r"[\w.-]+", need)[0] for need in needs if "extra ==" not in need}
    assert base == {
        "numpy",
        "rich",
        "jinja2",
        "tokenizers",
        "sentencepiece",
        "tiktoken",
        "psutil",
        "platformdirs",
        "llguidance",
    }
    assert {need.partition(";")[0].strip() for need in needs if "extra == 'export'" in need.replace('"', "'")} >= {
        "torch==2.13.0",
        "torchao==0.18.0",
        "executorch==1.5.1",
    }
    (pin,) = (o["build"]["requires"] for o in PYPROJECT["tool"]["scikit-build"]["overrides"] if "build" in o)
    export = PYPROJECT["project"]["optional-dependencies"]["export"]
    (guide,) = (need for need in PYPROJECT["project"]["dependencies"] if need.startswith("llguidance"))
    assert pin == [*(need for need in export if need.startswith("executorch")), guide.replace(">=", "==")]
    assert metadata["License-Expression"] == "MIT AND BSD-3-Clause"
    assert b"phi3mobile = phi3mobile.cli:main" in pure.read(name.replace("METADATA", "entry_points.txt"))


# The whole way, a minute: sdist, wheel with kernels, an empty environment, a bundle


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    return build(sdist, tmp_path_factory.mktemp("wheel"), "--wheel")


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A fresh environment with this wheel; what it depends on comes from the packages of the environment around."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel]
    done = subprocess.run(list(map(str, install)), capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-1500:]
    (site,) = (folder / "lib").glob("python*/site-packages")
    around = [path for path in sys.path if path.endswith("site-packages")]
    (site / "around.pth").write_text("\n".join(around) + "\n")
    return folder


# As `phi3mobile ARGUMENTS` in that environment: no checkout on the path, and neither torch nor executorch can be imported.
INSTALLED = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchao", "executorch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path[:] = [Block(), *(finder for finder in sys.meta_path if "editable" not in repr(finder))]
import phi3mobile
assert phi3mobile.__file__.startswith(sys.prefix), phi3mobile.__file__
from phi3mobile.cli import main
code = main(sys.argv[1:])
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
loaded = {line.split()[-1] for line in maps.splitlines() if "libexecutorch" in line or "libphi3mobile" in line}
assert all(path.startswith(sys.prefix) for path in loaded), loaded
print(f"{len(loaded)} libraries", file=sys.stderr)
sys.exit(code)
"""


def installed(environment: Path, cache: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [environment / "bin" / "python", "-I", "-c", INSTALLED, *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_"))}
    env["XDG_CACHE_HOME"] = str(cache)
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd="/", timeout=1800, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_the_wheel_names_its_platform_and_carries_the_runtime(wheel):
    assert re.fullmatch(r"phi3mobile-[\d.]+-py3-none-(linux|macosx|manylinux)\w+\.whl", wheel.name), wheel.name
    archive = zipfile.ZipFile(wheel)
    names = {Path(name).name for name in archive.namelist() if re.match("phi3mobile/native/.", name)}
    end = "dylib" if sys.platform == "darwin" else "so"
    assert names == {f"libexecutorch{part}.{end}" for part in RUNTIME} | {
        f"libphi3mobile.{end}",
        "p3m",
        "LICENSE-executorch.txt",
        *(["libllguidance.so"] if sys.platform == "linux" else []),
    }
    assert wheel.stat().st_size < 20e6


@pytest.mark.slow
def test_libraries_are_found_from_where_they_lie(environment):
    """No path of the machine that built the wheel: beside the library, then in an executorch package beside ours."""
    if sys.platform != "linux":
        pytest.skip("reads ELF files")
    (library,) = environment.rglob("libphi3mobile.so")
    for file in (library, library.with_name("p3m")):
        data = file.read_bytes()
        assert b"$ORIGIN:$ORIGIN/../../executorch/lib\0" in data
        assert str(ROOT).encode() not in data and b"/site-packages/executorch/lib\0" not in data


@pytest.mark.slow
def test_a_bundle_runs_in_an_empty_environment(environment, bundle_of: Callable[..., Path], tmp_path):
    bundle = bundle_of("tiny-gqa", "host")
    done = installed(environment, tmp_path, "run", bundle, "hello there", "--max-tokens", "6", "--json")
    assert json.loads(done.stdout)["statistics"]["generated_tokens"] == 6
    assert "6 libraries" in done.stderr or sys.platform != "linux"
    assert not (tmp_path / "phi3mobile" / "packed").exists()  # weights are used as they lie in the bundle
    (p3m,) = environment.rglob("phi3mobile/native/p3m")
    done = subprocess.run([p3m, "run", bundle, "hello there", "--max-tokens", "6"], capture_output=True, cwd="/", env={})
    assert done.returncode == 0 and len(done.stdout) > 1, done.stderr
    report = json.loads(installed(environment, tmp_path, "doctor").stdout.splitlines()[-1])
    assert report["native"]["library"].startswith(str(environment))
    assert report["packages"]["phi3mobile"] == PYPROJECT["project"]["version"]
