"""Keys of the hub's configs: what has no effect is no error, what has one is read or refused by its name."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_config import MINI_4K, hf
from test_phi3small import SMALL_8K
from tiny import random_model, random_tensors, random_tokens, tiny, unfused, write_folder

from phi3mobile.errors import InputError
from phi3mobile.models.keys import FIXED, HARMLESS
from phi3mobile.models.loading import load_model
from phi3mobile.models.registry import read_config

# config.json of the first LLaMA conversions, of released models (facts of their hub pages), and of tools that write more.
LLAMA_1 = {
    "architectures": ["LLaMAForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_sequence_length": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": -1,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "float16",
    "transformers_version": "4.27.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA_3_2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}
MISTRAL_1 = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
PHI_4_MINI = MINI_4K | {
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 0.75,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "vocab_size": 200064,
    "tie_word_embeddings": True,
    "sliding_window": 262144,
    "max_position_embeddings": 131072,
    "bos_token_id": 199999,
    "eos_token_id": 199999,
    "pad_token_id": 199999,
    "rope_scaling": {"type": "longrope", "long_factor": [2.0] * 48, "short_factor": [1.0] * 48},
}
# What Qwen2's class adds to a config of Llama's or Mistral's layout.
QWEN = {"use_sliding_window": False, "max_window_layers": 28, "sliding_window": 131072, "use_mrope": False}
RELEASED = {
    "llama 1": LLAMA_1,
    "llama 3.2": LLAMA_3_2,
    "smollm2": SMOLLM2,
    "mistral 0.1": MISTRAL_1,
    "phi-3-mini": MINI_4K,
    "phi-4-mini": PHI_4_MINI,
    "phi-3-small": SMALL_8K,
}


def read(config, **changes):
    return read_config(json.loads(json.dumps(config | changes)))


def same(config, **changes):
    """Whether the changes have no effect."""
    return read(config, **changes) == read(config)


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_are_read(name):
    config = read(RELEASED[name])
    assert read(config.to_hf() | {}).parameters() == config.parameters()


def test_the_first_llama_conversions_are_read():
    config = read(LLAMA_1)
    assert (config.pad_token_id, config.max_position_embeddings, config.eos_token_ids) == (None, 2048, (1,))


def test_a_first_conversion_computes_what_transformers_does(tmp_path):
    import transformers

    config = tiny("tiny-mha", source_model_type="llama", rms_norm_eps=1e-6, max_position_embeddings=2048)
    old = {key: LLAMA_1[key] for key in LLAMA_1 if key not in ("hidden_size", "intermediate_size", "vocab_size")}
    old |= {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2}
    parts = unfused(config, random_tensors(config))
    for layer in range(2):
        parts[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.rand(8)
    folder = write_folder(tmp_path / "c", old, parts)
    tokens = random_tokens(config, 30)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert (load_model(folder)(tokens) - theirs(tokens).logits).abs().max() < 1e-4


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("value", [None, -1, 0, 3.5, "x", [1], {}])
def test_harmless_keys_have_no_effect_whatever_their_value(name, value):
    config = RELEASED[name]
    spare = {key: value for key in HARMLESS if key not in config and key != "model_type"}
    spare |= dict.fromkeys(("hidden_dropout", "attn_pdrop", "classifier_dropout", "my_dropout_prob", "embd_drop_prob"), value)
    assert same(config, **spare)


def test_what_transformers_writes_is_known():
    import transformers

    generation = transformers.GenerationConfig().to_dict().keys() - {"bos_token_id", "eos_token_id", "pad_token_id"}
    assert generation <= HARMLESS | FIXED.keys()
    shape = ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "vocab_size")
    tiny_shape = {key: hf()[key] for key in shape}
    for name in ("Llama", "Mistral", "Qwen2", "Phi3"):
        written = getattr(transformers, f"{name}Config")(**tiny_shape, eos_token_id=2, bos_token_id=1, pad_token_id=0).to_dict()
        assert read(written, model_type="llama").vocab_size == 256


@pytest.mark.parametrize("name", [name for name in RELEASED if name != "phi-3-small"])
def test_configs_saved_again_by_transformers_are_the_same(name, tmp_path):
    import transformers

    (tmp_path / "config.json").write_text(json.dumps(RELEASED[name] | {"pad_token_id": None}))
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "rope_parameters" in saved
    assert read(saved) == read(RELEASED[name], pad_token_id=None)


def test_phi3small_saved_again_by_transformers_is_the_same():
    """Its class is the hub's own: transformers 5 adds rope_parameters with its own default theta, which that never reads."""
    scaling = {"type": "su", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64, "original_max_position_embeddings": 8192}
    long = SMALL_8K | {"max_position_embeddings": 131072}
    assert same(SMALL_8K, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}, dtype="bfloat16")
    resaved = long | {"rope_parameters": scaling | {"rope_theta": 10000.0, "rope_type": "su"}}
    assert read(resaved) == read(long, rope_scaling=scaling)
    with pytest.raises(InputError, match=r"partial_rotary_factor is 0\.5"):
        read(resaved | {"rope_parameters": resaved["rope_parameters"] | {"partial_rotary_factor": 0.5}})


