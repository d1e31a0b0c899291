"""Quantized checkpoints of the hub read as what they stand for, with their integers; what is not read is refused by name."""

import json

import pytest
import torch
from hub_formats import FORMATS, group_of, packed_folder
from safetensors.torch import load_file, save_file
from tiny import random_tensors, stored, tiny, write_folder

from phi3mobile.errors import InputError
from phi3mobile.models.checkpoint import open_checkpoint

ON_A_GRID = [name for name in FORMATS if name not in ("gptq, desc_act", "nf4", "nf4, nested", "fp4")]
QKV, DOWN = "model.layers.0.self_attn.qkv_proj.weight", "model.layers.1.mlp.down_proj.weight"


def write(folder, name="awq", layout="phi3", **changes):
    """(folder, float values by stored name)."""
    settings, make = FORMATS[name]
    config = tiny("tiny-gqa")
    tensors, values = packed_folder(stored(config, random_tensors(config), layout), make)
    hf = config.to_hf() | {"model_type": layout, "quantization_config": settings | changes}
    if layout != "phi3":
        for key in ("original_max_position_embeddings", "partial_rotary_factor"):
            hf.pop(key, None)
    return write_folder(folder, hf, tensors), values


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_reads_as_what_it_stands_for(name, tmp_path):
    folder, values = write(tmp_path / "c", name)
    checkpoint = open_checkpoint(folder)
    checkpoint.check()
    checkpoint.check_values()
    for tensor, expected in values.items():
        assert torch.allclose(checkpoint.tensor(tensor), expected, rtol=2e-6, atol=1e-7), tensor
        assert checkpoint.shape(tensor) == tuple(expected.shape)
    grid = checkpoint.grid(DOWN)
    assert (grid is not None) == (name in ON_A_GRID) and checkpoint.grid("model.embed_tokens.weight") is None
    if grid is not None:
        assert torch.allclose(grid.values(), values[DOWN], rtol=2e-6, atol=1e-6)
    assert 4 < checkpoint.bits_of(DOWN) < 12 and checkpoint.stored_as(DOWN) == FORMATS[name][0]["quant_method"]


@pytest.mark.parametrize(("name", "file"), [("gptq", "quantize_config.json"), ("awq", "quant_config.json")])
def test_settings_in_a_file_of_their_own_are_read(name, file, tmp_path):
    """As AutoGPTQ and AutoAWQ wrote them before transformers knew of packed weights."""
    folder, values = write(tmp_path / "c", name)
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization_config")
    del settings["quant_method"]
    if name == "awq":
        settings |= {"w_bit": settings.pop("bits"), "version": "GEMM"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="do not fit its config"):
        open_checkpoint(folder).check()  # and nothing says how it is packed
    (folder / file).write_text(json.dumps(settings))
    checkpoint = open_checkpoint(folder)
    checkpoint.check()
    assert torch.allclose(checkpoint.tensor(DOWN), values[DOWN], rtol=2e-6, atol=1e-7)
    assert checkpoint.stored_as(DOWN) == name
    (folder / file).write_text(json.dumps(settings | {"w_bit": 3, "bits": 3}))
    with pytest.raises(InputError, match="bits 3"):
        open_checkpoint(folder)


def test_gptqmodels_later_name_of_its_form_is_read(tmp_path):
    """A zero is stored less one, or in gptq_v2 as it is: read wrong, every weight would be one step off."""
    folder, values = write(tmp_path / "c", "gptq", checkpoint_format=None, format="gptq_v2")
    scales = load_file(folder / "model.safetensors")[DOWN.replace("weight", "scales")].float().t()
    off = (open_checkpoint(folder).tensor(DOWN) - values[DOWN]).unflatten(1, (scales.shape[1], -1))
    assert torch.allclose(off, scales[..., None].expand_as(off), rtol=1e-4, atol=1e-5)


