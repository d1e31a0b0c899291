"""Split GGUF models read as one: by any part, from a folder and from the hub; what is not whole is named."""

import shutil
from pathlib import Path

import gguf
import pytest
import torch
from gguf_files import write_gguf
from hypothesis import given
from hypothesis import strategies as st
from test_gguf import no_tokenizer
from tiny import random_tensors, tiny

from phi3mobile import hub
from phi3mobile.errors import InputError
from phi3mobile.export.checkpoint import import_checkpoint
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.gguf_checkpoint import import_gguf, open_gguf
from phi3mobile.models.gguf_names import models_among, part_of


def split(source: Path, folder: Path, parts: int = 3, stem: str = "m", empty_first: bool = False, **changes) -> list[Path]:
    """The file `source` as llama.cpp's gguf-split leaves it: all metadata in the first part, tensors spread over all.

    changes: split.* keys of the last part with another value, `...` to leave one out.
    """
    reader = gguf.GGUFReader(source)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, paths = list(reader.tensors), []
    bounds = [round(len(tensors) * i / (parts - empty_first)) for i in range(parts - empty_first + 1)]
    bounds = [0] * empty_first + bounds
    for number in range(parts):
        path = folder / f"{stem}-{number + 1:05}-of-{parts:05}.gguf"
        writer = gguf.GGUFWriter(path, "phi3")
        writer.kv_data[0].clear()
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith("GGUF."):
                sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub)
        keys = {"split.no": number, "split.count": parts, "split.tensors.count": len(tensors)}
        keys |= changes if number == parts - 1 else {}
        for key, value in keys.items():
            if value is not ...:
                add = {"split.tensors.count": writer.add_int32}.get(key, writer.add_uint16)
                add(key, value) if isinstance(value, int) else writer.add_string(key, value)
        for tensor in tensors[bounds[number] : bounds[number + 1]]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    config = tiny("tiny-gqa")
    return write_gguf(tmp_path_factory.mktemp("whole") / "m.gguf", config, random_tensors(config))


def refused(message, call, *arguments):
    with pytest.raises(InputError, match=message) as error:
        call(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("empty_first", [False, True])
@pytest.mark.parametrize("parts", [2, 3, 14])
def test_every_part_opens_the_whole_model(parts, empty_first, whole, tmp_path):
    paths = split(whole, tmp_path, parts, empty_first=empty_first)
    one = open_gguf(whole)
    for path in (*paths, tmp_path):
        source = open_gguf(path)
        source.check()
        assert source.path == paths[0] and source.config == one.config
        assert all(torch.equal(source.tensor(name), one.tensor(name)) for name in one.names())


def test_the_gguf_packages_own_splits_are_read(tmp_path):
    config, tensors = tiny("tiny-gqa"), random_tensors(tiny("tiny-gqa"))
    writer = write_gguf.__globals__["gguf"].GGUFWriter
    write_gguf.__globals__["gguf"].GGUFWriter = lambda path, architecture: writer(path, architecture, split_max_tensors=4)
    try:
        write_gguf(tmp_path / "m.gguf", config, tensors)
    finally:
        write_gguf.__globals__["gguf"].GGUFWriter = writer
    paths = sorted(tmp_path.glob("*.gguf"))
    assert len(paths) == 4 and part_of(paths[-1].name).total == 4
    checkpoint = open_checkpoint(import_gguf(paths[2], tmp_path / "out", torch.float32, no_tokenizer))
    assert checkpoint.config == config
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in tensors.items())


