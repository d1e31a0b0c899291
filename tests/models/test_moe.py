"""Mixtures of experts: both families against transformers, every layout and GGUF form, every fault by name."""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import reference_phimoe
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_model, random_tensors, random_tokens, stored, write_folder

from phi3mobile.bench.mixture_gguf import decoded_bytes, write_random_gguf
from phi3mobile.errors import InputError
from phi3mobile.export.checkpoint import import_checkpoint
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.gguf_checkpoint import open_gguf
from phi3mobile.models.loading import load_model
from phi3mobile.models.presets import PRESETS, SHAPES
from phi3mobile.models.registry import families, read_config

NAMES = ["moe-tiny", "moe-tiny-longrope", "moe-tiny-window", "mixtral-tiny", "mixtral-tiny-window"]
Q = gguf.GGMLQuantizationType


def near_ties(config) -> dict[str, torch.Tensor]:
    """Weights whose routers rarely know the winner: half of the rows are almost copies of the other half."""
    tensors = random_tensors(config)
    for name, tensor in tensors.items():
        if name.endswith("gate.weight"):
            half = len(tensor) // 2
            tensor[half:] = tensor[:half] * (1 + 0.01 * torch.randn(half, 1, generator=torch.Generator().manual_seed(5)))
    return tensors


def model_of(folder: Path, config, tensors):
    return load_model(write_folder(folder, config.to_hf(), stored(config, tensors, config.family)))


@pytest.mark.parametrize("name", ["moe-tiny", "moe-tiny-longrope"])
def test_near_ties_are_routed_as_in_transformers(name: str, tmp_path: Path):
    config, tensors = PRESETS[name], near_ties(PRESETS[name])
    model, tokens = model_of(tmp_path / "c", config, tensors), random_tokens(config, 60)
    chosen: list[torch.Tensor] = []
    moe = model.model.layers[0].block_sparse_moe
    moe.gate.register_forward_hook(lambda module, given, logits: chosen.append(moe.routing(logits)[1]))
    ours = model(tokens)[0].numpy()
    assert 0.2 < (chosen[0] < 1).float().mean() < 1  # the band is entered
    want = reference_phimoe.logits(config.to_hf(), {key: value.numpy() for key, value in tensors.items()}, tokens[0].tolist())
    assert np.abs(ours - want).max() <= 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_decode_are_the_whole(name: str):
    config = PRESETS[name]
    model, tokens = random_model(config), random_tokens(config, 44)
    whole = model(tokens)[0]
    model.reset()
    long = config.original_context is not None
    parts = [model(tokens[:, :20], 0, long), model(tokens[:, 20:41], 20, long)]
    parts += [model(tokens[:, at : at + 1], at, long) for at in range(41, 44)]
    assert (torch.cat(parts, 1)[0] - whole).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_permutation_of_experts_changes_nothing(name: str):
    config, tokens = PRESETS[name], random_tokens(PRESETS[name], 30)
    model = random_model(config)
    before = model(tokens)
    for layer in model.model.layers:
        order = torch.randperm(config.num_local_experts, generator=torch.Generator().manual_seed(2)).tolist()
        moe = layer.block_sparse_moe
        moe.gate.weight.data = moe.gate.weight.data[order]
        moe.experts = torch.nn.ModuleList(moe.experts[i] for i in order)
    model.reset()
    assert (model(tokens) - before).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["moe-tiny", "mixtral-tiny"])
