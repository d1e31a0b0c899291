"""Hub ids and paths to folders, without a network: a local cache in the hub's layout, and the client's errors."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import errors
from tiny import tiny_checkpoint

from phi3mobile import hub
from phi3mobile.errors import InputError

ROOT = Path(__file__).parents[1]


def cached(home: Path) -> Path:
    """org/tiny in `home`'s cache as the hub's client leaves it: refs, blobs, and a snapshot of links."""
    repository = home / "hub" / "models--org--tiny"
    source = tiny_checkpoint(repository / "made")
    snapshot = repository / "snapshots" / ("a" * 40)
    for folder in (repository / "refs", repository / "blobs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    for number, path in enumerate(sorted(source.iterdir())):
        path.rename(repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    source.rmdir()
    return snapshot


def offline(home: Path, source: str) -> str:
    """What resolve says in a fresh, offline process (the client reads its settings when it is imported)."""
    code = (
        "import sys; from phi3mobile import hub; from phi3mobile.errors import InputError\n"
        "try:\n    print(hub.resolve(sys.argv[1]))\nexcept InputError as error:\n    print('refused:', error)"
    )
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    command = [sys.executable, "-c", code, source]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_cached_repository_resolves_offline(tmp_path):
    from phi3mobile.models.loading import load_model

    snapshot = cached(tmp_path)
    found = offline(tmp_path, "org/tiny")
    assert Path(found).resolve() == snapshot.resolve()
    assert load_model(found).config.num_key_value_heads == 2  # through the cache's links


def test_offline_and_not_cached_is_named(tmp_path):
    said = offline(tmp_path, "org/other")
    assert said.startswith("refused: org/other is not a path, and is not in the hub's cache; HF_HUB_OFFLINE is set")
    assert "\n" not in said


def test_existing_paths_win(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub.resolve("org/name") == Path("org/name")
    assert hub.resolve(tmp_path) == tmp_path


@pytest.mark.parametrize("source", ["nothing", "/no/such/folder", "a/b/c", "../x", ""])
def test_what_is_neither_path_nor_id_is_named(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if source == "":
        assert hub.resolve(source) == Path()  # the working folder
        return
    with pytest.raises(InputError, match="does not exist; give a file, a folder, or a hub id"):
        hub.resolve(source)


RESPONSE = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError("no", response=RESPONSE), "is gated: accept its licence"),
        (errors.RepositoryNotFoundError("no", response=RESPONSE), "neither a path nor a hub repository"),
        (errors.LocalEntryNotFoundError("no"), "not in the hub's cache; the hub can't be reached"),
        (errors.HfHubHTTPError("bad\nday", response=RESPONSE), r"could not be downloaded \(bad day\)"),
        (OSError("disk full"), r"could not be downloaded \(disk full\)"),
    ],
)
def test_the_clients_errors_become_one_line(error, message, monkeypatch):
    import huggingface_hub

    def fail(name, allow_patterns):
        assert name == "org/name" and "config.json" in allow_patterns
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match=message) as raised:
        hub.resolve("org/name")
    assert "\n" not in str(raised.value)
