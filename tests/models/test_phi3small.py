"""phi-3-small in torch against its formulas in numpy, its config.json, and its checkpoint layout."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference_phi3small as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_model, random_tensors, random_tokens, tiny, write_folder

import phi3mobile
from phi3mobile.errors import InputError
from phi3mobile.export.checkpoint import import_checkpoint
from phi3mobile.models.attend import attend
from phi3mobile.models.blocksparse import Pattern
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.config import RopeScaling
from phi3mobile.models.decoder import MASKED
from phi3mobile.models.families.phi3small import Phi3SmallConfig
from phi3mobile.models.modules import gegelu
from phi3mobile.models.presets import PRESETS, SHAPES, preset
from phi3mobile.models.registry import read_config

LIMIT = 1e-5  # logits of the tiny models are about 0.1: they are divided by 8
SHARED = Path(__file__).parents[3] / "shared" / "data"
SMALL_8K = {  # the released config.json
    "architectures": ["Phi3SmallForCausalLM"],
    "attention_dropout_prob": 0.0,
    "blocksparse_block_size": 64,
    "blocksparse_homo_head_pattern": False,
    "blocksparse_num_local_blocks": 16,
    "blocksparse_triton_kernel_block_size": 64,
    "blocksparse_vert_stride": 8,
    "bos_token_id": 100257,
    "dense_attention_every_n_layers": 2,
    "embedding_dropout_prob": 0.1,
    "eos_token_id": 100257,
    "ff_dim_multiplier": None,
    "ff_intermediate_size": 14336,
    "ffn_dropout_prob": 0.1,
    "gegelu_limit": 20.0,
    "gegelu_pad_to_256": True,
    "hidden_act": "gegelu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "max_position_embeddings": 8192,
    "model_type": "phi3small",
    "mup_attn_multiplier": 1.0,
    "mup_embedding_multiplier": 10.0,
    "mup_use_scaling": True,
    "mup_width_multiplier": 8.0,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pad_sequence_to_multiple_of_64": True,
    "reorder_and_upcast_attn": False,
    "rope_embedding_base": 1000000,
    "rope_position_scale": 1.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.1",
    "use_cache": True,
    "attention_bias": False,
    "vocab_size": 100352,
}


def compare(config: Phi3SmallConfig, ours: torch.Tensor, tokens: torch.Tensor, long: bool = False) -> None:
    """`ours` against the reference's logits of the whole sequence; masked ids against the least float32."""
    expected = reference.logits(config.to_hf(), random_tensors(config), tokens[0].tolist(), long)
    said = [token for token in range(config.vocab_size) if token not in config.dummy_token_indices]
    assert expected[:, said].std() > 0.02  # a dead model would agree with anything
    assert np.abs(ours[0].numpy() - expected)[:, said].max() <= LIMIT
    assert (ours[0, :, list(config.dummy_token_indices)] == MASKED).all()


@pytest.mark.parametrize("length", [1, 7, 8, 9, 24, 25, 63, 101])
def test_logits_equal_the_reference(length):
    config = tiny("small-tiny")
    tokens = random_tokens(config, length)
    compare(config, random_model(config)(tokens), tokens)


@pytest.mark.parametrize("length", [31, 32, 33, 80])
def test_longrope_below_at_and_past_the_switch(length):
    config = tiny("small-tiny-longrope")
    tokens = random_tokens(config, length)
    compare(config, random_model(config)(tokens), tokens)


def test_released_block_sizes_past_the_local_blocks():
    config = tiny("small-tiny", num_hidden_layers=2, blocksparse_block_size=64, blocksparse_num_local_blocks=1)
    tokens = random_tokens(config, 203)  # neither length nor split is a multiple of 64
    model = random_model(config)
    compare(config, torch.cat([model(tokens[:, :90]), model(tokens[:, 90:], 90)], 1), tokens)


CONFIGS = st.builds(
    dict,
    blocksparse_block_size=st.integers(1, 9),
    blocksparse_num_local_blocks=st.integers(1, 4),
    blocksparse_vert_stride=st.sampled_from([1, 2, 3, 4, 5, 8, 16, 19]),
    blocksparse_homo_head_pattern=st.booleans(),
    dense_attention_every_n_layers=st.integers(0, 3),
    num_key_value_heads=st.sampled_from([1, 2, 4, 8]),
    tie_word_embeddings=st.booleans(),
    mup_use_scaling=st.booleans(),
    mup_attn_multiplier=st.sampled_from([1.0, 2.5]),
)


