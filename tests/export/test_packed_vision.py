"""A vision tower as packed integers: forms, what rounding costs, folders of solved weights, turned hidden states."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import random_tokens

from phi3mobile.engines.eager import EagerEngine
from phi3mobile.errors import InputError
from phi3mobile.export.packed_vision import PackedVision, load_packed_vision, vision_decibels
from phi3mobile.export.solve.build import quantize_checkpoint
from phi3mobile.export.solve.folder import Solved
from phi3mobile.export.solve.rotate import Rotated, turn
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.clip import merged
from phi3mobile.models.decoder import Decoder
from phi3mobile.models.form import Form
from phi3mobile.models.loading import load_vision
from phi3mobile.models.presets import PRESETS
from phi3mobile.models.quantized import Packed, QuantizedLinear
from phi3mobile.models.vision_config import PREFIX, TOWER, VisionConfig


@pytest.fixture(scope="module")
def checkpoint(checkpoint_of):
    return open_checkpoint(checkpoint_of("vision-tiny"))


@pytest.fixture(scope="module")
def views():
    return torch.randn(2, 3, 336, 336, generator=torch.Generator().manual_seed(5))


def test_matrices_are_packed_and_all_else_is_float(checkpoint):
    packed = PackedVision(checkpoint)
    config = packed.config
    assert packed.names() == list(config.tensors())
    fc2, total = f"{TOWER}encoder.layers.1.mlp.fc2.weight", 0
    for name in packed.names():
        value = packed.tensor(name)
        assert isinstance(value, Packed) == (name in config.matrices()) == (packed.form_of(name) is not None)
        total += value.nbytes
        if isinstance(value, Packed):
            assert value.shape == config.tensors()[name]
            assert torch.equal(value.bias, checkpoint.tensor(name.replace("weight", "bias")))
        else:
            assert value.dtype == torch.float32 and tuple(value.shape) == config.tensors()[name]
    assert total == packed.nbytes()
    assert packed.form_of(fc2) == Form(8, 64)
    assert PackedVision(checkpoint, 4).matrix(fc2).form == Form(4, 32)
    fused = packed.attention_matrix(0)
    assert fused.shape == (96, 32) and len(fused.bias) == 96
    assert torch.equal(fused.rows(slice(32, 64)).codes, packed.matrix(f"{TOWER}encoder.layers.0.self_attn.k_proj.weight").codes)
    assert [len(separator) for separator in packed.separators()] == [128, 128]


@pytest.mark.parametrize(("bits", "least", "most"), [(8, 30, 60), (4, 10, 25)])
def test_what_rounding_costs_is_measured_layer_by_layer(checkpoint, views, bits, least, most):
    packed = PackedVision(checkpoint, bits)
    card = vision_decibels(checkpoint, packed, views)
    assert card["bits"] == bits and len(card["layers_db"]) == packed.config.layers
    assert least < card["features_db"] < most and least < card["rows_db"] < most
    exact, rounded = load_vision(checkpoint.folder), load_packed_vision(packed)
    kinds = [module for module in rounded.modules() if isinstance(module, QuantizedLinear)]
    assert len(kinds) == len(packed.config.matrices()) and not any(type(m) is torch.nn.Linear for m in rounded.modules())
    want, got = exact.encode(views), rounded.encode(views)
    assert card["features_db"] == pytest.approx(decibels(want, got), abs=0.2)
    assert card["rows_db"] == pytest.approx(decibels(exact.project(merged(want)), rounded.project(merged(got))), abs=0.2)


def decibels(exact: torch.Tensor, values: torch.Tensor) -> float:
    return float(10 * torch.log10(exact.square().sum() / (values - exact).square().sum()))


def test_what_cant_be_packed_is_refused(checkpoint_of, checkpoint):
    with pytest.raises(InputError, match="model_type phi3 takes no pictures: it has no vision tower to pack"):
        PackedVision(open_checkpoint(checkpoint_of("tiny-gqa")))
    with pytest.raises(InputError, match="a vision tower of 5 bits: 4 or 8 are known"):
        PackedVision(checkpoint, 5)
    odd = SimpleNamespace(config=SimpleNamespace(vision=VisionConfig(64, hidden_size=48, num_attention_heads=2)))
    with pytest.raises(InputError, match="a vision tower of 4 bits takes 32 columns a scale: 48 columns don't divide so"):
        PackedVision(odd, 4)


@pytest.mark.parametrize("rotate", [False, True])
def test_a_folder_of_solved_weights_has_the_tower(checkpoint, text, tmp_path, views, rotate):
    folder = quantize_checkpoint(checkpoint.folder, tmp_path / "solved", calibration=text, rotate=rotate)
    solved = Solved(folder)
    solved.check()
    solved.check_values()
    assert solved.config.vision == checkpoint.config.vision and (folder / "preprocessor_config.json").is_file()
    ours, theirs = PackedVision(solved), PackedVision(Rotated(checkpoint) if rotate else checkpoint)
    for name in theirs.names():
        one, other = ours.tensor(name), theirs.tensor(name)
        if isinstance(one, Packed):
            assert one.form == other.form and torch.equal(one.codes, other.codes) and torch.equal(one.bias, other.bias)
        else:
            assert torch.equal(one, other)
    assert ours.nbytes() == theirs.nbytes()
    (folder / "packed-vision.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model\.vision_embed_tokens\..*quantize again"):
        Solved(folder)


def test_rows_turn_with_the_hidden_states(checkpoint):
    """A turned model takes turned rows: the projector's last linear writes them."""
    rotated, exact = Rotated(checkpoint), load_vision(checkpoint.folder)
    last = f"{PREFIX}img_projection.2.weight"
    assert torch.equal(rotated.tensor(last), turn(checkpoint.tensor(last), 0))
    first = f"{PREFIX}img_projection.0.weight"
    assert torch.equal(rotated.tensor(first), checkpoint.tensor(first))
    rows = exact.project(torch.randn(40, 128, generator=torch.Generator().manual_seed(1)))
    plain = Decoder(checkpoint.config, 64).eval()
    plain.load_state_dict({name: checkpoint.tensor(name) for name in checkpoint.names()})
    turned = Decoder(rotated.config, 64).eval()
    turned.load_state_dict({name: rotated.tensor(name) for name in rotated.names()})
    tokens = random_tokens(PRESETS["vision-tiny"], 5)[0].numpy()
    want, got = EagerEngine(plain), EagerEngine(turned)
    want.forward_embeddings(rows.numpy(), 0)
    got.forward_embeddings(turn(rows).numpy(), 0)
    assert np.abs(got.forward(tokens, 40) - want.forward(tokens, 40)).max() < 1e-3
