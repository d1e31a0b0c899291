"""NaN and infinity, wherever a checkpoint may hold them: named by the tensor, before anything is written or told."""

import json
import math
import shutil

import gguf
import numpy as np
import pytest
import torch
from exported import talking_checkpoint
from gguf_files import write_gguf
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_gguf import factor_tensors, no_tokenizer, write_llama
from tiny import random_tensors, tiny, tiny_checkpoint, unfused, write_folder

from phi3mobile.errors import InputError
from phi3mobile.export.build import export
from phi3mobile.export.checkpoint import import_checkpoint
from phi3mobile.export.plan import plan_export
from phi3mobile.export.solve.build import quantize_checkpoint
from phi3mobile.models.checkpoint import open_checkpoint, write_checkpoint
from phi3mobile.models.finite import is_finite, require_finite
from phi3mobile.models.gguf_checkpoint import import_gguf, open_gguf
from phi3mobile.models.loading import load_model
from phi3mobile.models.registry import read_config

BAD = [math.nan, math.inf, -math.inf]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def spoil(folder, name, value=math.nan, at=-1, dtype=None):
    """Put `value` into one tensor of a one-file checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    if dtype is not None:
        tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    tensors[name].view(-1)[at] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def refused(name, call, *arguments, **options):
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    assert str(error.value).startswith(f"{name} has values that are not finite (NaN or infinity): ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@given(values=st.lists(st.floats(width=16), max_size=40))
def test_is_finite_is_what_isfinite_says(dtype, values):
    tensor = torch.tensor(values, dtype=dtype)
    assert is_finite(tensor) == bool(torch.isfinite(tensor).all())


def test_the_refusal_names_tensor_and_place(tmp_path):
    require_finite("x", torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"^x has values .* \(NaN or infinity\): /some/where is damaged"):
        require_finite("x", torch.tensor([[0.0, math.inf]]), "/some/where")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", BAD)
def test_every_tensor_of_a_folder_is_looked_at(value, dtype, tmp_path):
    names = list(tiny("tiny-gqa").tensors())
    for number, name in enumerate(names):
        folder = spoil(tiny_checkpoint(tmp_path / str(number)), name, value, number, dtype)
        checkpoint = open_checkpoint(folder)
        checkpoint.check()
        refused(name, checkpoint.tensor, name)
        refused(name, checkpoint.check_values)
        refused(name, load_model, folder)
        shutil.rmtree(folder)


def test_sound_values_pass_and_progress_is_told(tmp_path):
    told = []
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "c", "tiny-tied"))
    checkpoint.check_values(lambda *step: told.append(step))
    assert [step[0] for step in told] == ["check tensors"] * len(checkpoint.names()) and told[-1][1] < told[-1][2] == len(told)
    first = checkpoint.tensor("model.norm.weight").clone()
    checkpoint.check_values()
    assert torch.equal(checkpoint.tensor("model.norm.weight"), first)  # given back pages are read again


def test_what_the_model_does_not_read_may_be_anything(tmp_path):
    folder = tiny_checkpoint(tmp_path / "c", "tiny-tied")
    tensors = load_file(folder / "model.safetensors")
    extra = {"lm_head.weight": torch.full((256, 64), math.nan), "model.layers.0.self_attn.masked_bias": torch.tensor(-math.inf)}
    save_file(tensors | extra, folder / "model.safetensors")
    open_checkpoint(folder).check_values()
    load_model(folder)


def test_parts_of_other_layouts_are_named_as_stored(tmp_path):
    config = tiny("tiny-gqa", source_model_type="llama")
    parts = unfused(config, random_tensors(config))
    folder = write_folder(tmp_path / "c", {**config.to_hf(), "model_type": "llama"}, parts)
    name = "model.layers.1.self_attn.k_proj.weight"
    spoil(folder, name)
    refused(name, load_model, folder)
    refused(name, import_checkpoint, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["model.layers.0.input_layernorm.bias", "model.layers.3.mlp.down_proj.bias", "model.final_layernorm.weight"]
)
def test_biases_and_layernorms_are_looked_at(name, checkpoint_of, tmp_path):
    folder = spoil(shutil.copytree(checkpoint_of("small-tiny"), tmp_path / "c"), name)
    refused(name, export, folder, tmp_path / "out", "host", method="rtn")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize(
    "name",
    ["model.norm.weight", "model.layers.1.post_attention_layernorm.weight", "model.embed_tokens.weight", "lm_head.weight"],
)
def test_an_export_is_refused_before_anything_is_written(name, method, tmp_path, monkeypatch):
    from phi3mobile.export import build

    folder = spoil(talking_checkpoint(tmp_path / "c"), name)
    plan = plan_export(folder, tmp_path / "out", method=method)  # knows headers only
    monkeypatch.setattr(build, "new_folder", lambda path: pytest.fail("something was written"))
    refused(name, build.write_bundle, plan)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("rotate", [False, True])
def test_a_solve_is_refused_before_anything_is_written(rotate, text, tmp_path):
    folder = spoil(talking_checkpoint(tmp_path / "c"), "model.norm.weight", math.inf)
    refused("model.norm.weight", quantize_checkpoint, folder, tmp_path / "q", calibration=text, rotate=rotate)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("key", ["model.layers.1.mlp.down_proj.weight.scales", "model.norm.weight", "lm_head.weight.scales"])
def test_a_quantized_folder_is_looked_at(key, once, tmp_path, text):
    source = once("finite-source", talking_checkpoint)
    solved = shutil.copytree(
        once("finite-solved", lambda folder: quantize_checkpoint(source, folder, "host", calibration=text)), tmp_path / "q"
    )
    path = next(path for path in solved.glob("packed-*.safetensors") if key in load_file(path))
    tensors = load_file(path)
    tensors[key].view(-1)[0] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})
    refused(key.removesuffix(".scales"), export, solved, tmp_path / "out", "host", accept_quality=True)
    about = json.loads((solved / "packed.json").read_text())
    for key, value in (("perplexity", math.nan), ("kl", math.inf), ("layers_db", [30.0, math.nan])):
        (solved / "packed.json").write_text(json.dumps(about | {"quality": about["quality"] | {key: value}}))
        with pytest.raises(InputError, match=f"quality has {key} not finite"):
            export(solved, tmp_path / "out", "host", accept_quality=True)
    assert not (tmp_path / "out").exists()


def test_what_is_written_is_looked_at(tmp_path):
    config = tiny("tiny-gqa")
    tensors = random_tensors(config)
    tensors["model.norm.weight"][0] = math.nan
    refused("model.norm.weight", write_checkpoint, tmp_path / "out", config, tensors.items())
    tensors["model.norm.weight"][0] = 1e6
    with pytest.raises(InputError, match=r"model.norm.weight has values that torch.float16 cannot hold"):
        write_checkpoint(tmp_path / "out", config, tensors.items())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", ["blk.1.attn_norm.weight", "output.weight", "blk.0.attn_k.weight"])
def test_gguf_values_are_looked_at(name, value, tmp_path):
    config = tiny("tiny-gqa")
    path = write_llama(tmp_path / "m.gguf", config, random_tensors(config))
    tensor = next(tensor for tensor in gguf.GGUFReader(path, "r+").tensors if tensor.name == name)
    tensor.data.reshape(-1)[3] = value
    tensor.data.flush()
    refused(name, import_gguf, path, tmp_path / "out", torch.float32, no_tokenizer)
    assert [found.name for found in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("value", BAD)
def test_a_scale_of_a_quantized_block_is_looked_at(value, tmp_path):
    config = tiny("tiny-gqa")
    path = write_gguf(tmp_path / "m.gguf", config, random_tensors(config), kind=gguf.GGMLQuantizationType.Q8_0)
    tensor = next(tensor for tensor in gguf.GGUFReader(path, "r+").tensors if tensor.name == "blk.0.ffn_down.weight")
    tensor.data[5, :2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)  # of the row's first block
    tensor.data.flush()
    refused("blk.0.ffn_down.weight", import_gguf, path, tmp_path / "out", torch.float32, no_tokenizer)


@pytest.mark.parametrize("value", BAD)
def test_rope_factors_are_looked_at(value, tmp_path):
    config = tiny("tiny-longrope")
    factors = factor_tensors(config)
    factors["rope_factors_long.weight"][2] = value
    path = write_gguf(tmp_path / "m.gguf", config, {**random_tensors(config), **factors})
    refused("rope_factors_long.weight", open_gguf, path)
    hf = config.to_hf()
    hf["rope_scaling"]["short_factor"][1] = value
    with pytest.raises(InputError, match=r"rope_scaling.short_factor must hold numbers above 0 only"):
        read_config(json.loads(json.dumps(hf)))


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "partial_rotary_factor"])
def test_constants_are_looked_at(key):
    for value in BAD:
        with pytest.raises(InputError, match=f"{key} is "):
            read_config(tiny("tiny-gqa").to_hf() | {key: value})


def test_adapters_are_looked_at(tmp_path):
    from phi3mobile.training.config import Lora
    from phi3mobile.training.lora import add_lora, merge
    from phi3mobile.training.model import load_hf

    pytest.importorskip("peft")
    folder, lora = tiny_checkpoint(tmp_path / "c"), Lora(rank=2)
    adapters = {name: weight for name, weight in add_lora(load_hf(folder)[0], lora).state_dict().items() if "lora_" in name}
    name = next(iter(adapters))
    adapters[name].view(-1)[0] = math.nan
    refused(name, merge, load_hf(folder)[0], lora, adapters, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_the_embedders_weights_are_looked_at(tmp_path):
    from phi3mobile.export.embedder import load_minilm

    config = {"model_type": "bert", "hidden_act": "gelu", "vocab_size": 4, "hidden_size": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"embeddings.word_embeddings.weight": torch.tensor([[math.nan]])}, tmp_path / "model.safetensors")
    refused("embeddings.word_embeddings.weight", load_minilm, tmp_path)
