"""Ablations: the arm whose data is like the held-out set wins, at equal tokens; a finished run is not trained again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from phi3mobile.cli import main
from phi3mobile.errors import InputError

pytest.importorskip("transformers", reason="needs the extra `train`")
pytest.importorskip("matplotlib", reason="needs the extra `train`")

from phi3mobile.training.data.ablate import Ablate, Arm, ablate
from phi3mobile.training.data.mixture import Mixture, Phase, Source
from phi3mobile.training.data.shards import ShardWriter, Vocabulary, write_index


def write_shards(folder: Path, low: int, seed: int, documents: int = 60) -> Path:
    """Documents over ten of the 64 ids, from `low` on."""
    rng = np.random.default_rng(seed)
    writer = ShardWriter(folder, Vocabulary(64, 0, ""))
    for i in range(documents):
        writer.add(rng.integers(low, low + 10, 50), key=seed * 1000 + i)
    writer.close()
    write_index(folder)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Ablate:
    base = tmp_path_factory.mktemp("ablate")
    near, far = write_shards(base / "near", 1, 1), write_shards(base / "far", 30, 2)
    held = write_shards(base / "held", 1, 3, 10)
    (base / "base.toml").write_text("""
out = "ours"
[model.shape]
vocab_size = 64
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 64
rope_theta = 10000.0
eos_token_id = 0
bos_token_id = 0
pad_token_id = 0
original_max_position_embeddings = 64
[[data.phases]]
sources = [{ path = "none" }]
[optimizer]
lr = 1e-2
[schedule]
steps = 12
[batch]
rows = 4
length = 32
[run]
save_dtype = "float32"
""")
    arms = tuple(Arm(path.name, Mixture((Phase((Source(path),)),))) for path in (near, far))
    return Ablate(base / "out", base / "base.toml", arms, {"held": str(held)}, seeds=(0, 1))


def test_the_right_data_wins(config):
    result = ablate(config)
    near, far = (result["losses"][arm]["held"] for arm in ("near", "far"))
    assert len(near) == len(far) == 2 and max(near) < min(far) - 0.2 and result["best"] == {"held": "near"}
    assert near[0] != near[1] and result["tokens"] == 12 * 4 * 32
    kept = json.loads((config.out / "ablation.json").read_text())
    assert kept["losses"] == result["losses"]
    picture = (config.out / "ablation.svg").read_text()
    assert picture.startswith("<?xml") and "near" in picture


def test_a_finished_arm_is_not_trained_again(config, monkeypatch):
    first = ablate(config)
    monkeypatch.setattr("phi3mobile.training.pretrain.pretrain", lambda chosen: pytest.fail("trained again"))
    assert ablate(config) == first


def test_bad_input(config, tmp_path, capsys):
    with pytest.raises(InputError, match="two or more"):
        replace(config, arms=config.arms[:1])
    with pytest.raises(InputError, match="two or more"):
        replace(config, arms=(config.arms[0], config.arms[0]))
    with pytest.raises(InputError, match="held_out and seeds"):
        replace(config, held_out={})
    with pytest.raises(InputError, match="finished shard folder"):
        ablate(replace(config, out=tmp_path / "o", held_out={"x": str(tmp_path)}))
    (tmp_path / "a.toml").write_text('out = "x"\nbase = "y"\n')
    assert main(["data", "ablate", str(tmp_path / "a.toml")]) == 2
    assert "arms, held_out missing" in capsys.readouterr().err
