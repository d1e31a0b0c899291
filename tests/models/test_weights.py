"""Checkpoint folders: every layout reads the same, every fault is named, nothing half-written."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import (
    TINY,
    random_model,
    random_tensors,
    random_tokens,
    tiny,
    tiny_checkpoint,
    transformers_model,
    unfused,
    write_folder,
)

from phi3mobile.errors import InputError
from phi3mobile.models.checkpoint import open_checkpoint, write_checkpoint
from phi3mobile.models.loading import load_model


def edit(folder, change):
    """Change the tensors of a one-file checkpoint in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def sharded(folder, name="tiny-gqa", shard_bytes=20_000):
    config = tiny(name)
    return write_checkpoint(folder, config, random_tensors(config).items(), torch.float32, shard_bytes=shard_bytes)


@pytest.mark.parametrize("name", TINY)
def test_a_folder_transformers_saved_loads_exactly(name, tmp_path):
    config = tiny(name)
    tensors = random_tensors(config)
    transformers_model(config, tensors).save_pretrained(tmp_path / "saved", max_shard_size="60KB")
    assert (tmp_path / "saved" / "model.safetensors.index.json").exists()
    model = load_model(tmp_path / "saved")
    tokens = random_tokens(config, 40)
    assert torch.equal(model(tokens), random_model(config)(tokens))
    assert not model.training


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny-gqa", "tiny-tied", "tiny-window"])
def test_transformers_loads_what_we_write(name, tmp_path):
    import transformers

    config = tiny(name)
    tensors = random_tensors(config)
    for shard_bytes in (2 << 30, 50_000):
        folder = tmp_path / str(shard_bytes)
        write_checkpoint(folder, config, tensors.items(), torch.float32, shard_bytes=shard_bytes)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokens = random_tokens(config, 24)
        assert (theirs.eval()(tokens).logits - random_model(config)(tokens)).abs().max() < 1e-4


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_unfused_layouts_read_under_phi3_names(model_type, tmp_path):
    config = tiny("tiny-gqa", source_model_type=model_type)
    tensors = random_tensors(config)
    hf = {**config.to_hf(), "model_type": model_type}
    checkpoint = open_checkpoint(write_folder(tmp_path / "c", hf, unfused(config, tensors)))
    checkpoint.check()
    assert checkpoint.config == config and checkpoint.names() == list(config.tensors())
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensor(name), tensor) and checkpoint.shape(name) == tuple(tensor.shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_read_as_float32(dtype, tmp_path):
    config = tiny("tiny-tied")
    tensors = random_tensors(config)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "c", config, tensors.items(), dtype))
    checkpoint.check()
    for name, tensor in tensors.items():
        assert checkpoint.tensor(name).dtype == torch.float32
        assert torch.equal(checkpoint.tensor(name), tensor.to(dtype).float())
    assert torch.equal(checkpoint.tensor("lm_head.weight"), checkpoint.tensor("model.embed_tokens.weight"))


def test_check_names_everything_in_one_line(tmp_path):
    def change(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.qkv_proj.bias"] = torch.zeros(3)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(3)  # an old buffer: ignored
        tensors["lm_head.weight"] = torch.zeros(256, 32)

    checkpoint = open_checkpoint(edit(tiny_checkpoint(tmp_path / "c"), change))
    with pytest.raises(InputError) as error:
        checkpoint.check()
    text = str(error.value)
    assert "model.norm.weight is missing" in text
    assert "model.layers.0.self_attn.qkv_proj.bias is not part of the model" in text
    assert "lm_head.weight has shape [256, 32], expected [256, 64]" in text
    assert "inv_freq" not in text and "\n" not in text


def test_check_counts_what_it_leaves_out(tmp_path):
    checkpoint = open_checkpoint(edit(tiny_checkpoint(tmp_path / "c"), lambda tensors: tensors.clear()))
    with pytest.raises(InputError, match=r"embed_tokens.weight is missing.*and 3 more$"):
        checkpoint.check()
    with pytest.raises(InputError, match=r"tensor model.norm.weight is missing"):
        checkpoint.tensor("model.norm.weight")
    with pytest.raises(KeyError):
        checkpoint.tensor("model.nothing")


def test_a_stored_tied_head_is_ignored(tmp_path):
    folder = tiny_checkpoint(tmp_path / "c", "tiny-tied")
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(256, 64)}))
    assert load_model(folder).lm_head.weight.abs().sum() > 0