@pytest.mark.parametrize("fused", ["", "-fused"])
def test_both_layouts_are_read_and_hub_names_written(name: str, fused: str, tmp_path: Path):
    config, tensors = PRESETS[name], random_tensors(PRESETS[name])
    values = stored(config, tensors, config.family + fused)
    assert ("model.layers.1.mlp.experts.gate_up_proj" in values) == bool(fused)
    folder = write_folder(tmp_path / "given", config.to_hf(), values)
    checkpoint = open_checkpoint(folder)
    checkpoint.check()
    assert all(torch.equal(checkpoint.tensor(key), tensor) for key, tensor in tensors.items())
    assert all(checkpoint.shape(key) == tensor.shape for key, tensor in tensors.items())
    back = open_checkpoint(import_checkpoint(folder, tmp_path / "imported", "float32"))
    back.check()
    assert "model.layers.0.block_sparse_moe.experts.3.w1.weight" in back._where
    assert all(torch.equal(back.tensor(key), tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("name", ["moe-tiny", "mixtral-tiny"])
@pytest.mark.parametrize("original", [True, False])
def test_what_transformers_saves_is_read_and_what_we_write_it_loads(name: str, original: bool, tmp_path: Path):
    import transformers

    config = PRESETS[name]
    folder = write_folder(tmp_path / "ours", config.to_hf(), stored(config, random_tensors(config), config.family))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()
    tokens = random_tokens(config, 24)
    with torch.no_grad():
        want = theirs(tokens).logits
    assert (load_model(folder)(tokens) - want).abs().max() <= 1e-4
    theirs.save_pretrained(tmp_path / "saved", save_original_format=original)
    hf = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert read_config(hf).num_local_experts == config.num_local_experts
    assert (load_model(tmp_path / "saved")(tokens) - want).abs().max() <= 1e-4


HUB_35 = {
    "architectures": ["PhiMoEForCausalLM"], "attention_bias": True, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phimoe.PhiMoEConfig"}, "bos_token_id": 1, "eos_token_id": 32000,
    "hidden_act": "silu", "hidden_dropout": 0.0, "hidden_size": 4096, "initializer_range": 0.02, "input_jitter_noise": 0.01,
    "intermediate_size": 6400, "lm_head_bias": True, "max_position_embeddings": 131072, "model_type": "phimoe",
    "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "num_local_experts": 16, "original_max_position_embeddings": 4096, "output_router_logits": False, "rms_norm_eps": 1e-05,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64,
                     "short_mscale": 1.243163121016122, "long_mscale": 1.243163121016122},
    "rope_theta": 10000.0, "router_aux_loss_coef": 0.0, "router_jitter_noise": 0.01, "sliding_window": 131072,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.43.3", "use_cache": True,
    "vocab_size": 32064,
}  # fmt: skip
HUB_MINI = {key: value for key, value in HUB_35.items() if key not in ("original_max_position_embeddings", "rope_scaling")} | {
    "head_dim": 128, "expert_dropout": 0.0, "max_position_embeddings": 4096, "sliding_window": 2047, "intermediate_size": 960,
}  # fmt: skip
HUB_TINY = HUB_MINI | {"intermediate_size": 448, "num_attention_heads": 16, "num_key_value_heads": 4, "rope_scaling": None}


def test_the_hubs_configs_are_read():
    assert read_config(HUB_35) == replace(
        SHAPES["phi-3.5-moe"], rope_scaling=read_config(HUB_35).rope_scaling, source_model_type="phimoe"
    )
    assert read_config(HUB_35).mscales == (1.243163121016122, 1.243163121016122)
    assert read_config(HUB_35).original_context == 4096
    assert read_config(HUB_MINI) == PRESETS["phi-mini-moe"] and read_config(HUB_TINY) == PRESETS["phi-tiny-moe"]
    grin = HUB_MINI | {"model_type": "grinmoe", "architectures": ["GRIN-MoE"], "intermediate_size": 6400}
    assert replace(read_config(grin), source_model_type="phimoe") == PRESETS["grin-moe"]
    counts = {"phi-mini-moe": 7_647_632_704, "phi-tiny-moe": 3_755_220_288, "mixtral-8x7b": 46_702_792_704}
    assert {name: PRESETS[name].parameters() for name in counts} == counts
    assert SHAPES["phi-3.5-moe"].parameters() == 41_873_153_344


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"router_jitter_noise": None}, "router_jitter_noise missing; a phimoe config must give them"),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok 17 is more than num_local_experts 16"),
        ({"num_experts_per_tok": 1}, "num_experts_per_tok is 1; SparseMixer has 2 rounds"),
        ({"num_local_experts": 0}, "num_local_experts is 0; it must be a whole number above 0"),
        ({"router_jitter_noise": "a lot"}, "router_jitter_noise is 'a lot'; it must be a number from 0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": 1}, "attention_bias is 1; it must be true or false"),
        ({"rope_scaling": HUB_35["rope_scaling"] | {"long_mscale": None}}, "needs long_mscale; it never derives it"),
        ({"moe_layers": 3}, "unknown key 'moe_layers'"),
    ],
)
def test_bad_configs_are_named(change: dict, message: str):
    with pytest.raises(InputError, match=message):
        read_config(HUB_35 | change)


def test_bad_mixtral_configs_are_named():
    hf = PRESETS["mixtral-tiny"].to_hf()
    for change, message in (
        ({"num_experts_per_tok": 5}, "num_experts_per_tok 5 is more than num_local_experts 4"),
        ({"num_local_experts": None}, "num_local_experts missing; a mixtral config"),
        ({"attention_bias": True}, "attention_bias is True; this graph allows False or None only"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "mixtral has plain RoPE"),
    ):
        with pytest.raises(InputError, match=message):
            read_config(hf | change)


json_values = st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=False) | st.text(max_size=3)


