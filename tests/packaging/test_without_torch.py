"""What the base install promises: run, chat, doctor and documents work on the native engine where torch can't be imported."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from phi3mobile.cli import main
from phi3mobile.engines.native import native_library

# Runs `phi3mobile ARGUMENTS` where what only phi3mobile[export] brings is not there.
BLOCKED = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchao", "executorch", "safetensors", "gguf", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from phi3mobile.cli import main
sys.exit(main(sys.argv[1:]))
"""
needs_kernels = pytest.mark.skipif(native_library() is None, reason="the native library is not built (make native)")


def without_torch(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=1800, env=dict(os.environ))


def document(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_kernels
def test_run_and_chat(bundle_of: Callable[..., Path]):
    bundle = bundle_of("tiny-gqa", "host")
    answer = document(without_torch("run", bundle, "hello there", "--max-tokens", "6", "--json"))
    assert answer["statistics"]["generated_tokens"] == 6
    guided = document(without_torch("run", bundle, "hello", "--regex", "[a-z]{4}", "--json"))
    assert len(guided["text"]) == 4
    chat = without_torch("chat", bundle, "--max-tokens", "4", stdin="hello there\n")
    assert chat.returncode == 0 and "ImportError" not in chat.stderr, chat.stderr


@needs_kernels
def test_run_answers_from_documents(bundle_of: Callable[..., Path], tmp_path: Path, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "sea.txt").write_text("The sea beside the village is called Wadden.\n")
    assert main(["index", str(tmp_path / "texts"), "-o", str(tmp_path / "library.db"), "--words-only"]) == 0
    bundle = bundle_of("tiny-gqa", "host")
    library = tmp_path / "library.db"
    done = document(
        without_torch("run", bundle, "What is the sea called?", "--library", library, "--max-tokens", "4", "--json")
    )
    assert done["statistics"]["generated_tokens"] and "sea.txt" in done["sources"][0]


def test_doctor():
    report = document(without_torch("doctor"))
    assert report["memory"]["available"] > 0


def test_what_needs_torch_says_how_to_get_it(tiny_bundle: Path, tiny_checkpoint_folder: Path, tmp_path: Path):
    """The stock recipes' engine and the exporter: one line with the command, no traceback."""
    for arguments in (("run", tiny_bundle, "hello"), ("export", tiny_checkpoint_folder, "-o", tmp_path / "out")):
        done = without_torch(*arguments)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("phi3mobile: this needs ") and "[export]'" in line, line
