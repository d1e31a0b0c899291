"""One table says which files of a checkpoint belong together; nobody keeps a second one."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from phi3mobile import hub
from phi3mobile.export import build
from phi3mobile.models import companions
from phi3mobile.models.companions import companion_files, vocabulary_file

ROOT = Path(__file__).parents[2]
TABLE = "phi3mobile/models/companions.py"


def test_what_a_bundle_takes_is_copied_and_downloaded_too():
    for name in ("tokenizer.json", "tokenizer.model", "cl100k_base.tiktoken", "tokenizer_config.json", "added_tokens.json"):
        for table in (companions.TOKENIZER_FILES, companions.COMPANIONS, companions.CHECKPOINT_FILES):
            assert any(fnmatch(name, pattern) for pattern in table), name
    assert build.TOKENIZER_FILES is companions.TOKENIZER_FILES and hub.CHECKPOINT_FILES is companions.CHECKPOINT_FILES


def test_no_other_file_lists_them():
    others = [
        str(path.relative_to(ROOT))
        for room in ("phi3mobile", "export", "training", "bench", "apps")
        for path in (ROOT / room).rglob("*.py")
        if re.search(r'"(special_tokens_map\.json|NOTICE\*)"|"\*\.tiktoken",', path.read_text())
    ]
    assert others == [TABLE]


def test_companions_of_a_folder(tmp_path):
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE", "config.json", "model.safetensors", "README.md"):
        (tmp_path / name).touch()
    (tmp_path / "tokenizer_parts").mkdir()
    assert [path.name for path in companion_files(tmp_path)] == ["LICENSE", "chat_template.jinja", "tokenizer.json"]


@pytest.mark.parametrize("names", [("tokenizer.json", "tokenizer.model"), ("tokenizer.model", "a.tiktoken"), ("a.tiktoken",)])
def test_the_vocabulary_is_the_file_that_the_tokenizer_reads(names, tmp_path):
    assert vocabulary_file(tmp_path) is None
    for name in names:
        (tmp_path / name).touch()
    assert vocabulary_file(tmp_path) == tmp_path / names[0]
