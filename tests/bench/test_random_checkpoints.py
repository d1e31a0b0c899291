"""Checkpoints whose weights are drawn when they are asked for."""

import pytest
import torch
from tiny import PRESETS

from phi3mobile.bench.mixture import RandomCheckpoint
from phi3mobile.bench.shape import from_pool
from phi3mobile.bench.vision import SeeingCheckpoint
from phi3mobile.bench.vision_transformers import first_token
from phi3mobile.errors import InputError
from phi3mobile.models.vision_config import TOWER


def test_a_tower_is_drawn_as_a_decoder_is(tmp_path):
    config = PRESETS["vision-tiny"]
    seeing, blind = SeeingCheckpoint(config, tmp_path), RandomCheckpoint(config, tmp_path)
    for name in blind.names():
        assert torch.equal(seeing.tensor(name), blind.tensor(name)) and seeing.tensor(name).shape == seeing.shape(name)
    tower = {name: seeing.tensor(name) for name in config.vision_tensors()}
    assert {name: tuple(value.shape) for name, value in tower.items()} == config.vision_tensors()
    large = [RandomCheckpoint(config, tmp_path).drawn(name, (5000, 4000)) for name in blind.names()[1:3]]
    assert not torch.equal(large[0][:10], large[1][:10])  # also where a tensor is larger than all that was drawn
    patches = tower[f"{TOWER}embeddings.patch_embedding.weight"]
    assert torch.equal(patches, seeing.tensor(f"{TOWER}embeddings.patch_embedding.weight"))
    assert patches.std().item() == pytest.approx((3 * 14 * 14) ** -0.5, rel=0.05)
    assert tower[f"{TOWER}pre_layrnorm.weight"].eq(1).all() and tower[f"{TOWER}pre_layrnorm.bias"].eq(0).all()
    with pytest.raises(InputError, match="sees no pictures: take phi-3-vision"):
        SeeingCheckpoint(PRESETS["tiny-gqa"], tmp_path)


def test_a_shape_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"unknown shape 'phi-9'; known are .*phi-3.5-vision"):
        first_token("phi-9", views=1, tokens=1, threads=1)
    with pytest.raises(InputError, match=r"phi-3-mini-4k sees no pictures: take phi-3-vision"):
        first_token("phi-3-mini-4k", views=1, tokens=1, threads=1)


def test_values_come_from_the_pool_round_and_round():
    pool = torch.arange(7.0)
    for start in range(7):
        for count in (1, 6, 7, 8, 20, 21, 22):
            assert from_pool(pool, start, count).tolist() == [(start + number) % 7 for number in range(count)]