@pytest.mark.parametrize("name", RELEASED)
def test_ids_that_no_token_has_are_none(name):
    config = RELEASED[name]
    vocab = config["vocab_size"]
    for outside in (-1, -100, vocab, 2**32 - 1):
        assert read(config, pad_token_id=outside).pad_token_id is None
        assert read(config, bos_token_id=outside).bos_token_id is None
    assert read(config, pad_token_id=vocab - 1).pad_token_id == vocab - 1
    assert read(config, eos_token_id=-1).eos_token_ids == ()
    assert read(config, eos_token_id=[2, -1]).eos_token_ids == (2,)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        for wrong in ("x", 1.5, True, [[1]]):
            with pytest.raises(InputError, match=key.removesuffix("_id")):
                read(config, **{key: wrong})
    with pytest.raises(InputError, match=rf"eos_token_ids has {vocab}; token ids run from 0 to {vocab - 1}"):
        read(config, eos_token_id=vocab)


@pytest.mark.parametrize("key", sorted(FIXED))
def test_fixed_keys_are_refused_by_name(key):
    for value in FIXED[key]:
        assert same(MINI_4K, **{key: value})
    with pytest.raises(InputError, match=rf"config: {key} is 'other'; this graph allows .* only"):
        read(MINI_4K, **{key: "other"})


@pytest.mark.parametrize("key", ["window_size", "moe_layer_freq", "mm_projector_type", "num_experts_per_tok", "yarn"])
def test_other_keys_are_refused_by_name(key):
    for config in RELEASED.values():
        with pytest.raises(InputError, match=f"unknown key '{key}'"):
            read(config, **{key: 3})


def test_qwens_switches():
    assert same(SMOLLM2, **QWEN) and same(SMOLLM2, layer_types=["full_attention"] * 30)
    assert read(MISTRAL_1, **QWEN).sliding_window == 131072  # past every position
    assert same(MISTRAL_1, use_sliding_window=True) and same(MISTRAL_1, max_window_layers=28)
    assert same(MISTRAL_1, use_sliding_window=True, max_window_layers=0, layer_types=["sliding_attention"] * 32)
    no_window = MISTRAL_1 | {"sliding_window": None}
    assert same(no_window, use_sliding_window=False, max_window_layers=28, layer_types=["full_attention"] * 32)
    with pytest.raises(InputError, match="use_sliding_window is False and sliding_window 4096"):
        read(MISTRAL_1, use_sliding_window=False)
    with pytest.raises(InputError, match="max_window_layers is 28"):
        read(MISTRAL_1, use_sliding_window=True, max_window_layers=28)
    for config, kinds in (
        (MISTRAL_1, ["full_attention"] * 32),
        (MISTRAL_1, ["sliding_attention", "full_attention"] * 16),
        (no_window, ["sliding_attention"] * 32),
        (SMOLLM2, ["linear_attention"] * 30),
        (SMALL_8K, ["sliding_attention"] * 32),
        (SMOLLM2, "full_attention"),
    ):
        with pytest.raises(InputError, match="layer_types is "):
            read(config, layer_types=kinds)


def test_nulls_are_the_default():
    for key in ("attention_bias", "mlp_bias", "tie_word_embeddings", "rope_scaling", "rope_theta", "partial_rotary_factor"):
        assert same(MINI_4K, **{key: None})


json_values = st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=False) | st.text(max_size=3)
KEYS = sorted({*FIXED, *HARMLESS, *QWEN, "layer_types", "rope_parameters", "rope_scaling", "bos_token_id", "pad_token_id"})


@given(
    name=st.sampled_from(sorted(RELEASED)),
    changes=st.dictionaries(
        st.sampled_from(KEYS),
        json_values | st.lists(json_values, max_size=2) | st.dictionaries(st.text(max_size=3), json_values),
    ),
)
def test_any_values_read_or_are_refused_in_one_line(name, changes):
    try:
        config = read_config(RELEASED[name] | changes)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert config.parameters() > 0


def test_a_model_of_the_tiny_config_still_runs():
    assert random_model(read(hf(max_sequence_length=7, pad_token_id=-1)))(torch.tensor([[1, 2]])).shape == (1, 2, 256)