def test_other_dtypes_are_refused(tmp_path):
    def change(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].double()

    checkpoint = open_checkpoint(edit(tiny_checkpoint(tmp_path / "c"), change))
    for call in (checkpoint.check, lambda: checkpoint.tensor("model.norm.weight")):
        with pytest.raises(InputError, match=r"model.norm.weight is stored as F64; allowed are F16, BF16, F32"):
            call()


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_checkpoint(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        open_checkpoint(tmp_path / "file")
    with pytest.raises(InputError, match=r"has no config.json"):
        open_checkpoint(tmp_path)
    folder = tiny_checkpoint(tmp_path / "c")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model.safetensors"):
        load_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"pytorch_model.bin only; save it again as safetensors"):
        load_model(folder)
    for text, message in (("{", "is not JSON"), ("[]", "JSON object"), ('{"model_type": "bert"}', "known are phi3")):
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            load_model(folder)


def test_bad_indexes_are_named(tmp_path):
    folder = sharded(tmp_path / "c")
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    files = sorted(set(good["weight_map"].values()))
    assert len(files) > 2

    def refused(message):
        with pytest.raises(InputError, match=message):
            open_checkpoint(folder)

    index.write_text("{}")
    refused("must map tensor names")
    index.write_text(json.dumps({"weight_map": {**good["weight_map"], "x": "../other.safetensors"}}))
    refused("same folder")
    index.write_text(json.dumps({"weight_map": {**good["weight_map"], "x": files[0]}}))
    refused(f"says x is in {files[0]}, and it is not")
    index.write_text(json.dumps(good))
    shutil.copy(folder / files[0], folder / files[1])
    refused(f"is in two shards, {files[0]} and {files[1]}")
    (folder / files[1]).unlink()
    refused(f"not there: {files[1]}")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(part=st.floats(0, 1, exclude_max=True))
def test_truncated_files_are_named(part, tmp_path):
    folder = tmp_path / "c"
    if not folder.exists():
        tiny_checkpoint(folder)
        (tmp_path / "whole").write_bytes((folder / "model.safetensors").read_bytes())
    whole = (tmp_path / "whole").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InputError, match=r"model.safetensors is truncated or damaged") as error:
        open_checkpoint(folder)
    assert "\n" not in str(error.value)


def test_writing_refuses_and_leaves_nothing(tmp_path, monkeypatch):
    config = tiny("tiny-mha")
    tensors = random_tensors(config)
    out = tmp_path / "out"

    def refused(message, items, dtype=torch.float16):
        with pytest.raises(InputError, match=message):
            write_checkpoint(out, config, items, dtype)
        assert list(tmp_path.iterdir()) == []

    refused("lm_head.weight is missing", [(n, t) for n, t in tensors.items() if n != "lm_head.weight"])
    refused("model.norm.weight has values that torch.float16 cannot hold", [("model.norm.weight", torch.full((64,), 1e6))])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5_000_000))
    refused(r"needs 0.1 GB, the disk has 0.0 GB free", tensors.items())
    monkeypatch.undo()

    def broken():
        yield next(iter(tensors.items()))
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_checkpoint(out, config, broken())
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    with pytest.raises(InputError, match="exists; give another name"):
        write_checkpoint(out, config, tensors.items())


def test_source_hash_follows_content_and_config(tmp_path):
    folder = tiny_checkpoint(tmp_path / "c")
    first = open_checkpoint(folder).source_hash()
    assert first == open_checkpoint(tiny_checkpoint(tmp_path / "same")).source_hash()
    assert first != open_checkpoint(tiny_checkpoint(tmp_path / "other", seed=1)).source_hash()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 5e4}))
    assert first != open_checkpoint(folder).source_hash()


def test_load_model_takes_a_context(tmp_path):
    folder = tiny_checkpoint(tmp_path / "c")
    assert load_model(folder).context == 256
    assert load_model(str(folder), context=32).context == 32
    with pytest.raises(InputError, match="1 to 256"):
        load_model(folder, context=1000)


# Indexes and files that list more, or less, than the model's own tensors

BUFFERS = (
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.rotary_emb.inv_freq",
    "model.layers.1.self_attn.rotary_emb.cos_cached",
    "model.layers.1.self_attn.rotary_emb.long_inv_freq",
    "model.layers.1.self_attn.masked_bias",
    "model.layers.1.attn.bias",
    "model.causal_mask",
    "model.embed_positions.position_ids",
    "rope.freqs",
)