@settings(deadline=None)
@given(
    hf=st.sampled_from([HUB_35, HUB_TINY, PRESETS["mixtral-tiny"].to_hf()]),
    key=st.sampled_from(sorted(HUB_35)),
    value=json_values | st.lists(json_values, max_size=2) | st.just({}),
)
def test_any_value_reads_or_is_refused_in_one_line(hf: dict, key: str, value: object):
    try:
        config = read_config({**hf, key: value})
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert replace(read_config(config.to_hf()), source_model_type="") == replace(config, source_model_type="")


def _without(name):
    return lambda tensors: tensors.pop(name)


def _shaped(name, *shape):
    return lambda tensors: tensors.update({name: torch.zeros(*shape)})


BASE = "model.layers.1.block_sparse_moe."


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without(f"{BASE}experts.3.w3.weight"), f"{BASE}experts.3.w3.weight is missing"),
        (_without(f"{BASE}gate.weight"), f"{BASE}gate.weight is missing"),
        (_shaped(f"{BASE}gate.weight", 3, 64), r"gate.weight has shape \[3, 64\], expected \[16, 64\]"),
        (_shaped(f"{BASE}experts.16.w1.weight", 96, 64), "experts.16.w1.weight is not part of the model"),
        (_shaped(f"{BASE}experts.0.w2.weight", 96, 64), r"experts.0.w2.weight has shape \[96, 64\], expected \[64, 96\]"),
        (_without("lm_head.bias"), "lm_head.bias is missing"),
    ],
)
def test_missing_and_misshapen_experts_are_named(damage, message, tmp_path: Path):
    config = PRESETS["moe-tiny"]
    tensors = stored(config, random_tensors(config), "phimoe")
    damage(tensors)
    with pytest.raises(InputError, match=message):
        open_checkpoint(write_folder(tmp_path / "c", config.to_hf(), tensors)).check()


def test_a_stack_of_too_few_experts_is_named(tmp_path: Path):
    config = PRESETS["mixtral-tiny"]
    tensors = stored(config, random_tensors(config), "mixtral-fused")
    name = "model.layers.0.mlp.experts.down_proj"
    tensors[name] = tensors[name][:3].contiguous()
    with pytest.raises(InputError, match=r"mlp.experts.down_proj\[3\] is missing"):
        open_checkpoint(write_folder(tmp_path / "c", config.to_hf(), tensors)).check()


def test_a_damaged_router_says_so():
    model = random_model(PRESETS["moe-tiny"])
    model.model.layers[1].block_sparse_moe.gate.weight.data[2, 3] = torch.nan
    with pytest.raises(ValueError, match="router logits are not finite"):
        model(random_tokens(PRESETS["moe-tiny"], 5))


# GGUF