@settings(max_examples=40, deadline=None)
@given(CONFIGS, st.integers(2, 60), st.data())
def test_any_pattern_any_length_any_split(changes, length, data):
    config = tiny("small-tiny", num_hidden_layers=3, **changes)
    tokens, model = random_tokens(config, length), random_model(config, 64)
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=4)))
    chunks = [model(tokens[:, start:end], start) for start, end in zip([0, *cuts], [*cuts, length], strict=True)]
    compare(config, torch.cat(chunks, 1), tokens)


def test_chunks_of_a_long_sequence_and_going_back():
    config = tiny("small-tiny-longrope")
    tokens, other = random_tokens(config, 61), random_tokens(config, 30, seed=5)
    model = random_model(config)
    parts = [model(tokens[:, :17], 0, long=True), model(tokens[:, 17:], 17, long=True)]
    compare(config, torch.cat(parts, 1), tokens)
    model(other, 20, long=True)
    compare(config, torch.cat([parts[0], parts[1][:, :3], model(tokens[:, 20:], 20)], 1), tokens)


def test_attention_sees_exactly_the_blocks_of_each_head():
    length, pattern = 40, Pattern(4, 2, 4, 2, 3, 1)
    v = torch.eye(length)[None, :, None, :].expand(1, length, 2, length)  # a query's result: its attention weights
    zeros = torch.zeros(1, length, 4, length)
    seen = attend(zeros, zeros[:, :, :2], v, 0, 1.0, pattern=pattern).view(length, 4, length) > 0
    for head, q, k in np.ndindex(4, length, length):
        expected = k <= q and pattern.sees(head, q // 4, k // 4)
        assert seen[q, head, k] == expected


def test_gegelu_clamps_and_lets_infinities_pass():
    gate, linear = torch.tensor([25.0, -25.0, 1.0, torch.inf, -3.0]), torch.tensor([25.0, -25.0, 1.0, 2.0, torch.inf])
    sigmoid = lambda x: 1 / (1 + np.exp(-1.702 * x))  # noqa: E731
    expected = [20 * 21, -25 * sigmoid(-25) * -19, sigmoid(1) * 2, np.inf, -np.inf]
    assert gegelu(gate, linear, 20.0).numpy() == pytest.approx(np.array(expected), rel=1e-6)


# config.json


def test_the_released_config_is_the_preset():
    config = read_config(SMALL_8K)
    assert config == PRESETS["phi-3-small-8k"]
    assert config.parameters() == 7_392_272_384 and config.attention_scale == 1 / 128
    assert [config.blocksparse(layer) is None for layer in range(4)] == [False, True, False, True]
    assert config.blocksparse(30) == Pattern(32, 8, 64, 16, 8, 1)
    masked = {100256, 100258, 100259, 100260, 100264, 100265, *range(100267, 100352)}
    assert set(config.dummy_token_indices) == masked and 100276 in masked


def test_a_128k_config_has_its_factors_and_mscales():
    scaling = {
        "type": "su",
        "short_factor": [1.0] * 64,
        "long_factor": [2.0] * 64,
        "short_mscale": 1.1,
        "long_mscale": 1.2,
        "original_max_position_embeddings": 8192,
    }
    config = read_config(SMALL_8K | {"max_position_embeddings": 131072, "rope_scaling": scaling})
    assert config == preset("phi-3-small-128k", RopeScaling((1.0,) * 64, (2.0,) * 64, 1.1, 1.2))
    assert config.mscales == (1.1, 1.2) and config.original_context == 8192
    derived = replace(config, rope_scaling=RopeScaling((1.0,) * 64, (2.0,) * 64))
    assert derived.mscales == pytest.approx((1.1435437497937313,) * 2)
    assert SHAPES["phi-3-small-128k"].parameters() == 7_392_272_384


@pytest.mark.parametrize("name", ["phi-3-small-8k", "small-tiny", "small-tiny-longrope"])
def test_a_written_config_reads_back(name):
    assert read_config(json.loads(json.dumps(PRESETS[name].to_hf()))) == PRESETS[name]


def test_ff_dim_multiplier_is_padded_to_256():
    hf = SMALL_8K | {"ff_intermediate_size": None, "ff_dim_multiplier": 4}
    assert read_config(hf).intermediate_size == 11008  # 4 * (4096 // 3) * 2 = 10920
    assert read_config(hf | {"gegelu_pad_to_256": False}).intermediate_size == 10920


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparse_mode": 3}, "unknown key 'sparse_mode'"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'; this graph allows 'gegelu' only"),
        ({"rope_position_scale": 2.0}, "rope_position_scale is 2.0"),
        ({"sliding_window": 2047}, "sliding_window is 2047"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type linear in rope_scaling; phi3small knows"),
        (
            {
                "rope_scaling": {
                    "type": "su",
                    "short_factor": [1.0] * 48,
                    "long_factor": [1.0] * 48,
                    "original_max_position_embeddings": 8192,
                }
            },
            "short_factor has 48 values",
        ),
        ({"num_attention_heads": 31}, "num_attention_heads 31 does not divide hidden_size 4096"),
        ({"num_key_value_heads": 5}, "num_key_value_heads 5 does not divide"),
        ({"ff_dim_multiplier": 4}, r"give ff_intermediate_size \(14336\) or ff_dim_multiplier \(4\), not both"),
        ({"ff_intermediate_size": None}, "give ff_intermediate_size"),
        ({"ff_intermediate_size": None, "ff_dim_multiplier": 0.5}, "ff_dim_multiplier is 0.5"),
        ({"blocksparse_block_size": 0}, "blocksparse_block_size is 0"),
        ({"blocksparse_vert_stride": 2.0}, "blocksparse_vert_stride is 2.0"),
        ({"blocksparse_homo_head_pattern": 1}, "blocksparse_homo_head_pattern is 1"),
        ({"dense_attention_every_n_layers": -1}, "dense_attention_every_n_layers is -1"),
        ({"mup_width_multiplier": 0.0}, "mup_width_multiplier is 0.0; it must be a number above 0"),
        ({"gegelu_limit": "20"}, "gegelu_limit is '20'"),
        ({"layer_norm_epsilon": 0}, "rms_norm_eps is 0"),
        ({"dummy_token_indices": [100352]}, "dummy_token_indices has 100352"),
        ({"dummy_token_indices": 7}, "dummy_token_indices is 7; it must be a list"),
        ({"vocab_size": 2, "bos_token_id": 0, "eos_token_id": 1, "dummy_token_indices": [0, 1]}, "names every id"),
        ({"eos_token_id": 100352}, "eos_token_ids has 100352"),
    ],
)
def test_what_means_another_model_is_refused(changes, message):
    with pytest.raises(InputError, match=message) as error:
        read_config(SMALL_8K | changes)
    assert "\n" not in str(error.value)


