"""Phi3Config: released numbers, both config.json layouts, and every contradiction named."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY, tiny

from phi3mobile.errors import InputError
from phi3mobile.models.config import RopeScaling
from phi3mobile.models.presets import PRESETS, SHAPES, preset
from phi3mobile.models.registry import read_config

MINI_4K = {
    "_name_or_path": "Phi-3-mini-4k-instruct",
    "architectures": ["Decoder"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.2",
    "use_cache": True,
    "attention_bias": False,
    "vocab_size": 32064,
}


def hf(**changes):
    """tiny-gqa's config.json with some keys changed; ... removes a key."""
    values = {**tiny("tiny-gqa").to_hf(), **changes}
    return {key: value for key, value in values.items() if value is not ...}


def longrope(**changes):
    scaling = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, **changes}
    return hf(rope_scaling=scaling, original_max_position_embeddings=32)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("phi-3-mini-4k", 3_821_079_552),
        ("phi-3-medium-4k", 13_960_238_080),
        ("phi-4-mini", 3_836_021_760),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_parameter_counts(name, count):
    assert {**PRESETS, **SHAPES}[name].parameters() == count


def test_kv_bytes():
    assert PRESETS["phi-3-mini-4k"].kv_bytes_per_token(2) == 393_216


def test_released_config_is_the_preset():
    assert read_config(MINI_4K) == PRESETS["phi-3-mini-4k"]


def test_mscales():
    factors = (1.0,) * 48
    mini = replace(SHAPES["phi-3-mini-128k"], rope_scaling=RopeScaling(factors, factors))
    assert mini.mscales == (1.1902380714238083, 1.1902380714238083)
    assert replace(mini, original_max_position_embeddings=8192).mscales[0] == pytest.approx(1.1435437497937313)
    moe = replace(mini, rope_scaling=RopeScaling(factors, factors, 1.243163121016122, 1.5))
    assert moe.mscales == (1.243163121016122, 1.5)
    assert PRESETS["phi-3-mini-4k"].mscales == (1.0, 1.0)


def test_original_context_is_where_length_matters():
    long = tiny("tiny-longrope")
    same = RopeScaling(long.rope_scaling.long_factor, long.rope_scaling.long_factor)
    assert long.original_context == 32
    assert tiny("tiny-mha").original_context is None
    assert replace(long, rope_scaling=same).original_context is None
    assert replace(long, rope_scaling=replace(same, long_mscale=1.5)).original_context == 32
    assert replace(long, max_position_embeddings=32).original_context is None


@pytest.mark.parametrize("name", TINY)
def test_round_trip_through_json_and_transformers(name, tmp_path):
    import transformers

    config = PRESETS[name]
    assert read_config(json.loads(json.dumps(config.to_hf()))) == config
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.sliding_window == config.sliding_window and theirs.eos_token_id == 2
    theirs.save_pretrained(tmp_path / "saved")  # transformers 5: rope_parameters
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "rope_parameters" in saved
    assert read_config(saved) == config


def test_transformers_5_llama_and_mistral_defaults():
    import transformers

    llama = read_config(transformers.LlamaConfig().to_dict())
    assert (llama.head_dim, llama.sliding_window, llama.source_model_type) == (128, None, "llama")
    mistral = read_config(transformers.MistralConfig().to_dict())
    assert (mistral.num_key_value_heads, mistral.sliding_window, mistral.max_position_embeddings) == (8, 4096, 131072)
    shapes = {
        key: MINI_4K[key]
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    }
    sparse = read_config({"model_type": "mistral", **shapes})
    assert sparse.num_key_value_heads == 8 and sparse.sliding_window == 4096 and sparse.rms_norm_eps == 1e-6


def test_llama_ignores_a_window_and_keeps_an_odd_head_dim():
    config = read_config(hf(model_type="llama", sliding_window=4, head_dim=24))
    assert config.sliding_window is None and config.to_hf()["head_dim"] == 24
    assert read_config(config.to_hf()).head_dim == 24


