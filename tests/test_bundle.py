"""Bundles: what was written opens, and every damage, age and trick is named in one line."""

import json
import os
import shutil
from pathlib import Path

import pytest
from exported import VOCAB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phi3mobile import bundle as bundle_module
from phi3mobile.bundle import Bundle, open_bundle
from phi3mobile.bundle_v1 import upgraded
from phi3mobile.engines import check_operators, check_version
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.export.cards import bundle_card
from phi3mobile.files import sha256
from phi3mobile.manifest import MANIFEST, SCHEMA
from phi3mobile.session.session import Session

FILES = ("model.pte", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    """A bundle of one's own to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def edit(folder, change):
    """Change the manifest in place: `change` gets it parsed."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def put(manifest, name, value):
    """Set section.key."""
    *sections, key = name.split(".")
    for section in sections:
        manifest = manifest[section]
    manifest[key] = value


def refusal(folder):
    with pytest.raises(InputError) as error:
        open_bundle(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_written_bundle_opens(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    assert sorted(bundle.manifest["files"]) == sorted(FILES)
    for name, listed in bundle.manifest["files"].items():
        assert listed == {"bytes": (tiny_bundle / name).stat().st_size, "sha256": sha256(tiny_bundle / name)}
    assert bundle.program == tiny_bundle / "model.pte"
    assert bundle.eos_ids == {2, 0} and bundle.bos_id == 1
    assert (bundle.info.vocab, bundle.info.max_context, bundle.info.max_chunk) == (VOCAB, 256, 128)
    messages = [{"role": "user", "content": "hello"}]
    assert bundle.chat.render(messages) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert bundle.tokenizer.encode("<|im_end|>") == [2]
    assert bundle.manifest["memory"]["peak"]["256"] > bundle.manifest["memory"]["weights"]


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    assert f"{name} is damaged: its SHA-256" in refusal(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found_by_its_size(copy, name, monkeypatch):
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    message = refusal(copy)
    assert f"{name} has" in message and "the manifest says" in message


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    assert f"lacks the file {name}" in refusal(copy)
    (copy / name).mkdir()
    assert f"lacks the file {name}" in refusal(copy)


def test_what_is_no_bundle_is_named(copy, tmp_path):
    assert "does not exist or is not a folder" in refusal(tmp_path / "nothing")
    assert "does not exist or is not a folder" in refusal(copy / "model.pte")
    assert f"has no {MANIFEST}" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "can't be read"),
        (b"\xff\xfe", "can't be read"),
        (b"", "can't be read"),
        (b"[" * 100_000, "can't be read"),
        (b"[]", "no format version"),
        (b"null", "no format version"),
        (b'{"format": "1"}', "no format version"),
        (b'{"format": true}', "no format version"),
        (b'{"format": 0}', "no format version"),
        (b'{"format": 3}', "has bundle format 3, this phi3mobile reads up to 2; upgrade"),
        (b'{"format": 2}', "lacks name"),
        (b'{"format": 1}', "lacks name"),
        (b'{"format": 1, "runtime": 3}', "lacks name"),
    ],
)
def test_a_bad_manifest_is_named(copy, data, message):
    (copy / MANIFEST).write_bytes(data)
    assert message in refusal(copy)


@pytest.mark.parametrize("name", SCHEMA)
def test_every_lacking_key_is_named(copy, name):
    *sections, key = name.split(".")

    def remove(manifest):
        for section in sections:
            manifest = manifest[section]
        del manifest[key]

    assert f"lacks {name};" in refusal(edit(copy, remove))


V1 = {  # what bundles of format 1 said, by recipe: runtime, options of the recipe -> engine, weights_mapped, programs
    "android-cpu": ({"kind": "executorch", "program": "model.pte"}, "stock", "executorch", False, ["model.pte"]),
    "host": ({"kind": "executorch", "program": "model.pte"}, "native", "native", True, ["model.pte"]),
    "ios-gpu": ({"kind": "coreml", "program": "model.mlpackage"}, "states", "coreml", False, ["model.mlpackage"]),
    "ios-ane": (
        {"kind": "coreml", "program": "model", "packages": ["part_0.mlpackage", "part_1.mlpackage"]},
        "read-only",
        "coreml-ane",
        False,
        ["model/part_0.mlpackage", "model/part_1.mlpackage"],
    ),
    "ios-executorch": (
        {"kind": "executorch", "program": "model.pte", "backend": "CoreMLBackend"},
        "delegate",
        "coreml-delegate",
        False,
        ["model.pte"],
    ),
    "litert": ({"kind": "litert", "program": "model.tflite"}, "in-out", "litert", True, ["model.tflite"]),
}


@pytest.mark.parametrize("recipe", V1)
def test_a_manifest_of_format_1_tells_its_engine(recipe):
    runtime, attention, *expected = V1[recipe]
    old = {"format": 1, "runtime": runtime | {"version": "1.5.1"}, "recipe": {"name": recipe, "attention": attention}}
    new = upgraded(old)
    assert [new["engine"], new["weights_mapped"], new["programs"]] == expected
    assert "kind" not in new["runtime"] and new["runtime"]["name"] and old["runtime"]["kind"] == runtime["kind"]
    assert upgraded(new | {"format": 2}) == new | {"format": 2}


def test_a_bundle_of_format_1_opens_and_runs(copy):
    def make_old(manifest):
        manifest["format"] = 1
        for key in ("engine", "weights_mapped", "programs"):
            del manifest[key]
        del manifest["runtime"]["name"]
        manifest["runtime"]["kind"] = "executorch"
        manifest["recipe"]["attention"] = "stock"

    bundle = open_bundle(edit(copy, make_old))
    assert bundle.manifest["engine"] == "executorch" and bundle.programs == [copy / "model.pte"]
    assert bundle_card(bundle)["runtime"].startswith("ExecuTorch ")
    engine = open_engine(bundle)
    assert engine.forward([1, 2, 3], 0).shape == (3, VOCAB)
    engine.close()


@pytest.mark.parametrize("engine", ["warp", "os:system", "phi3mobile.engines.none:open", "phi3mobile.none.it:open", "a:b:c"])
def test_an_engine_that_is_not_ours_is_refused(engine, copy):
    bundle = open_bundle(edit(copy, lambda manifest: manifest.update(engine=engine)))
    refused = f"is for the engine '{engine}'; this phi3mobile has executorch, native, .*: upgrade it"
    with pytest.raises(InputError, match=refused):
        open_engine(bundle)


def test_an_engine_that_its_module_lacks_is_refused(copy):
    bundle = open_bundle(edit(copy, lambda manifest: manifest.update(engine="phi3mobile.errors:open_it")))
    with pytest.raises(InputError, match=r"phi3mobile\.errors has no open_it: upgrade phi3mobile"):
        open_engine(bundle)


def test_unknown_keys_are_for_later_readers(copy):
    edit(copy, lambda manifest: manifest["model"].update(wings=2))
    assert open_bundle(copy).manifest["model"]["wings"] == 2


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/hostname", "..", "", ".", "model.pte/../../x"])
def test_paths_that_lead_out_are_refused(copy, name):
    (copy.parent / "x").write_text("secret")
    entry = {"bytes": 6, "sha256": sha256(copy.parent / "x")}
    assert "files can't be" in refusal(edit(copy, lambda manifest: manifest["files"].update({name: entry})))
    edit(copy, lambda manifest: manifest["files"].pop(name))
    assert "runtime.program can't be" in refusal(edit(copy, lambda manifest: put(manifest, "runtime.program", name)))


def test_a_program_that_is_not_verified_is_refused(copy):
    (copy / "other.pte").write_bytes(b"")
    edit(copy, lambda manifest: put(manifest, "runtime.program", "other.pte"))
    assert "runtime.program is not among its files" in refusal(copy)


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**30, -1, 0, "1.5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
places = sorted({".".join(name.split(".")[:n]) for name in SCHEMA for n in (1, 2)} | {"format", "files.model.pte"})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(places), any_json)
def test_any_value_anywhere_gives_a_bundle_or_one_line(tiny_bundle, tmp_path, place, value):
    for name in FILES:
        if not (tmp_path / name).exists():
            (tmp_path / name).symlink_to(tiny_bundle / name)
    manifest = json.loads((tiny_bundle / MANIFEST).read_text())
    if place.startswith("files."):
        manifest["files"]["model.pte"] = value
    else:
        put(manifest, place, value)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    try:
        bundle = open_bundle(tmp_path)
    except InputError as error:
        assert len(str(error)) < 1500
        return
    assert isinstance(bundle, Bundle) and bundle_card(bundle)  # what passed can be shown
    assert bundle.info and bundle.eos_ids is not None and bundle.program.parent == tmp_path