def write_gguf(path: Path, config, tensors: dict[str, torch.Tensor], form: str = "stacked", kind=Q.F32, metadata=()) -> Path:
    """As llama.cpp's converter: form "stacked", or "single", one tensor per expert."""
    architecture = "phimoe" if config.family == "phimoe" else "llama"
    writer = gguf.GGUFWriter(path, architecture)
    values = {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim, "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.head_dim, "expert_count": config.num_local_experts,
        "expert_used_count": config.num_experts_per_tok, "attention.sliding_window": config.sliding_window or 0,
    }  # fmt: skip
    if config.rope_scaling:
        values |= {"rope.scaling.original_context_length": config.original_max_position_embeddings}
        values |= {"rope.scaling.attn_factor": 1.19024}  # derived by the converter: not the model's
        lists = {"long": config.rope_scaling.long_factor, "short": config.rope_scaling.short_factor}
        for key, factors in lists.items():
            writer.add_tensor(f"rope_factors_{key}.weight", np.array(factors, np.float32))
    for key, value in {**values, **dict(metadata)}.items():
        (writer.add_uint32 if type(value) is int else writer.add_float32)(f"{architecture}.{key}", value)
    writer.add_string("tokenizer.ggml.model", "none")
    for key, value in (("bos", 1), ("eos", 2)):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", value)

    def add(name: str, data: np.ndarray) -> None:
        if data.ndim == 1 or kind == Q.F32 or "gate_inp" in name:
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)

    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    inside = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "block_sparse_moe.gate": "ffn_gate_inp",
    }  # fmt: skip
    stacks: dict[str, list[np.ndarray]] = {}
    for name, tensor in stored(config, tensors, config.family).items():
        module, _, part = name.rpartition(".")
        data = tensor.numpy()
        if module in top:
            add(f"{top[module]}.{part}", data)
            continue
        _, _, layer, rest = module.split(".", 3)
        if rest.startswith("block_sparse_moe.experts."):
            _, _, expert, w = rest.split(".")
            own = {"w1": "ffn_gate", "w3": "ffn_up", "w2": "ffn_down"}[w]
            if form == "single":
                add(f"blk.{layer}.{own}.{expert}.weight", data)
            else:
                stacks.setdefault(f"blk.{layer}.{own}_exps.weight", []).append(data)
            continue
        if architecture == "llama" and inside[rest] in ("attn_q", "attn_k"):  # rows in pairs, as llama.cpp turns them
            heads = config.num_attention_heads if inside[rest] == "attn_q" else config.num_key_value_heads
            data = data.reshape(heads, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        add(f"blk.{layer}.{inside[rest]}.{part}", np.ascontiguousarray(data))
    for name, values in stacks.items():
        add(name, np.stack(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("form", ["stacked", "single"])
@pytest.mark.parametrize("name", NAMES)
def test_gguf_files_come_back_exactly(name: str, form: str, tmp_path: Path):
    config, tensors = PRESETS[name], random_tensors(PRESETS[name])
    source = open_gguf(write_gguf(tmp_path / "m.gguf", config, tensors, form))
    source.check()
    assert source.config.family == config.family
    assert all(torch.equal(source.tensor(key), tensor) for key, tensor in tensors.items())
    want = config
    if config.rope_scaling:  # norms, routing and mscale are the family's
        mscale = 1.243163121016122
        want = replace(config, rope_scaling=replace(config.rope_scaling, short_mscale=mscale, long_mscale=mscale))
    assert replace(source.config, source_model_type="") == replace(want, source_model_type="")


@pytest.mark.parametrize("kind", [Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1], ids=lambda kind: kind.name)
def test_quantized_experts_are_dequantized(kind, tmp_path: Path):
    config, tensors = PRESETS["moe-tiny"], random_tensors(PRESETS["moe-tiny"])
    source = open_gguf(write_gguf(tmp_path / "m.gguf", config, tensors, kind=kind))
    source.check()
    for key, tensor in tensors.items():
        got = source.tensor(key)
        if tensor.dim() == 1 or "gate.weight" in key:
            assert torch.equal(got, tensor)
        else:
            want = torch.from_numpy(gguf.dequantize(gguf.quantize(tensor.numpy(), kind), kind))
            assert torch.equal(got, want)


def test_a_gguf_mixture_that_does_not_fit_is_named(tmp_path: Path):
    config, tensors = PRESETS["moe-tiny"], random_tensors(PRESETS["moe-tiny"])
    for number, (change, message) in enumerate(
        (
            ({"expert_count": 17}, r"experts.16.w13.weight is missing"),
            ({"expert_used_count": 3}, "SparseMixer has 2 rounds"),
            ({"rope.dimension_count": 16}, "this family turns whole heads, of 32"),
            ({"expert_shared_count": 1}, "phimoe.expert_shared_count is 1; this graph allows 0 only"),
            ({"leading_dense_block_count": 1}, "leading_dense_block_count is 1; this graph has no such mixture"),
        )
    ):
        path = write_gguf(tmp_path / f"{number}.gguf", config, tensors, metadata=change.items())
        with pytest.raises(InputError, match=message):
            open_gguf(path).check()


def test_the_random_file_for_llama_cpp_is_a_model_of_that_shape(tmp_path: Path):
    """bench/mixture_gguf.py: read by our own importer, with finite weights of unit scale."""
    config = replace(PRESETS["moe-tiny"], head_dim=16, rope_scaling=None)
    write_random_gguf(config, tmp_path / "m.gguf")
    source = open_gguf(tmp_path / "m.gguf")
    source.check()
    for name, tensor in config.tensors().items():
        values = source.tensor(name)
        assert tuple(values.shape) == tensor.shape and torch.isfinite(values).all()
        if values.dim() == 2:
            assert 0.7 < float(values.std()) * values.shape[1] ** 0.5 < 1.4, name
    shapes = {name: tensor.shape for name, tensor in config.tensors().items()}
    used = sum(np.prod(shape) * (2 / 16 if "experts" in name else 1) for name, shape in shapes.items() if len(shape) == 2)
    assert decoded_bytes(config) == pytest.approx(used * 4.7 / 8, rel=0.35)
    with pytest.raises(InputError, match="heads x head size = hidden size"):
        write_random_gguf(PRESETS["mixtral-tiny"], tmp_path / "n.gguf")


def test_families_say_their_own_layouts():
    for name in ("phimoe", "mixtral"):
        family = families()[name]
        config = next(iter(family.PRESETS.values()))
        assert family.source_layout(config, ["model.layers.0.mlp.experts.gate_up_proj"]) == f"{name}-fused"
        assert family.source_layout(config, ["anything"]) == name