def test_longrope_factor_and_attention_factor():
    assert read_config(longrope(attention_factor=1.3)).mscales == (1.3, 1.3)
    assert read_config(longrope(short_mscale=1.1, long_mscale=1.2)).mscales == (1.1, 1.2)
    assert read_config(longrope(factor=1.0)).mscales == (1.0, 1.0)
    assert read_config(longrope(type="su")) == read_config(longrope())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (hf(model_type="gpt2"), "model_type is 'gpt2'; known are phi3, llama, mistral"),
        (hf(model_type=...), "model_type is None"),
        (hf(hidden_act="gelu"), "hidden_act is 'gelu'.*'silu' only"),
        (hf(attention_bias=True), "attention_bias is True"),
        (hf(mlp_bias=True), "mlp_bias is True"),
        (hf(quantization_config={"bits": 4}), "quantization_config is .*None only"),
        (hf(my_new_gate=3), "unknown key 'my_new_gate'"),
        (hf(hidden_size=...), "hidden_size missing"),
        (hf(num_attention_heads=5), "num_attention_heads 5 does not divide hidden_size 64"),
        (hf(num_attention_heads=0), "num_attention_heads 0 does not divide"),
        (hf(num_key_value_heads=3), "num_key_value_heads 3 does not divide num_attention_heads 4"),
        (hf(intermediate_size=-1), "intermediate_size is -1"),
        (hf(vocab_size="many"), "vocab_size is 'many'"),
        (hf(num_hidden_layers=True), "num_hidden_layers is True"),
        (hf(max_position_embeddings=None), "original_max_position_embeddings|max_position_embeddings is None"),
        (hf(sliding_window=0), "sliding_window is 0"),
        (hf(rms_norm_eps=0), "rms_norm_eps is 0"),
        (hf(rope_theta=float("inf")), "rope_theta is inf"),
        (hf(eos_token_id=256), "eos_token_ids has 256; token ids run from 0 to 255"),
        (hf(eos_token_id=[2, "x"]), "eos_token_ids has 'x'"),
        (hf(tie_word_embeddings="yes"), "tie_word_embeddings is 'yes'"),
        (hf(partial_rotary_factor=1.5), "partial_rotary_factor is 1.5"),
        (hf(partial_rotary_factor=0.2), "gives 3 rotary dimensions"),
        (hf(rope_scaling={"type": "yarn"}), "rope type 'yarn'.*known are default, linear, llama3, longrope"),
        (hf(rope_scaling={"type": []}), "rope type"),
        (hf(rope_scaling=[1]), r"rope_scaling is \[1\]"),
        (hf(rope_scaling={"type": "linear"}), "linear needs factor"),
        (hf(rope_scaling={"type": "linear", "factor": 2.0, "beta": 1}), "unknown keys beta"),
        (hf(rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters={"rope_type": "default"}), "differ"),
        (longrope(long_factor=[1.0] * 6), "long_factor has 6 values; 16 rotary dimensions need 8"),
        (longrope(short_factor=None), "needs the list short_factor"),
        (longrope(short_factor=[1.0] * 7 + [0.0]), "short_factor must hold numbers above 0"),
        (longrope(short_factor=[1.0] * 7 + ["a"]), "short_factor must hold numbers above 0"),
        (longrope(long_mscale=-1.0), "long_mscale is -1.0"),
        (longrope(original_max_position_embeddings=64), "is 32 and, in the rope values, 64"),
        ({**longrope(), "max_position_embeddings": 16}, "max_position_embeddings 16 is less than .* 32"),
        ({**longrope(), "original_max_position_embeddings": None}, "needs original_max_position_embeddings"),
    ],
)
def test_bad_configs_are_named(config, message):
    with pytest.raises(InputError, match=message) as error:
        read_config(config)
    assert "\n" not in str(error.value)


def test_presets():
    assert preset("phi-3-mini-4k").head_dim == 96
    with pytest.raises(InputError, match=r"unknown preset 'phi-9'.*phi-4-mini"):
        preset("phi-9")
    with pytest.raises(InputError, match="no rope factors of its own"):
        preset("phi-4-mini")
    with pytest.raises(InputError, match="takes no rope_scaling"):
        preset("tiny-mha", RopeScaling((1.0,), (1.0,)))
    with pytest.raises(InputError, match="has 3 values; 96 rotary dimensions need 48"):
        preset("phi-4-mini", RopeScaling((1.0,) * 3, (1.0,) * 48))


json_values = st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=False) | st.text(max_size=3)


@given(key=st.sampled_from(sorted(MINI_4K)), value=json_values | st.lists(json_values, max_size=2) | st.just({}))
def test_any_value_reads_or_is_refused_in_one_line(key, value):
    try:
        config = read_config({**MINI_4K, key: value})
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert read_config(config.to_hf()) == config


# rope_scaling (transformers 4) and rope_parameters (5), apart and together

LISTS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
ROPES = {
    "default": {},
    "linear": {"factor": 2.5},
    "llama3": LLAMA3,
    "longrope": LISTS | {"original_max_position_embeddings": 32},
    "dynamic": {"factor": 2.0},
}


def roped(kind, model_type, **changes):
    values = hf(model_type=model_type, rope_theta=..., rope_scaling=..., original_max_position_embeddings=...)
    return values | {"rope_theta": 5000.0} | changes