@pytest.mark.parametrize(
    ("exported", "installed", "fits"),
    [
        ("1.5.1", "1.5.1", True),
        ("1.5.1", "1.5.0", True),
        ("1.5.1", "1.6.2", True),
        ("1.5.1", "1.6.0a0+cpu", True),
        ("1.5.1", "1.4.9", False),
        ("1.5.1", "1.7.0", False),
        ("1.5.1", "2.5.1", False),
        ("2.0.0", "1.5.1", False),
    ],
)
def test_a_program_runs_on_its_own_and_the_next_minor_version(exported, installed, fits):
    if fits:
        check_version(exported, installed)
        return
    with pytest.raises(InputError, match=f"made for ExecuTorch {exported}, installed is {installed}: allowed are"):
        check_version(exported, installed)


@pytest.mark.parametrize("version", ["0.9.0", "1.1.0", "2.0.0"])
def test_a_bundle_of_another_executorch_does_not_open(copy, version):
    edit(copy, lambda manifest: put(manifest, "runtime.version", version))
    with pytest.raises(InputError, match=f"made for ExecuTorch {version}"):
        Session(copy)


def test_a_bundle_that_needs_unknown_operators_does_not_open(copy):
    edit(copy, lambda manifest: manifest["runtime"]["operators"].append("phi3mobile::flying.out"))
    with pytest.raises(InputError, match=r"lacks the operators phi3mobile::flying.out; export with"):
        Session(copy)
    with pytest.raises(InputError, match="a::x, b::y"):
        check_operators(["b::y", "a::x", "c::z"], ["c::z"])


