"""phi-3-small as programs: stock operators and our kernels, each against the torch model with the same integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exported import VOCAB, psnr, talking_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import tiny

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.eager import EagerEngine
from phi3mobile.engines.native import native_library
from phi3mobile.engines.registry import open_engine
from phi3mobile.export.build import export
from phi3mobile.export.packed import HEAD, PackedModel, load_packed
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.targets.executorch import stamp
from phi3mobile.export.targets.executorch.attention import Place, ShiftedMasks, StockAttention, StockBlockSparse, attention_of
from phi3mobile.export.targets.executorch.write import lowered_segments, register_operators
from phi3mobile.models.attend import attend, visible
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.decoder import MASKED
from phi3mobile.models.rope import apply_rope
from phi3mobile.session.session import Session

NATIVE = pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native")


@pytest.fixture
def engines(request, checkpoint_of, bundle_of):
    """(the torch model with the bundle's integers, the program) for (preset, recipe)."""
    name, recipe = request.param
    bundle = open_bundle(bundle_of(name, recipe))
    packed = PackedModel(open_checkpoint(checkpoint_of(name)), find_recipe(recipe))
    program = open_engine(bundle)
    yield EagerEngine(load_packed(packed, 256)), program
    program.close()


def said(config) -> list[int]:
    return [token for token in range(config.vocab_size) if token not in config.dummy_token_indices]


def same_logits(engines, tokens, position=0, long=False, least=40.0):
    """One forward of both; masked ids are the least float32 in both."""
    expected, ours = (engine.forward(tokens, position, long) for engine in engines)
    config = engines[0].model.config
    masked = list(config.dummy_token_indices)
    assert len(masked) == 3 and (ours[:, masked] == MASKED).all() and (expected[:, masked] == MASKED).all()
    assert psnr(expected[:, said(config)], ours[:, said(config)]) >= least


def some_tokens(engine, count, seed=0):
    return np.random.default_rng(seed).integers(0, engine.info.vocab, count)


def with_recipes(name, *recipes, slow=()):
    def marks(recipe):
        return [*([] if recipe.startswith("android") else [NATIVE]), *([pytest.mark.slow] if recipe in slow else [])]

    cases = [pytest.param((name, recipe), marks=marks(recipe)) for recipe in (*recipes, *slow)]
    return pytest.mark.parametrize("engines", cases, indirect=True)


@with_recipes("small-tiny", "android-cpu", slow=("host-fp32-kv",))
def test_the_program_computes_what_the_torch_model_does(engines):
    tokens = some_tokens(engines[1], 256)
    same_logits(engines, tokens[:5])  # within the local blocks
    same_logits(engines, tokens[5:97], 5)  # odd split, far past them
    for position in range(97, 110):
        same_logits(engines, tokens[position : position + 1], position)
    same_logits(engines, tokens[40:168], 40)  # back over cached rows
    same_logits(engines, tokens[168:], 168)  # to the end of the context


@with_recipes("small-tiny-longrope", slow=("android-cpu", "host-fp32-kv"))
def test_longrope_regimes_are_the_references(engines):
    tokens = some_tokens(engines[1], 60, seed=3)
    assert engines[0].info.original_context == engines[1].info.original_context == 32
    same_logits(engines, tokens[:20], 0, long=True)  # the early chunk of a long prompt
    same_logits(engines, tokens[20:50], 20, long=True)
    for length in (31, 32, 33):
        same_logits(engines, tokens[:length])
    ids = said(engines[0].model.config)
    short, long = (engines[1].forward(tokens[:20], 0, long)[:, ids] for long in (False, True))
    assert psnr(short, long) < 40  # the regimes do differ


@with_recipes("small-tiny", slow=("host",))
def test_an_int8_cache_costs_little(engines):
    same_logits(engines, some_tokens(engines[1], 100), least=30)


def test_answers_never_hold_masked_ids(bundle_of):
    with Session(bundle_of("small-tiny")) as session:
        masked, logits = {7, 250, 251}, session.engine.forward(np.arange(9), 0)
        assert not masked & set(logits.argsort(-1)[:, -200:].ravel().tolist())
        assert "".join(session.complete("the cat sat", max_tokens=12))


def test_within_the_local_blocks_attention_is_plain_causal():
    config, local, recipe = tiny("small-tiny"), 24, find_recipe("android-cpu")
    register_operators(recipe)
    assert type(attention_of(config, recipe, 0, local)) is StockAttention
    assert type(attention_of(config, recipe, 0, local + 1)) is StockBlockSparse
    assert type(attention_of(config, recipe, 1, local + 1)) is StockAttention  # every second layer is dense
    native = find_recipe("host")
    assert attention_of(config, native, 0, local).pattern == attention_of(config, native, 1, 256).pattern == ()
    assert attention_of(config, native, 0, local + 1).pattern == (8, 3, 4, 1)


@pytest.mark.slow
def test_within_the_local_blocks_programs_are_plain_causal(tmp_path):
    checkpoint = talking_checkpoint(tmp_path / "checkpoint", "small-tiny", num_hidden_layers=2)
    tensors = load_file(checkpoint / "model.safetensors")
    zeroed = {name: tensor * 0 if "mlp" in name and name.endswith("bias") else tensor for name, tensor in tensors.items()}
    save_file(zeroed, checkpoint / "model.safetensors")  # equal constants share their bytes in the program
    local, recipe = 24, find_recipe("android-cpu")
    bundle = open_bundle(export(checkpoint, tmp_path / "bundle", context=local, method="rtn"))
    packed = PackedModel(open_checkpoint(checkpoint), recipe)
    engines = EagerEngine(load_packed(packed, local)), open_engine(bundle)
    same_logits(engines, some_tokens(engines[1], local))
    assert bundle.manifest["family"] == "phi3small"
    assert "aten::index_select.out" not in bundle.manifest["runtime"]["operators"]


def test_segments_are_lowered_once_per_kind_for_sparse_and_dense_layers(checkpoint_of, tmp_path, monkeypatch):
    lowered, real = [], stamp.lower
    monkeypatch.setattr(stamp, "lower", lambda packed, kind, *rest: lowered.append(kind) or real(packed, kind, *rest))
    packed = PackedModel(open_checkpoint(checkpoint_of("small-tiny")), find_recipe("android-cpu"))
    assert len(lowered_segments(packed, 32, tmp_path, lambda *_: None)) == packed.config.num_hidden_layers + 1 == 5
    assert lowered == ["start", "middle", "end"]


def test_the_head_masks_ids_by_its_bias(checkpoint_of):
    packed = PackedModel(open_checkpoint(checkpoint_of("small-tiny")), find_recipe("host"))
    bias = packed.tensor(HEAD).bias
    assert bias[[7, 250, 251]].tolist() == [MASKED] * 3 and bias.count_nonzero() == 3 and len(bias) == VOCAB
    assert packed.tensor("model.embed_tokens.weight").bias is None
    dense = packed.checkpoint.tensor("model.layers.1.self_attn.dense.bias")
    assert torch.equal(packed.tensor("model.layers.1.self_attn.dense.weight").bias, dense)


# attention modules, without a program

PATTERNS = st.builds(
    dict,
    blocksparse_block_size=st.integers(1, 8),
    blocksparse_num_local_blocks=st.integers(1, 3),
    blocksparse_vert_stride=st.sampled_from([1, 2, 3, 4, 5, 8, 16, 19]),
    blocksparse_homo_head_pattern=st.booleans(),
    num_key_value_heads=st.sampled_from([1, 2, 4, 8]),
    mup_attn_multiplier=st.sampled_from([1.0, 3.0]),
)
CONTEXT = 48


@settings(max_examples=60, deadline=None)
@given(PATTERNS, st.lists(st.integers(1, 12), min_size=1, max_size=4), st.sampled_from(["android-cpu", "host-fp32-kv"]))
def test_both_forms_of_attention_equal_the_models(changes, lengths, name):
    config, recipe = tiny("small-tiny", **changes), find_recipe(name)
    register_operators(recipe)
    attention, pattern = attention_of(config, recipe, 0, CONTEXT), config.blocksparse(0)
    heads, kv_heads, dim = 8, config.num_key_value_heads, 16
    generator, position = torch.Generator().manual_seed(0), 0
    k_cache, v_cache = torch.zeros(1, CONTEXT, kv_heads, dim), torch.zeros(1, CONTEXT, kv_heads, dim)
    for length in lengths:
        end = position + length
        q, k, v = (torch.randn(1, length, count, dim, generator=generator) for count in (heads, kv_heads, kv_heads))
        cos, sin = torch.randn(length, 8, generator=generator), torch.randn(length, 8, generator=generator)
        turned = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        k_cache[:, position:end], v_cache[:, position:end] = turned[1], v
        expected = attend(turned[0], k_cache, v_cache, position, config.attention_scale, pattern=pattern)[0]
        positions = torch.arange(position, end)
        shifted = ShiftedMasks(pattern, CONTEXT)(positions)
        place = Place(torch.tensor([position]), position, cos, sin, None, shifted)
        if recipe.attention == "stock":
            ours = attention(place, turned[0][0], turned[1][0], v[0].flatten(1))
        else:
            ours = attention(place, torch.cat([part[0].flatten(1) for part in (q, k, v)], 1))
        assert (ours - expected).abs().max() < 1e-5
        position = end


@settings(max_examples=40, deadline=None)
@given(PATTERNS, st.integers(0, 30), st.integers(1, 18))
def test_masks_are_what_heads_see(changes, start, length):
    config = tiny("small-tiny", **changes)
    pattern, positions = config.blocksparse(0), torch.arange(start, start + length)
    shown = torch.stack(ShiftedMasks(pattern, CONTEXT)(positions)) == 0
    seen = visible(positions, torch.arange(CONTEXT), pattern=pattern)
    shifts = [head * pattern.head_step % pattern.stride for head in range(8)]
    for head, shift in enumerate(shifts):
        assert torch.equal(seen[head], shown[sorted(set(shifts)).index(shift)])


def test_the_released_shape_shares_two_caches_and_makes_eight_calls():
    config = tiny("small-tiny", num_attention_heads=32, num_key_value_heads=8, head_dim=4, blocksparse_vert_stride=8)
    attention = StockBlockSparse(config, CONTEXT, config.blocksparse(0))
    assert [attention.members_0.tolist(), attention.members_1.tolist()] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert attention.calls == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6), (1, 7)]
    assert attention.queries_5.tolist() == [5, 13, 21, 29]