def test_a_missing_part_is_named(whole, tmp_path):
    paths = split(whole, tmp_path)
    paths[1].unlink()
    for path in (paths[0], paths[2], tmp_path):
        refused("one of 3 parts of a split model; download m-00002-of-00003.gguf beside it", open_gguf, path)
    paths[0].unlink()
    refused("download m-00001-of-00003.gguf, m-00002-of-00003.gguf beside it", open_gguf, paths[2])
    refused("download m-00001-of-00003.gguf", import_gguf, tmp_path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m-00003-of-00003.gguf"]


def test_a_damaged_part_is_named(whole, tmp_path):
    paths = split(whole, tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    refused("m-00002-of-00003.gguf is truncated or damaged", open_gguf, paths[0])
    paths[1].write_bytes(b"no")
    refused("m-00002-of-00003.gguf is not a GGUF file", open_gguf, paths[0])


def test_parts_that_lost_their_names_are_named(whole, tmp_path):
    paths = split(whole, tmp_path)
    shutil.copy(paths[0], tmp_path / "renamed.gguf")
    refused(
        "one of 3 parts of a split model and is not named so; .* NAME-00001-of-00003.gguf", open_gguf, tmp_path / "renamed.gguf"
    )
    shutil.copy(paths[0], tmp_path / "x-00001-of-00009.gguf")
    refused("one of 3 parts", open_gguf, tmp_path / "x-00001-of-00009.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split.no": 1}, "m-00003-of-00003.gguf: split.no is 1 where 2 belongs: parts of two splits or models"),
        ({"split.no": ...}, "split.no is None where 2 belongs"),
        ({"split.count": 4}, "split.count is 4 where 3 belongs"),
        ({"split.tensors.count": 99}, "split.tensors.count is 99 where 15 belongs"),
        ({"general.name": "other"}, "general.name is 'other' where 'mine' belongs"),
        ({"general.architecture": "llama"}, "general.architecture is 'llama' where 'phi3' belongs"),
        ({"general.name": "mine", "general.architecture": "phi3"}, None),
    ],
)
def test_parts_of_different_splits_are_refused(changes, message, tmp_path):
    config = tiny("tiny-gqa")
    source = tmp_path / "whole.gguf"
    write_gguf(source, config, random_tensors(config))
    paths = split(source, tmp_path / "parts", **changes)
    _with_name(source, paths[0])
    if message is None:
        open_gguf(paths[0]).check()
    else:
        refused(message, open_gguf, paths[1])


def _with_name(source: Path, first: Path) -> None:
    """Write the first part again with a general.name."""
    reader, old = gguf.GGUFReader(source), gguf.GGUFReader(first)
    writer = gguf.GGUFWriter(first.with_suffix(".new"), "phi3")
    writer.add_name("mine")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for key in ("no", "count"):
        writer.add_uint16(f"split.{key}", old.fields[f"split.{key}"].contents())
    writer.add_int32("split.tensors.count", len(reader.tensors))
    for tensor in old.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first.with_suffix(".new").rename(first)


def test_parts_that_overlap_or_leave_a_gap_are_refused(whole, tmp_path):
    even = split(whole, tmp_path / "even", 3)
    odd = split(whole, tmp_path / "odd", 3, empty_first=True)
    for mine, theirs, message in (
        (even, odd, "which another part has as well"),
        (odd, even, "have 10 tensors where it says 15"),
    ):
        folder = tmp_path / f"mixed-{mine[0].parent.name}"
        folder.mkdir()
        for path in (mine[0], theirs[1], mine[2] if mine is even else theirs[2]):
            shutil.copy(path, folder)
        refused(message, open_gguf, folder)


# Folders