def listing(folder, **more):
    """The index with more entries: tensor -> file, or ... for the first file."""
    index = folder / "model.safetensors.index.json"
    read = json.loads(index.read_text())
    first = sorted(set(read["weight_map"].values()))[0]
    read["weight_map"] |= {name: first if file is ... else file for name, file in more.items()}
    index.write_text(json.dumps(read))
    return folder


@pytest.mark.parametrize("name", ["tiny-gqa", "tiny-tied"])
def test_an_index_may_list_buffers_and_a_tied_head_that_no_shard_holds(name, tmp_path):
    import transformers

    config = tiny(name)
    spare = dict.fromkeys((*BUFFERS, *(["lm_head.weight"] if config.tie_word_embeddings else [])), ...)
    folder = listing(sharded(tmp_path / "c", name), **spare)
    model, tokens = load_model(folder), random_tokens(config, 24)
    assert torch.equal(model(tokens), random_model(config)(tokens))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert (theirs(tokens).logits - model(tokens)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "name",
    ["lm_head.weight", "model.layers.0.self_attn.q_proj.bias", "model.norm.bias", "model.layers.2.input_layernorm.weight", "x"],
)
def test_other_tensors_that_no_shard_holds_are_named(name, tmp_path):
    folder = sharded(tmp_path / "c")
    tensors = load_file(next(path for path in folder.glob("*.safetensors") if "lm_head.weight" in load_file(path)))
    if name in tensors:  # taken out of its shard
        path = next(path for path in folder.glob("*.safetensors") if name in load_file(path))
        save_file({key: value for key, value in tensors.items() if key != name} | {"rope.freqs": torch.ones(1)}, path)
    else:
        listing(folder, **{name: ...})
    with pytest.raises(InputError, match=rf"says {name} is in .*, and it is not; download the folder again"):
        open_checkpoint(folder)


def test_a_tensor_in_another_shard_than_the_index_says_is_found(tmp_path):
    folder = sharded(tmp_path / "c")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    one, other = "model.norm.weight", "model.layers.0.mlp.down_proj.weight"
    assert index[one] != index[other]
    listing(folder, **{one: index[other], other: index[one]})
    tokens = random_tokens(tiny("tiny-gqa"), 9)
    assert torch.equal(load_model(folder)(tokens), random_model(tiny("tiny-gqa"))(tokens))


def test_one_whole_file_counts_before_an_index(tmp_path):
    """As in transformers: the index is of shards that are gone."""
    folder = tiny_checkpoint(tmp_path / "c")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    open_checkpoint(folder).check()


@pytest.mark.parametrize("shards", [True, False])
def test_a_tied_table_may_be_stored_as_the_head(shards, tmp_path):
    import transformers

    config = tiny("tiny-tied")
    tensors = random_tensors(config)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    folder = write_folder(tmp_path / "c", config.to_hf(), tensors)
    if shards:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        names = [*tensors, "model.embed_tokens.weight"]
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(folder)
    checkpoint.check()
    checkpoint.check_values()
    assert checkpoint.names() == list(config.tensors()) and checkpoint.shape("model.embed_tokens.weight") == (256, 64)
    assert torch.equal(checkpoint.tensor("lm_head.weight"), checkpoint.tensor("model.embed_tokens.weight"))
    tokens = random_tokens(config, 20)
    assert torch.equal(load_model(folder)(tokens), random_model(config)(tokens))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert (theirs(tokens).logits - load_model(folder)(tokens)).abs().max() < 1e-4


def test_a_tied_model_without_its_table_is_named(tmp_path):
    folder = edit(tiny_checkpoint(tmp_path / "c", "tiny-tied"), lambda tensors: tensors.pop("model.embed_tokens.weight"))
    with pytest.raises(InputError, match=r"model.embed_tokens.weight is missing"):
        open_checkpoint(folder).check()


def test_buffers_in_two_shards_are_no_error(tmp_path):
    folder = sharded(tmp_path / "c")
    for path in sorted(folder.glob("*.safetensors"))[:2]:
        save_file(load_file(path) | {BUFFERS[0]: torch.ones(8)}, path)
    open_checkpoint(folder).check()


def test_a_folder_of_gguf_says_what_to_do(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"holds GGUF weights; make a checkpoint of them first: phi3mobile import"):
        open_checkpoint(tmp_path)