@pytest.mark.parametrize("model_type", ["phi3", "llama", "mistral"])
@pytest.mark.parametrize("kind", ROPES)
def test_both_layouts_mean_the_same_apart_and_together(kind, model_type):
    values = ROPES[kind]
    four = roped(kind, model_type, rope_scaling={"type": kind, **values})
    inner = {"rope_type": kind, "rope_theta": 5000.0, "partial_rotary_factor": 1.0, **values}
    five = {key: value for key, value in roped(kind, model_type, rope_parameters=inner).items() if key != "rope_theta"}
    want = read_config(four)
    assert want.rope_theta == 5000 and (want.rope_scaling is None) == (kind in ("default", "dynamic"))
    for both in (
        five,
        five | {"rope_theta": 5000},
        four | {"rope_parameters": inner},
        four | {"rope_parameters": {**inner, "type": kind}},
        four | {"rope_parameters": {**inner, "mscale": None, "attention_factor": None}},
        four | {"rope_scaling": {"rope_type": kind, **values}, "rope_parameters": inner},
        five | {"rope_scaling": inner},
        five | {"rope_scaling": None},
        five | {"rope_scaling": {}},
        four | {"rope_parameters": None},
        five | {"rope_parameters": {"full_attention": inner}},
        five | {"rope_parameters": {"full_attention": inner, "sliding_attention": dict(inner)}},
    ):
        assert read_config(json.loads(json.dumps(both))) == want


@pytest.mark.parametrize(
    ("both", "message"),
    [
        (({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 4.0}), r"differ in factor \(2.0 and 4.0\)"),
        (({"type": "linear", "factor": 2.0}, {"rope_type": "default"}), "differ in factor"),
        (({"type": "default"}, {"rope_type": "dynamic", "factor": 2.0}), "differ in factor"),
        (({"rope_theta": 1e4}, {"rope_theta": 5e5}), r"differ in rope_theta \(10000.0 and 500000.0\)"),
        (({"rope_type": "llama3", **LLAMA3}, {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 2.0}), "low_freq_factor"),
        (
            ({"type": "longrope", **LISTS}, {"rope_type": "longrope", **LISTS, "long_factor": [3.0] * 8}),
            r"differ in long_factor \(\[2.0, 2.0, 2.0.* \.\.\. and \[3.0",
        ),
        (({"type": "longrope", **LISTS}, {"rope_type": "longrope", **LISTS, "attention_factor": 1.3}), "in attention_factor"),
        (({"rope_type": "linear", "type": "llama3", "factor": 2.0}, None), "has rope_type 'linear' and type 'llama3'"),
        ((None, {"full": {"rope_theta": 1e4}, "sliding": {"rope_theta": 1e6}}), "rope_parameters differs for full and sliding"),
        ((None, {"rope_theta": 1e6}), "rope_theta is 10000.0 and, in the rope values, 1000000.0; they must agree"),
        ((None, {"partial_rotary_factor": 0.5}), "partial_rotary_factor is 1.0 and, in the rope values, 0.5; they must agree"),
        ((None, {"rope_type": "llama3", **LLAMA3}), "original_max_position_embeddings is 256 and, in the rope values, 128"),
        ((None, {"rope_type": "yarn", "factor": 2.0}), "rope type 'yarn' in rope_parameters"),
        ((None, {"rope_type": "default", "mrope_section": [1, 2]}), "unknown keys mrope_section"),
        ((None, [1]), r"rope_parameters is \[1\]; it must be an object"),
    ],
)
def test_rope_values_that_do_not_agree_are_named(both, message):
    given = {key: value for key, value in zip(("rope_scaling", "rope_parameters"), both, strict=True) if value is not None}
    with pytest.raises(InputError, match=message) as error:
        read_config(hf(**{"rope_scaling": ..., **given}))
    assert "\n" not in str(error.value)


def test_su_is_longrope_in_either_place():
    scaling, original = {"type": "su", **LISTS}, {"original_max_position_embeddings": 32}
    five = {"rope_type": "longrope", "type": "longrope", "rope_theta": 10000.0, **LISTS, **original}
    assert read_config(hf(rope_scaling=scaling, rope_parameters=five, **original)) == read_config(longrope())


def test_rope_values_that_a_type_does_not_read_are_no_error():
    spare = {"attention_factor": 1.0, "original_max_position_embeddings": 64, "finetuned": True}
    for kind in ("default", "linear", "dynamic"):
        rope = {"rope_type": kind, **ROPES[kind]}
        assert read_config(hf(rope_scaling=rope | spare)) == read_config(hf(rope_scaling=rope))


def test_dynamic_scaling_is_transformers_own_up_to_the_longest_context():
    import torch
    import transformers
    from tiny import random_model, random_tensors, random_tokens, unfused

    config = tiny("tiny-mha", max_position_embeddings=48, original_max_position_embeddings=48, source_model_type="llama")
    values = {**config.to_hf(), "model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}
    assert replace(read_config(values), source_model_type="phi3") == replace(config, source_model_type="phi3")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values)).eval()
    theirs.load_state_dict(unfused(config, random_tensors(config)))
    tokens = random_tokens(config, 48)
    with torch.no_grad():
        assert (theirs(tokens).logits - random_model(config)(tokens)).abs().max() < 1e-4