def test_a_folder_with_one_model_is_imported(whole, tmp_path):
    split(whole, tmp_path / "in")
    (tmp_path / "in" / "mmproj-m-f16.gguf").write_bytes(b"a projector")
    (tmp_path / "in" / "README.md").write_text("about")
    (tmp_path / "in" / "config.json").write_text('{"model_type": "phi3"}')  # as some GGUF repositories have
    assert open_gguf(tmp_path / "in").config == tiny("tiny-gqa")
    with pytest.raises(InputError, match="GGUF vocabulary model 'none' is not supported"):  # of the test's file
        import_checkpoint(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_several_models_lists_them(whole, tmp_path):
    split(whole, tmp_path, stem="m-Q8_0")
    shutil.copy(whole, tmp_path / "m-Q4_0.gguf")
    refused(r"holds 2 GGUF models \(m-Q4_0.gguf, m-Q8_0-00001-of-00003.gguf\); give one of the files", open_gguf, tmp_path)
    refused("holds 2 GGUF models", import_checkpoint, tmp_path, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    refused("empty is a folder; give a .gguf file", open_gguf, tmp_path / "empty")


@given(st.text("ab-1.", min_size=1, max_size=8), st.integers(1, 99999), st.integers(1, 200))
def test_part_names(stem, number, count):
    part = part_of(f"{stem}-{number:05}-of-{count:05}.gguf")
    assert (part.stem, part.number, part.total) == (stem, number, count)
    assert len(part.names) == count and part.names[0] == f"{stem}-00001-of-{count:05}.gguf"
    for other in (
        f"{stem}.gguf",
        f"{stem}-1-of-2.gguf",
        f"{stem}-{number:05}-of-{count:05}.bin",
        f"-{number:05}-of-00001.gguf",
    ):
        assert part_of(other) is None


def test_models_among_names():
    names = [
        "a.gguf",
        "b/x-00002-of-00002.gguf",
        "b/x-00001-of-00002.gguf",
        "mmproj-a.gguf",
        "a.mmproj-Q8.gguf",
        "imatrix.gguf",
    ]
    assert models_among([*names, "config.json"]) == ["a.gguf", "b/x-00001-of-00002.gguf"]
    assert models_among(["x-00003-of-00003.gguf"]) == ["x-00003-of-00003.gguf"] and models_among([]) == []


# The hub


@pytest.fixture
def hosted(whole, tmp_path, monkeypatch):
    """org/name with the files of a folder: downloads copy what the patterns ask for."""
    import fnmatch

    import huggingface_hub

    there, cache, asked = tmp_path / "there", tmp_path / "cache", []
    there.mkdir()

    def files():
        return sorted(str(path.relative_to(there)) for path in there.rglob("*") if path.is_file())

    def download(name, allow_patterns):
        assert name == "org/name"
        asked.append(allow_patterns)
        cache.mkdir(exist_ok=True)
        for file in files():
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (cache / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(there / file, cache / file)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name: files())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return there, cache


def test_a_repository_with_one_split_model_is_downloaded(hosted, whole):
    there, cache = hosted
    split(whole, there / "Q8")
    (there / "README.md").write_text("about")
    path = hub.resolve("org/name")
    assert path == cache / "Q8" / "m-00001-of-00003.gguf" and open_gguf(path).config == tiny("tiny-gqa")
    assert len(list(cache.rglob("*.gguf"))) == 3


def test_one_of_several_models_is_named_and_nothing_else_is_downloaded(hosted, whole):
    there, cache = hosted
    split(whole, there, stem="big")
    shutil.copy(whole, there / "small.gguf")
    models = r"org/name holds 2 GGUF models: big-00001-of-00003.gguf, small.gguf; give one of them: org/name/big-00001"
    refused(models, hub.resolve, "org/name")
    assert not list(cache.rglob("*.gguf"))
    assert hub.resolve("org/name/small.gguf") == cache / "small.gguf" and len(list(cache.rglob("*.gguf"))) == 1
    path = hub.resolve("org/name/big-00002-of-00003.gguf")
    assert path == cache / "big-00002-of-00003.gguf" and open_gguf(path).path == cache / "big-00001-of-00003.gguf"
    refused(
        r"org/name has no other.gguf; its GGUF models: big-00001-of-00003.gguf, small.gguf", hub.resolve, "org/name/other.gguf"
    )


def test_a_part_that_the_hub_lacks_is_named(hosted, whole):
    there, _ = hosted
    split(whole, there)[1].unlink()
    refused("download m-00002-of-00003.gguf beside it", open_gguf, hub.resolve("org/name"))


def test_a_repository_with_safetensors_is_its_folder(hosted, whole, tmp_path):
    from tiny import tiny_checkpoint

    there, cache = hosted
    shutil.copytree(tiny_checkpoint(tmp_path / "c"), there, dirs_exist_ok=True)
    shutil.copy(whole, there / "m.gguf")
    assert hub.resolve("org/name") == cache and not list(cache.rglob("*.gguf"))


def test_offline_the_copy_here_counts(hosted, whole, monkeypatch):
    import huggingface_hub

    there, cache = hosted
    split(whole, there)
    shutil.copy(whole, there / "other.gguf")
    hub.resolve("org/name/m-00001-of-00003.gguf")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(cache))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name: pytest.fail("asked the network"))
    assert hub.resolve("org/name") == cache / "m-00001-of-00003.gguf"
    refused("has no other.gguf; its GGUF models: m-00001-of-00003.gguf", hub.resolve, "org/name/other.gguf")


def test_an_export_of_gguf_without_a_vocabulary_is_refused(whole, tmp_path):
    from phi3mobile.export.plan import plan_export

    for source in (whole, whole.parent):
        refused("GGUF vocabulary model 'none' is not supported", plan_export, source, tmp_path / "out")
    assert not list(tmp_path.iterdir())