def test_a_session_of_an_unknown_engine_does_not_open(copy):
    edit(copy, lambda manifest: put(manifest, "engine", "abacus"))
    with pytest.raises(InputError, match="is for the engine 'abacus'; this phi3mobile has executorch, native"):
        Session(copy)


def test_a_bundle_without_a_template_completes_but_does_not_chat(copy):
    edit(copy, lambda manifest: put(manifest, "chat.template", None))
    with pytest.raises(InputError, match="has no chat template"):
        _ = open_bundle(copy).chat


@pytest.fixture
def hashed(monkeypatch, tmp_path):
    """Names of the files hashed so far, over an empty record of what was verified."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = []
    monkeypatch.setattr(bundle_module, "sha256", lambda path: names.append(path.name) or sha256(path))
    return names


def settle(monkeypatch):
    monkeypatch.setattr(bundle_module, "_SETTLED_NS", -(10**12))


def test_a_verified_bundle_is_not_hashed_again(copy, hashed, monkeypatch):
    settle(monkeypatch)
    open_bundle(copy)
    assert sorted(hashed) == sorted(FILES)
    open_bundle(copy)
    assert len(hashed) == len(FILES)
    moved = copy.rename(copy.with_name("moved"))
    open_bundle(moved)
    assert len(hashed) == 2 * len(FILES)


def test_files_written_a_moment_ago_are_hashed_again(copy, hashed, monkeypatch):
    monkeypatch.setattr(bundle_module, "_SETTLED_NS", 10**15)
    open_bundle(copy)
    open_bundle(copy)
    assert len(hashed) == 2 * len(FILES)


def test_a_changed_byte_of_a_verified_bundle_is_found(copy, hashed, monkeypatch):
    settle(monkeypatch)
    os.utime(copy / "model.pte", (1e9, 1e9))
    open_bundle(copy)
    data = bytearray((copy / "model.pte").read_bytes())
    data[-1] ^= 1
    (copy / "model.pte").write_bytes(data)
    os.utime(copy / "model.pte", (1e9, 1e9))  # even with its old date: the change time differs
    assert "model.pte is damaged" in refusal(copy)
    assert "model.pte is damaged" in refusal(copy)


@pytest.mark.parametrize("damage", [b"{", b"[]", b"\xff", b'{"a": 1, "\\u0000": 2}', b"null"])
def test_a_damaged_record_is_ignored(copy, hashed, damage, tmp_path, monkeypatch):
    settle(monkeypatch)
    record = tmp_path / "cache" / "phi3mobile" / "verified.json"
    record.parent.mkdir(parents=True)
    record.write_bytes(damage)
    open_bundle(copy)
    open_bundle(copy)
    assert len(hashed) == len(FILES)
    assert len(json.loads(record.read_text())) == len(FILES)


def test_an_unwritable_cache_does_not_matter(copy, hashed, monkeypatch, tmp_path):
    settle(monkeypatch)
    (tmp_path / "cache").write_text("a file where the cache folder would be")
    assert open_bundle(copy) and open_bundle(copy)
    assert len(hashed) == 2 * len(FILES)
    (tmp_path / "cache").unlink()
    (tmp_path / "cache" / "phi3mobile" / "verified.json").mkdir(parents=True)
    assert open_bundle(copy) and list((tmp_path / "cache" / "phi3mobile").iterdir())