def test_parts_of_a_llama_layout_are_fused(tmp_path):
    folder, values = write(tmp_path / "c", "awq", "llama")
    checkpoint = open_checkpoint(folder)
    checkpoint.check()
    parts = [values[QKV.replace("qkv_proj", f"{part}_proj")] for part in "qkv"]
    assert torch.allclose(checkpoint.tensor(QKV), torch.cat(parts), rtol=2e-6, atol=1e-7)
    assert torch.allclose(checkpoint.grid(QKV).values(), torch.cat(parts), rtol=2e-6, atol=1e-6)


def test_biases_of_zeros_beside_packed_weights_are_no_part_of_the_model(tmp_path):
    folder, _ = write(tmp_path / "c", "gptq")
    path = folder / "model.safetensors"
    bias = DOWN.replace("weight", "bias")
    save_file(load_file(path) | {bias: torch.zeros(64)}, path)
    open_checkpoint(folder).check()
    save_file(load_file(path) | {bias: torch.ones(64)}, path)
    with pytest.raises(InputError, match=r"down_proj\.bias is not part of the model"):
        open_checkpoint(folder).check()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("awq", {"quant_method": "aqlm"}, "of method 'aqlm'; read are awq, gptq, compressed-tensors, bitsandbytes"),
        ("awq", {"quant_method": "fp8"}, "of method 'fp8'"),
        ("awq", {"version": "gemv"}, r"\(awq\) has version 'gemv'; read is 'gemm'"),
        ("awq", {"bits": 3}, "bits 3; read is 4"),
        ("gptq", {"bits": 3}, "bits 3; read is 2, 4 or 8"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ("gptq", {"dynamic": {"a": {}}}, "dynamic"),
        ("compressed-tensors", {"format": "float-quantized"}, "format 'float-quantized'"),
        ("compressed-tensors", {"config_groups": {}}, "config_groups"),
        ("compressed-tensors", {"config_groups": group_of(type="float")}, "4 bits, float"),
        ("compressed-tensors", {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ("compressed-tensors", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ("nf4", {"bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type 'int4'"),
    ],
)
def test_what_is_not_read_is_named(name, changes, message, tmp_path):
    folder, _ = write(tmp_path / "c", name, **changes)
    with pytest.raises(InputError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize("settings", [3, [], "awq", {}])
def test_settings_that_are_none_are_named(settings, tmp_path):
    folder, _ = write(tmp_path / "c")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="quantization_config is"):
        open_checkpoint(folder)


@pytest.mark.parametrize(("name", "end"), [("awq", "qzeros"), ("gptq", "scales"), ("nf4", "weight.absmax")])
def test_a_missing_part_is_named(name, end, tmp_path):
    folder, _ = write(tmp_path / "c", name)
    path, module = folder / "model.safetensors", DOWN.removesuffix(".weight")
    tensors = load_file(path)
    del tensors[f"{module}.{end}"]
    save_file(tensors, path)
    with pytest.raises(InputError, match=f"tensor {module}.{end} is missing"):
        open_checkpoint(folder).check()


@pytest.mark.parametrize(("name", "end"), [("awq", "qzeros"), ("gptq", "scales"), ("compressed-tensors", "weight_scale")])
def test_a_part_of_another_shape_is_named(name, end, tmp_path):
    folder, _ = write(tmp_path / "c", name)
    path, module = folder / "model.safetensors", DOWN.removesuffix(".weight")
    tensors = load_file(path)
    tensors[f"{module}.{end}"] = tensors[f"{module}.{end}"][:-1].contiguous()
    save_file(tensors, path)
    with pytest.raises(InputError, match=f"{module} can't be unpacked|weights do not fit"):
        open_checkpoint(folder).check()
        open_checkpoint(folder).tensor(DOWN)


def test_a_damaged_state_is_named(tmp_path):
    folder, _ = write(tmp_path / "c", "nf4")
    path, module = folder / "model.safetensors", DOWN.removesuffix(".weight")
    save_file(load_file(path) | {f"{module}.weight.quant_state.bitsandbytes__nf4": torch.zeros(4, dtype=torch.uint8)}, path)
    with pytest.raises(InputError, match="is not JSON"):
        open_checkpoint(folder).check()
