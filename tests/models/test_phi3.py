"""fp32 parity with transformers: the reference every later arrow is measured against."""

import pytest
import torch
from tiny import TINY, random_model, random_tensors, random_tokens, tiny, transformers_model, unfused

from phi3mobile.errors import InputError
from phi3mobile.models.attend import attend
from phi3mobile.models.config import RopeScaling
from phi3mobile.models.decoder import Decoder
from phi3mobile.models.families.phi3 import Phi3Config
from phi3mobile.models.registry import read_config

LIMIT = 1e-4


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours - theirs).abs().max().item()


@torch.no_grad()
def reference(config: Phi3Config, tokens: torch.Tensor) -> torch.Tensor:
    logits = transformers_model(config, random_tensors(config))(tokens).logits
    assert logits.std() > 0.1  # a dead model would agree with anything
    return logits


@pytest.mark.parametrize("name", TINY)
def test_logits_equal_transformers(name):
    config = tiny(name)
    tokens = random_tokens(config, 24)
    assert difference(random_model(config)(tokens), reference(config, tokens)) <= LIMIT


@pytest.mark.parametrize("length", [31, 32, 33, 80])
@pytest.mark.parametrize("name", ["tiny-longrope", "tiny-partial"])
def test_longrope_below_at_and_past_the_switch(name, length):
    config = tiny(name)
    tokens = random_tokens(config, length)
    assert difference(random_model(config)(tokens), reference(config, tokens)) <= LIMIT


def test_long_factors_change_the_logits():
    config = tiny("tiny-longrope")
    tokens = random_tokens(config, 20)
    assert difference(random_model(config)(tokens), random_model(config)(tokens, long=True)) > 0.05


def test_type_su_is_longrope():
    config = tiny("tiny-longrope")
    hf = config.to_hf()
    hf["rope_scaling"]["type"] = "su"
    read = read_config(hf)
    assert read == config
    tokens = random_tokens(config, 40)
    assert difference(random_model(read)(tokens), reference(config, tokens)) <= LIMIT


@pytest.mark.parametrize("name", [*TINY, "window past the switch"])
def test_chunks_and_decode_equal_one_pass(name):
    config = tiny("tiny-longrope", sliding_window=12) if name not in TINY else tiny(name)
    tokens = random_tokens(config, 61)
    model = random_model(config)
    expected = reference(config, tokens)
    chunks, position = [], 0
    for length in (17, 23, 1, 16, 1, 1, 1, 1):
        chunks.append(model(tokens[:, position : position + length], position, long=True))
        position += length
    assert difference(torch.cat(chunks, 1), expected) <= LIMIT


def test_position_can_go_back():
    config = tiny("tiny-window")
    tokens, other = random_tokens(config, 30), random_tokens(config, 30, seed=5)
    model = random_model(config)
    model(torch.cat([tokens[:, :18], other], 1))
    assert difference(model(tokens[:, 18:], 18), reference(config, tokens)[:, 18:]) <= LIMIT


def test_running_again_from_zero_after_the_switch_is_exact():
    config = tiny("tiny-longrope")
    tokens = random_tokens(config, 34)
    model = random_model(config)
    model(tokens[:, :32])
    stale = model(tokens[:, 32:], 32)
    expected = reference(config, tokens)
    assert difference(stale, expected[:, 32:]) > LIMIT  # cached keys were turned by the short factors
    assert difference(model(tokens), expected) <= LIMIT


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "mistral", "llama3", "linear"])
def test_llama_and_mistral_are_the_same_graph(kind):
    import transformers

    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attn_implementation": "eager",
    }
    if kind == "mistral":
        hf = transformers.MistralConfig(**shape, sliding_window=9, head_dim=32)
        theirs = transformers.MistralForCausalLM(hf)
    else:
        rope = {
            "llama": {"rope_type": "default", "rope_theta": 5e4},
            "linear": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4},
            "llama3": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        }[kind]
        hf = transformers.LlamaConfig(**shape, rope_parameters=rope, tie_word_embeddings=kind == "llama")
        theirs = transformers.LlamaForCausalLM(hf)
    config = read_config(hf.to_dict())
    assert config.source_model_type == hf.model_type and config.original_context is None
    tensors = random_tensors(config)
    theirs.float().eval().load_state_dict(unfused(config, tensors), strict=False)
    tokens = random_tokens(config, 48)
    expected = theirs(tokens).logits
    assert difference(random_model(config)(tokens), expected) <= LIMIT
    as_phi3 = transformers_model(config, tensors)  # the written config means the same to transformers' Phi-3
    assert difference(as_phi3(tokens).logits, expected) <= LIMIT


def test_explicit_mscale_equals_attention_factor():
    config = tiny("tiny-longrope")
    scaling = RopeScaling(config.rope_scaling.short_factor, config.rope_scaling.long_factor, 1.31, 1.31)
    config = tiny("tiny-longrope", rope_scaling=scaling)
    tokens = random_tokens(config, 40)
    assert difference(random_model(config)(tokens), reference(config, tokens)) <= LIMIT


def test_state_dict_has_hf_names():
    for name in ("tiny-gqa", "tiny-tied"):
        config = tiny(name)
        theirs = transformers_model(config, random_tensors(config)).state_dict()
        ours = Decoder(config).state_dict()
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_tied_head_is_the_embedding():
    model = Decoder(tiny("tiny-tied"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters()


def test_builds_on_meta_then_allocates():
    with torch.device("meta"):
        model = Decoder(tiny("tiny-longrope"))
    assert model.cos.is_meta and model.model.layers[0].k_cache.is_meta
    model.allocate()
    assert model.cos.shape == (32 + 256, 8) and not model.model.layers[1].v_cache.is_meta


def test_attend_sees_exactly_window_keys():
    v = torch.eye(8)[None, :, None, :]  # the result at a query is its row of attention weights
    zeros = torch.zeros(1, 8, 1, 8)
    weights = attend(zeros, zeros, v, 0, 1.0, window=3)[0]
    expected = torch.ones(8, 8).tril().triu(-2)
    assert torch.allclose(weights, expected / expected.sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 17, dtype=torch.int64), "17 tokens do not fit the context of 16"),
        (torch.zeros(1, 0, dtype=torch.int64), "T >= 1"),
        (torch.zeros(2, 4, dtype=torch.int64), "int64"),
        (torch.zeros(1, 4), "int64"),
        (torch.full((1, 4), 256), "ids run from 0 to 255"),
        (torch.full((1, 4), -1), "ids run from 0 to 255"),
    ],
)
def test_bad_tokens_are_named(tokens, message):
    model = Decoder(tiny("tiny-mha"), 16)
    with pytest.raises(InputError, match=message):
        model(tokens)


def test_gaps_and_bad_contexts_are_refused():
    model = Decoder(tiny("tiny-mha"), 16)
    model(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="cache holds 4 rows"):
        model(torch.zeros(1, 1, dtype=torch.int64), 5)
    model.reset()
    with pytest.raises(ValueError, match="cache holds 0 rows"):
        model(torch.zeros(1, 1, dtype=torch.int64), 4)
    for context in (0, 257):
        with pytest.raises(InputError, match="1 to 256"):
            Decoder(tiny("tiny-mha"), context)