# checkpoint


def test_the_released_layout_loads(tmp_path, capsys):
    config = tiny("small-tiny")
    tensors = random_tensors(config)
    layer = {
        "input_layernorm.weight": (128,),
        "input_layernorm.bias": (128,),
        "self_attn.query_key_value.weight": (256, 128),
        "self_attn.query_key_value.bias": (256,),
        "self_attn.dense.weight": (128, 128),
        "self_attn.dense.bias": (128,),
        "post_attention_layernorm.weight": (128,),
        "post_attention_layernorm.bias": (128,),
        "mlp.up_proj.weight": (192, 128),
        "mlp.up_proj.bias": (192,),
        "mlp.down_proj.weight": (128, 96),
        "mlp.down_proj.bias": (128,),
    }
    names = {f"model.layers.{i}.{name}": shape for i in range(4) for name, shape in layer.items()}
    names |= {"model.embed_tokens.weight": (256, 128), "model.final_layernorm.weight": (128,)}
    names |= {"model.final_layernorm.bias": (128,)}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == names
    assert sum(tensor.numel() for tensor in tensors.values()) == config.parameters()
    folder = write_folder(tmp_path / "small", config.to_hf(), tensors)
    tokens = random_tokens(config, 40)
    compare(config, phi3mobile.load_model(folder)(tokens), tokens)

    from phi3mobile.cli import main
    from phi3mobile.export.cards import checkpoint_card

    assert main(["inspect", str(folder)]) == 0 and "381,952" in capsys.readouterr().out
    expected = "sparse in 2 of 4 layers: blocks of 8, 3 local, one in 4 of the others"
    assert checkpoint_card(open_checkpoint(folder))["attention"] == expected


def test_an_imported_folder_is_the_same_model(tmp_path):
    config = tiny("small-tiny-longrope", tie_word_embeddings=False)
    source = write_folder(tmp_path / "in", config.to_hf(), random_tensors(config))
    folder = import_checkpoint(source, tmp_path / "out", "float32")
    tokens = random_tokens(config, 40)
    assert open_checkpoint(folder).config == config
    assert torch.equal(phi3mobile.load_model(folder)(tokens), phi3mobile.load_model(source)(tokens))


def test_wrong_tensors_are_named(tmp_path):
    config = tiny("small-tiny")
    tensors = random_tensors(config)
    del tensors["model.layers.2.mlp.up_proj.bias"]
    tensors["model.layers.0.self_attn.o_proj.weight"] = torch.zeros(1)
    checkpoint = open_checkpoint(write_folder(tmp_path / "small", config.to_hf(), tensors))
    with pytest.raises(InputError, match=r"layers.2.mlp.up_proj.bias is missing; .*o_proj.weight is not part"):
        checkpoint.check()
